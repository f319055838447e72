"""Priors of how unevenly routers load experts: what was measured, and what is the least there can be.

    python bench/routing_priors.py [--write] [--json] [RUN ...]
    python bench/routing_priors.py --keep FOLDER RUN ...

Each prior is of routers of so many experts, of which a token gets so many, in one state. Without arguments it makes
those that ship (`--write`: into model/presets/routing):

    random-weights.json   this project's own validations and iterations from random weights on made-up tokens, without a
                          balancing loss: the mean skew of a run, of its layers and steps (`bench/measured`)
    real-text.json        small models that learn real text (`bench/plans/routing-priors`), with and without balancing:
                          the first ten steps are `initial`, the last tenth `trained`; every layer and step is a skew
                          (`bench/measured/routing-priors`; no such file as long as there are none)
    even-chance.json      nothing measured: every token chooses its experts by even chance (a multinomial draw);
                          but for routers that a rule balances, none is more even

RUN: folders of `moemodel run`, whose routers' counts make a file of the same kind as real-text.json on standard output
(`--json`). `--keep` writes what is kept of each of them, a few kB (`kept_routing.py`), into a folder such as
bench/measured/routing-priors.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from kept_routing import KeptRouting, keep, read_kept, write_kept

from moemodel.model.architecture.spec import Moe
from moemodel.model.core.errors import MoeModelError
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.records.routing_statistics import (
    PRIORS,
    STATES,
    Balancing,
    LoadStatistics,
    RoutingStatistics,
    State,
)

_MEASURED = Path(__file__).resolve().parent / "measured"
_KEPT = _MEASURED / "routing-priors"
_SIZES = tuple((experts, top_k) for experts in (8, 16, 64, 128) for top_k in (1, 2, 8) if top_k < experts)
_TOKENS, _DRAWS = 8192, 400
_Kind = tuple[int, int, State]


def kind_of(plan: Plan) -> tuple[int, int, int] | None:
    """Experts of a layer and of a token, and the model's width; None: the plan's model has no experts."""
    architecture = architecture_of(plan)
    blocks = [layer.feed_forward for layer in architecture.layers if isinstance(layer.feed_forward, Moe)]
    return (blocks[0].experts, blocks[0].top_k, architecture.hidden) if blocks else None


# ---- measured -------------------------------------------------------------------------------------------------------


def measured_runs() -> Iterator[tuple[str, float]]:
    """The plan of each run of this project that counted its experts' loads, and its mean skew."""
    import pyarrow.parquet as pq  # here: what is kept of runs is written where they were run, maybe without it

    for path in sorted(_MEASURED.glob("*/iterations.parquet")):
        rows = pq.read_table(path, columns=["plan_yaml", "rank", "expert_skew"]).to_pylist()
        yield from ((row["plan_yaml"], row["expert_skew"]) for row in rows if row["expert_skew"] and row["rank"] == 0)
    for path in sorted(_MEASURED.glob("validation*/*.json")):
        plans = json.loads(path.read_text(encoding="utf-8"))["plans"]
        yield from ((plan["plan_yaml"], plan["expert_skew"]) for plan in plans if plan.get("expert_skew"))


def random_weights() -> RoutingStatistics:
    """Of `bench/measured`."""
    found: dict[tuple[int, int], list[tuple[float, int, int]]] = defaultdict(list)
    for text, skew in measured_runs():
        plan = Plan.model_validate(yaml.safe_load(text))
        kind = kind_of(plan)
        if kind is not None:
            tokens = plan.micro_batch * plan.parallel.dp * plan.sequence_length
            found[kind[:2]].append((skew, tokens, kind[2]))
    source = "bench/measured: random weights, made-up tokens, no balancing loss; a skew is a run's mean"
    loads = [
        statistics(
            (*size, "initial"),
            [skew for skew, _, _ in runs],
            int(np.median([tokens for _, tokens, _ in runs])),
            measured=True,
            source=source,
            balancing="none",
            hidden=int(np.median([hidden for _, _, hidden in runs])),
        )
        for size, runs in sorted(found.items())
    ]
    return RoutingStatistics(name="random weights", loads=loads)


def of_kept(kept: Iterable[KeptRouting], name: str) -> RoutingStatistics | None:
    """Of runs, alike ones together; None without any."""
    groups: dict[tuple[int, int, Balancing], list[KeptRouting]] = defaultdict(list)
    for run in kept:
        groups[run.experts, run.top_k, run.balancing].append(run)
    loads = [_of_group(runs, state) for _, runs in sorted(groups.items()) for state in STATES]
    known = [one for one in loads if one is not None]
    return RoutingStatistics(name=name, loads=known) if known else None


def _of_group(runs: Sequence[KeptRouting], state: State) -> LoadStatistics | None:
    first = runs[0]
    skews = [skew for run in runs for layer in getattr(run, f"{state}_LS") for skew in layer]
    if not skews:
        return None
    return statistics(
        (first.experts, first.top_k, state),
        skews,
        int(np.median([run.tokens for run in runs])),
        measured=True,
        source=_source(runs, state),
        balancing=first.balancing,
        hidden=int(np.median([run.hidden for run in runs])),
    )


def _source(runs: Sequence[KeptRouting], state: State) -> str:
    first = runs[0]
    text = first.data.get("source", "unknown data")
    data = "Python's documentation" if text == "corpus" else "made-up tokens" if text == "synthetic" else text
    rule = {
        "none": "no balancing",
        "loss": f"a balancing loss of coefficient {first.balance_loss:g}",
        "bias": f"biases that move by {first.bias_rate:g}",
    }[first.balancing]
    number = "one training run" if len(runs) == 1 else f"{len(runs)} training runs"
    steps = f"first {len(first.initial_LS[0])}" if state == "initial" else f"last {len(first.trained_LS[0])}"
    return (
        f"{number} of {len(first.initial_LS)} layers of width {first.hidden}, on {data}, with {rule}; "
        f"a skew is of one layer in one of the {steps} of {first.steps} steps"
    )


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


def statistics(
    kind: _Kind,
    skews: Sequence[float],
    tokens: int,
    *,
    measured: bool,
    source: str,
    balancing: Balancing | None = None,
    hidden: int | None = None,
) -> LoadStatistics:
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
        balancing=balancing,
        hidden=hidden,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--write", action="store_true", help="into model/presets/routing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="of what is kept of the runs")
    given = parser.parse_args(arguments)
    if given.keep is not None:
        _keep(given.runs, given.keep)
        return
    files = _of_runs(given.runs) if given.runs else _shipped()
    if given.write and not given.runs:
        for name, file in files.items():
            (PRIORS / f"{name}.json").write_text(_text(file), encoding="utf-8")
    print("\n".join(map(_text, files.values())) if given.json else "\n".join(_lines(files)))


def _keep(folders: Sequence[Path], to: Path) -> None:
    """Of runs that are done; the others are named and left out."""
    for folder in folders:
        try:
            print(write_kept(keep(folder), to))
        except MoeModelError as error:
            print(f"left out: {error}")


def _of_runs(folders: Sequence[Path]) -> dict[str, RoutingStatistics]:
    found = of_kept([keep(folder) for folder in folders], "runs")
    return {} if found is None else {"runs": found}


def measured_files() -> dict[str, RoutingStatistics]:
    """Those that ship and are of what was measured."""
    real_text = of_kept(read_kept(_KEPT), "real text")
    return {"random-weights": random_weights()} | ({} if real_text is None else {"real-text": real_text})


def _shipped() -> dict[str, RoutingStatistics]:
    return measured_files() | {"even-chance": even_chance()}


def _text(file: RoutingStatistics) -> str:
    data: dict[str, Any] = file.model_dump(exclude_none=True)
    return json.dumps(data, indent=1) + "\n"


def _lines(files: dict[str, RoutingStatistics]) -> Iterator[str]:
    for name, file in files.items():
        for one in file.loads:
            rule = "" if one.balancing in (None, "none") else f", balanced by {one.balancing}"
            skews = f"{one.skew:g} ({one.low:g} to {one.high:g})"
            yield f"{name}: top {one.top_k} of {one.experts}, {one.state}{rule}: {skews}"


if __name__ == "__main__":
    main()
