"""Words that were retired come back as no identifier: of a module, class, function, argument, attribute or variable.

Each stands with the folders that it was retired from: many of them are plain English and mean something else elsewhere.
What is stored in files (keys of JSON, YAML and Parquet) keeps its name and is no identifier. `docs/glossary.md` has the
words that are used.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("model", "profiler", "calibrate", "validate", "cli", "moemodel", "bench", "tests")


@dataclass(frozen=True, kw_only=True)
class Retired:
    """A word: where it may not stand, what is said now, and whether that is enforced yet."""

    word: str
    now: str
    where: str
    enforced: bool


def _retired() -> list[Retired]:
    """The table below; `yes` in its last column is what is enforced."""
    rows = (line.split("|") for line in TABLE.strip().splitlines())
    return [
        Retired(word=word.strip(), now=now.strip(), where=where.strip(), enforced=said.strip() == "yes")
        for word, now, where, said in rows
    ]


# Names of files that were retired, each with the folder that it may not come back to.
FILES = """
model      words held as_run tally front draft load inlet compute governor host parallel_host blocks workload
model      step_exchange communication names machine costs groups stages
profiler   heavy effort bench watch heat host_lane meter_lane together held cut shares replicas stretches lanes
calibrate  public steps external dvfs_power caps knobs refit links
validate   choice choose controls style compare
cli        catalogue calibrations
"""
# word | what is said now | retired from ("." is everywhere) | whether that is enforced yet
TABLE = """
calibration_for | rescale_for_precision                           | .                                           | yes
word_B          | element_size_B                                  | .                                           | yes
behind          | overlapped                                      | .                                           | yes
plain_parallel  | fields of the Framework record                  | .                                           | yes
waits           | synchronizes_every_pass                         | model                                       | yes
tensor          | matmul_dtype                                    | model                                       | yes
outer_tokens    | sequence_parallel_tokens                        | .                                           | yes
added           | accumulated_fraction                            | model/step                                  | yes
in_buckets      | gradients_in_ddp_buckets                        | .                                           | yes
_cut            | is_sharded                                      | model                                       | yes
joins           | grad_fan_in                                     | model                                       | yes
share           | expert_load_fraction                            | model/step                                  | yes
_Forward        | LayerOp                                         | .                                           | yes
mean_share      | load_balance                                    | model                                       | yes
Held            | ResidentStates, SustainedPower or SustainedLoad | .                                           | yes
several         | accumulating                                    | model/step                                  | yes
Parts           | ParameterCounts                                 | model                                       | yes
Behind          | OverlappableComm                                | .                                           | yes
free_s          | hideable_s                                      | .                                           | yes
everybody       | world                                           | model                                       | yes
ahead           | async_launch                                    | model/predict                               | yes
meets           | synchronizes                                    | model                                       | yes
polls           | busy_waits                                      | model                                       | yes
shown_f         | exposed_forward_s                               | .                                           | yes
gone_f          | hidden_forward_s                                | .                                           | yes
shown_b         | exposed_backward_s                              | .                                           | yes
gone_b          | hidden_backward_s                               | .                                           | yes
beside_f        | overlap_window_forward_s                        | .                                           | yes
beside_b        | overlap_window_backward_s                       | .                                           | yes
talk_s          | comm_s                                          | .                                           | yes
_hidden         | _overlapped_s                                   | model/predict                               | yes
tree_W          | the clock tree's power of each phase            | model/predict                               | yes
cycle           | power_profile                                   | model/predict                               | yes
_columns        | _phase_totals                                   | model/predict                               | yes
way_s           | pipeline_fill_comm_s                            | .                                           | yes
forward_lead    | unoverlappable_fraction_forward                 | .                                           | yes
again_s         | recompute_sync_s                                | .                                           | yes
wait_s          | host_sync_s                                     | model/step                                  | yes
_talk           | _comm                                           | .                                           | yes
tied            | embedding_grad_all_reduce                       | model/step/microbatch_comm.py               | yes
_counts         | _expert_count_all_to_all                        | model/step                                  | yes
boundary        | pipeline_p2p                                    | model/step                                  | yes
once_a_node     | node_deduplicated                               | .                                           | yes
most_nodes      | node_limit                                      | .                                           | yes
starts_s        | launch_latency_s                                | .                                           | yes
steps_s         | hop_latency_s                                   | model/network                               | yes
moved           | transfer_time_s                                 | model/network                               | yes
skew_share      | imbalance_penalty                               | model/network                               | yes
Lane            | PhaseCost, Stream, DeviceMeter or CommStream    | .                                           | yes
Pricer          | OperatorCostModel                               | .                                           | yes
_STAND_INS      | FALLBACK                                        | .                                           | yes
outside_s       | extrapolated_s                                  | model | yes
Stretch         | PowerSegment, TimedRegion or TimedInterval      | .                                           | yes
settled_clocks  | steady_state_clocks                             | .                                           | yes
_Move           | ClockResponse                                   | model                                       | yes
Units           | FsdpUnits                                       | model                                       | yes
late            | embedding_parameters                            | model/step                                  | yes
exposing        | with_exposed                                    | model                                       | yes
Calls           | CollectiveLaunches                              | model                                       | yes
third           | is_zero3                                        | model                                       | yes
CutWithEnds     | PipelineLayout                                  | .                                           | yes
AsRun           | PredictedQuantities                             | .                                           | yes
merged          | reduce_ranks                                    | model/results                               | yes
Warmer          | InletSensitivity                                | .                                           | yes
Tally           | SearchState                                     | .                                           | yes
_race           | _update_top_k                                   | .                                           | yes
nothing         | infeasible_message                              | model/search                                | yes
needs_of        | constraint_values                               | .                                           | yes
Space           | SearchProblem                                   | .                                           | yes
says            | message                                         | model/search/candidates.py                  | yes
refuses         | is_violated                                     | model                                       | yes
held_load       | sustained_load                                  | .                                           | yes
HeldLoad        | SustainedLoad                                   | .                                           | yes
slower          | slack                                           | model/search                                | yes
draft_plan      | baseline_plan                                   | .                                           | yes
mistake         | validate_name                                   | .                                           | yes
HeavyLoad       | BackgroundLoad                                  | .                                           | yes
Effort          | MeasurementBudget                               | .                                           | yes
Bench           | Harness                                         | .                                           | yes
lead_s          | spin_s                                          | profiler                                    | yes
Controls        | DeviceSettings or BaselinePlans                 | .                                           | yes
Knob            | ScaleFactor                                     | .                                           | yes
Moved           | FittedFactor                                    | .                                           | yes
_Free           | BoundedParameter                                | .                                           | yes
Free            | BoundedParameter                                | .                                           | yes
Wish            | PlanRequest                                     | .                                           | yes
Asked           | RequestedPlan                                   | .                                           | yes
Question        | ValidationSpec                                  | .                                           | yes
Line            | RunRecord                                       | validate                                    | yes
alone           | folder_lock                                     | validate                                    | yes
look            | probe_hardware                                  | validate                                    | yes
help_first      | run_as_helper                                   | .                                           | yes
Holder          | SustainedRunner                                 | .                                           | yes
Teller          | EventWriter                                     | .                                           | yes
Follower        | EventReader                                     | .                                           | yes
Stopwatch       | CollectiveTimer                                 | .                                           | yes
Peers           | HelperProcesses, RankBarrier or RendezvousStore | .                                           | yes
Timer           | StreamTimer                                     | profiler/microbench                         | yes
Outcome         | ProfileReport                                   | profiler                                    | yes
Outcome         | ValidationResult                                | validate                                    | yes
Run             | MeasuredRun                                     | calibrate                                   | yes
Run             | RunTotals                                       | model/results                               | yes
Cut             | ShardingStrategy                                | .                                           | yes
RankCut         | TensorParallelSharding                          | .                                           | yes
enter           | copy_to_tensor_parallel_region                  | profiler/backends                           | yes
leave           | reduce_from_tensor_parallel_region              | profiler/backends                           | yes
Share           | ShardSpec                                       | profiler                                    | yes
Layout          | RankMesh                                        | .                                           | yes
experts         | ep                                              | profiler/backends/torch_native/rank_mesh.py | yes
copies          | expert_data_parallel                            | profiler/backends                           | yes
ends            | embedding_group                                 | profiler/backends/torch_native/rank_mesh.py | yes
holders         | replicas                                        | profiler                                    | yes
_say            | _emit_event                                     | profiler                                    | yes
let_go          | release_comm_buffers                            | .                                           | yes
SetAside        | SkippedPlan                                     | .                                           | yes
Phase           | PhaseOutcome                                    | model/results                               | yes
Chip            | RooflineChip                                    | model                                       | yes
"""


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every identifier of a module, and its line."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, line
            case ast.ClassDef(name=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name, line
            case ast.keyword(arg=str(name)):
                yield name, line
            case ast.alias(name=name, asname=other):
                yield name, line
                yield other or name, line
            case _:
                pass


@cache
def _used_in(path: Path) -> list[tuple[str, int]]:
    return list(identifiers(ast.parse(path.read_text(encoding="utf-8"))))


def _files(root: Path) -> list[Path]:
    return [root] if root.is_file() else sorted(root.rglob("*.py"))


@cache
def _used(where: str) -> dict[str, list[str]]:
    """Identifier -> places, in a file, below a folder, or everywhere."""
    roots = CODE if where == "." else (where,)
    files = (
        path for root in roots for path in ([ROOT / root] if root.endswith(".py") else (ROOT / root).rglob("*.py"))
    )
    found: dict[str, list[str]] = {}
    for path in sorted(files):
        file = path.relative_to(ROOT).as_posix()
        for name, line in _used_in(path):
            found.setdefault(name, []).append(f"{file}:{line}")
    return found


@pytest.mark.parametrize("retired", [r for r in _retired() if r.enforced], ids=lambda r: f"{r.where}-{r.word}")
def test_a_retired_word_stays_retired(retired: Retired) -> None:
    assert (ROOT / retired.where).exists(), f"{retired.where} is gone; where is {retired.word} retired from now?"
    places = _used(retired.where).get(retired.word, [])
    assert places == [], f"{retired.word}: say {retired.now}"


def test_an_identifier_is_found_wherever_it_stands() -> None:
    text = "from x import c as d\nclass E(f):\n    def g(h, *i, **j): k.l(m=n)\nasync def o(): pass\n"
    assert {name for name, _ in identifiers(ast.parse(text))} == set("cdEfghijklmno")


def test_a_retired_file_stays_retired() -> None:
    for line in FILES.strip().splitlines():
        folder, *names = line.split()
        assert {path.stem for path in (ROOT / folder).rglob("*.py")}.isdisjoint(names), folder
