"""Priors of how unevenly routers load experts: what was measured, and what is the least there can be.

    python bench/routing_priors.py [--write] [--json] [RUN ...]

Each prior is of routers of so many experts, of which a token gets so many, in one state. Without arguments it makes
those that ship (`--write`: into model/presets/routing):

    random-weights.json   this project's own validations and iterations from random weights on made-up tokens, without a
                          balancing loss: the mean skew of a run, of its layers and steps (`bench/measured`)
    even-chance.json      nothing measured: every token chooses its experts by even chance (a multinomial draw);
                          but for routers that a rule balances, none is more even

RUN: folders of `moemodel run`, whose routers' counts make a file of the same kind on standard output (`--json`): the
first ten steps are `initial`, the last tenth `trained`; every layer and step is a skew.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from moemodel.model.architecture.spec import Moe
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.records.routing_statistics import PRIORS, LoadStatistics, RoutingStatistics, State
from moemodel.model.records.run import MANIFEST, RoutingRecord, RunManifest

_MEASURED = Path(__file__).resolve().parent / "measured"
_INITIAL_STEPS = 10
_LAST_SHARE = 0.1
_SIZES = tuple((experts, top_k) for experts in (8, 16, 64, 128) for top_k in (1, 2, 8) if top_k < experts)
_TOKENS, _DRAWS = 8192, 400
_Kind = tuple[int, int, State]


def kind_of(plan: Plan) -> tuple[int, int] | None:
    """Experts of a layer and of a token; None: the plan's model has none."""
    blocks = [layer.feed_forward for layer in architecture_of(plan).layers if isinstance(layer.feed_forward, Moe)]
    return (blocks[0].experts, blocks[0].top_k) if blocks else None


# ---- measured -------------------------------------------------------------------------------------------------------


def measured_runs() -> Iterator[tuple[str, float]]:
    """The plan of each run of this project that counted its experts' loads, and its mean skew."""
    for path in sorted(_MEASURED.glob("*/iterations.parquet")):
        rows = pq.read_table(path, columns=["plan_yaml", "rank", "expert_skew"]).to_pylist()
        yield from ((row["plan_yaml"], row["expert_skew"]) for row in rows if row["expert_skew"] and row["rank"] == 0)
    for path in sorted(_MEASURED.glob("validation*/*.json")):
        plans = json.loads(path.read_text(encoding="utf-8"))["plans"]
        yield from ((plan["plan_yaml"], plan["expert_skew"]) for plan in plans if plan.get("expert_skew"))


def random_weights() -> RoutingStatistics:
    """Of `bench/measured`."""
    skews: dict[tuple[int, int], list[float]] = defaultdict(list)
    tokens: dict[tuple[int, int], list[int]] = defaultdict(list)
    for text, skew in measured_runs():
        plan = Plan.model_validate(yaml.safe_load(text))
        kind = kind_of(plan)
        if kind is not None:
            skews[kind].append(skew)
            tokens[kind].append(plan.micro_batch * plan.parallel.dp * plan.sequence_length)
    source = "bench/measured: random weights, made-up tokens, no balancing loss; a skew is a run's mean"
    loads = [
        statistics((*kind, "initial"), values, int(np.median(tokens[kind])), measured=True, source=source)
        for kind, values in sorted(skews.items())
    ]
    return RoutingStatistics(name="random weights", loads=loads)


def of_runs(folders: Iterable[Path]) -> RoutingStatistics:
    """Of run folders."""
    skews: dict[_Kind, list[float]] = defaultdict(list)
    tokens: dict[_Kind, list[int]] = defaultdict(list)
    for folder in folders:
        manifest = RunManifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
        for record in _records(folder):
            state = _state(record.step, manifest.steps)
            rows = np.array(record.rows_E)
            kind = kind_of(Plan.model_validate(yaml.safe_load(manifest.plan_yaml)))
            if state is not None and kind is not None and rows.sum():
                skews[*kind, state].append(float(rows.max() / rows.mean()))
                tokens[*kind, state].append(int(rows.sum() / kind[1]))
    source = "moemodel run: a skew is of one layer in one step"
    return RoutingStatistics(
        name="runs",
        loads=[
            statistics(kind, values, int(np.median(tokens[kind])), measured=True, source=source)
            for kind, values in sorted(skews.items())
        ],
    )


def _records(folder: Path) -> Iterator[RoutingRecord]:
    for path in sorted(folder.glob("routing-rank*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield RoutingRecord.model_validate_json(line)


def _state(step: int, steps: int) -> State | None:
    if step < _INITIAL_STEPS:
        return "initial"
    return "trained" if step >= (1 - _LAST_SHARE) * steps else None


# ---- theory ---------------------------------------------------------------------------------------------------------


def even_chance() -> RoutingStatistics:
    """Every token chooses its experts at random, each as likely as another."""
    dice = np.random.default_rng(0)
    rule = "choose by even chance (multinomial); not measured: the least of a router that no rule balances"
    source = f"theory: {_TOKENS} tokens {rule}"
    return RoutingStatistics(
        name="even chance",
        loads=[
            statistics((*size, "trained"), drawn_skews(*size, dice), _TOKENS, measured=False, source=source)
            for size in _SIZES
        ],
    )


def drawn_skews(experts: int, top_k: int, dice: np.random.Generator) -> list[float]:
    """Rows of the busiest expert over the mean in so many draws.

    Experts of a token differ: of their loads, those of a draw with repetition deviate by sqrt((E - 1) / (E - k)) more.
    """
    loads = dice.multinomial(_TOKENS * top_k, np.full(experts, 1 / experts), size=_DRAWS)
    excess = loads.max(axis=1) / (_TOKENS * top_k / experts) - 1
    return [1 + float(one) * ((experts - top_k) / (experts - 1)) ** 0.5 for one in excess]


def statistics(kind: _Kind, skews: Sequence[float], tokens: int, *, measured: bool, source: str) -> LoadStatistics:
    """Of some skews."""
    low, skew, high = (round(float(q), 4) for q in np.quantile(skews, (0.05, 0.5, 0.95)))
    return LoadStatistics(
        experts=kind[0],
        top_k=kind[1],
        state=kind[2],
        skew=skew,
        low=low,
        high=min(high, kind[0] / kind[1]),
        count=len(skews),
        tokens=tokens,
        measured=measured,
        source=source,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--write", action="store_true", help="into model/presets/routing")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    files = {"runs": of_runs(given.runs)} if given.runs else _shipped()
    if given.write and not given.runs:
        for name, file in files.items():
            (PRIORS / f"{name}.json").write_text(_text(file), encoding="utf-8")
    print("\n".join(map(_text, files.values())) if given.json else "\n".join(_lines(files)))


def _shipped() -> dict[str, RoutingStatistics]:
    return {"random-weights": random_weights(), "even-chance": even_chance()}


def _text(file: RoutingStatistics) -> str:
    data: dict[str, Any] = file.model_dump()
    return json.dumps(data, indent=1) + "\n"


def _lines(files: dict[str, RoutingStatistics]) -> Iterator[str]:
    for name, file in files.items():
        for one in file.loads:
            yield f"{name}: top {one.top_k} of {one.experts}, {one.state}: {one.skew:g} ({one.low:g} to {one.high:g})"


if __name__ == "__main__":
    main()
