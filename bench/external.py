"""The model against training runs that others published, each data set in one line.

    python bench/external.py [--json] [--only NAME ...] [--skip-a100] [--rows] [--data FOLDER]

Four errors of step time, means over rows of |predicted/measured - 1|:

    zero-shot   the calibration of this project's H100 (A100: none) and what the source says of chip, plan and software
    fitted      the few constants named, fitted to all rows of the set
    left out    each row by constants fitted without its whole group (model, or number of nodes); A100: mean over five
                ways to leave out groups; MLPerf: by the constants of Megatron-Bridge's dense rows, none of MLPerf's
    published   what the best predictor that names its error reached on these rows
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moemodel.calibration.published.data import ITERATIONS, read_rows
from moemodel.calibration.published.vtrain import FREE, StepFitter, groups, predicted_s
from moemodel.model.core.arrays import FloatArray
from studies.a100 import COUNTED, cluster_of, errors, left_out
from studies.runs import Predictor, Study, bridge, fsdp, gh200, mlperf

_DATA = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Mean absolute relative errors of one quantity."""

    zero_shot: float
    fitted: float
    left_out: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """One data set.

    Attributes:
        name: in the table.
        rows: predicted.
        time, memory: errors.
        device_bound: rows that the host does not bind, and the zero-shot error of their time; None: nobody can tell.
        constants: fitted to step times of all rows, by name.
        published: what others reached.
        groups: of each group left out, rows, zero-shot and left-out error, and the latter's mean with its sign.
        lines: one for each row.
        excluded: rows that aren't predicted, by reason.
    """

    name: str
    rows: int
    time: Errors
    memory: Errors | None = None
    device_bound: tuple[int, float] | None = None
    constants: dict[str, float]
    published: str
    groups: list[tuple[str, int, float, float, float]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    excluded: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, object]:
        """What the JSON holds."""
        figures: dict[str, object] = {
            "time_mape": self.time.left_out,
            "rows": self.rows,
            "time_mape_zero_shot": self.time.zero_shot,
            "time_mape_fitted": self.time.fitted,
            "constants": self.constants,
            "excluded": self.excluded,
        }
        if self.device_bound is not None:
            figures["rows_device_bound"], figures["time_mape_zero_shot_device_bound"] = self.device_bound
        if self.memory:
            figures["memory_mape"] = self.memory.left_out
            figures["memory_mape_zero_shot"] = self.memory.zero_shot
        return figures


def mape(ratio: FloatArray) -> float:
    """Mean absolute relative error of predicted over measured."""
    return float(np.abs(ratio - 1).mean())


def a100(folder: Path) -> Result:
    """As `a100_iteration_times.py` does it; without a fit there is no calibration of those A100 to start from."""
    rows, cluster = read_rows(folder / ITERATIONS), cluster_of(folder)
    batches = groups(rows)
    fitter = StepFitter(time_s=lambda c: predicted_s(batches, cluster.machine(c)), measured_s=rows.time_s)
    start = {name: free.start for name, free in FREE.items()}
    constants = fitter.fit()
    by_factor = {name: float(errors(left_out(fitter, rows.column(name))).mean()) for name in COUNTED}
    return Result(
        name="A100 one node (vTrain)",
        rows=len(rows),
        time=Errors(
            zero_shot=mape(fitter.time_s(start) / rows.time_s),
            fitted=mape(fitter.time_s(constants) / rows.time_s),
            left_out=float(np.mean(list(by_factor.values()))),
        ),
        constants=constants,
        published="vTrain 8.4 %, Calculon 38.9 %",
        groups=[(f"by {name}", len(rows), np.nan, error, np.nan) for name, error in by_factor.items()],
    )


def result(study: Study, published: str, other: Study | None = None) -> Result:
    """Errors of a study; with `other`, left-out predictions are those of constants fitted to that one alone."""
    predictor = Predictor(study)
    everything = np.ones(len(study.rows), dtype=bool)
    zero = predictor.predicted({name: c.start for name, c in study.constants.items()})[0] / predictor.time_s
    constants = predictor.fit(everything)
    fitted = predictor.predicted(constants)[0] / predictor.time_s
    if other is None:
        away = predictor.left_out()
    else:
        elsewhere = Predictor(other).fit(np.ones(len(other.rows), dtype=bool))
        away = predictor.predicted(elsewhere)[0] / predictor.time_s
    free = np.array([not row.host_bound for row in study.rows])
    return Result(
        name=study.name,
        rows=len(study.rows),
        device_bound=None if free.all() else (int(free.sum()), mape(zero[free])),
        time=Errors(zero_shot=mape(zero), fitted=mape(fitted), left_out=mape(away)),
        memory=_memory(predictor) if study.memory_constants else None,
        constants=constants,
        published=published,
        groups=[
            (group, int(of.sum()), mape(zero[of]), mape(away[of]), float((away[of] - 1).mean()))
            for group in dict.fromkeys(predictor.groups.tolist())
            if (of := predictor.groups == group).any()
        ],
        lines=[
            f"  {row.label:40} {row.time_s:9.4g} s {z - 1:+8.1%} {a - 1:+8.1%}"
            for row, z, a in zip(study.rows, zero, away, strict=True)
        ],
        excluded=dict(study.left_out),
    )


def _memory(predictor: Predictor) -> Errors:
    start = {name: c.start for name, c in predictor.study.memory_constants.items()}
    fitted = predictor.fit(np.ones(len(predictor.memory_B), dtype=bool), memory=True)
    return Errors(
        zero_shot=mape(predictor.predicted(start)[1] / predictor.memory_B),
        fitted=mape(predictor.predicted(fitted)[1] / predictor.memory_B),
        left_out=mape(predictor.left_out(memory=True)),
    )


MADE: dict[str, Callable[[Path], Study]] = {
    "gh200": gh200,
    "fsdp": fsdp,
    "dense": lambda folder: bridge(folder, experts=False),
    "experts": lambda folder: bridge(folder, experts=True),
    "mlperf": mlperf,
}
STUDIES: dict[str, Callable[[Path], Result]] = {
    "a100": a100,
    "gh200": lambda folder: result(MADE["gh200"](folder), "Sailor 8.9 % (memory 5.9 %)"),
    "fsdp": lambda folder: result(MADE["fsdp"](folder), "none"),
    "dense": lambda folder: result(MADE["dense"](folder), "none"),
    "experts": lambda folder: result(MADE["experts"](folder), "none"),
    "mlperf": lambda folder: result(MADE["mlperf"](folder), "none", MADE["dense"](folder)),
}


def table(results: list[Result]) -> str:
    """All data sets, then the groups of each."""
    lines = [f"{'step time':34} {'rows':>5} {'zero-shot':>10} {'fitted':>8} {'left out':>9}  published"]
    lines += [_line(r.name, r.rows, r.time, r.published) for r in results]
    lines += ["", "memory"]
    lines += [_line(r.name, r.rows, r.memory, r.published) for r in results if r.memory]
    for r in results:
        lines += ["", f"{r.name}: constants " + ", ".join(f"{name} {value:.3g}" for name, value in r.constants.items())]
        lines += _device_bound(r)
        if r.excluded:
            lines.append("  not predicted: " + ", ".join(f"{count} {reason}" for reason, count in r.excluded.items()))
        lines += [
            f"  {name:32} {rows:5} {zero:10.1%} {'':8} {away:9.1%}  mean {signed:+.1%}"
            for name, rows, zero, away, signed in r.groups
        ]
    return "\n".join(lines).replace("nan%", "-").replace("mean +-", "")


def _device_bound(r: Result) -> list[str]:
    if r.device_bound is None:
        return []
    rows, error = r.device_bound
    return [f"  of them not bound by the host: {rows} rows, zero-shot {error:.1%}"]


def _line(name: str, rows: int, e: Errors, published: str) -> str:
    return f"{name:34} {rows:5} {e.zero_shot:10.1%} {e.fitted:8.1%} {e.left_out:9.1%}  {published}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), help="these data sets alone")
    parser.add_argument("--skip-a100", action="store_true", help="all but the slowest data set")
    parser.add_argument("--rows", action="store_true", help="print every row as well")
    parser.add_argument("--data", type=Path, default=_DATA, help="folder of published data")
    options = parser.parse_args()
    if not options.data.is_dir():
        skipped = f"skipped: {options.data} is not there"
        print(json.dumps({"skipped": skipped}) if options.json else skipped)
        return
    names = [name for name in options.only or STUDIES if not (options.skip_a100 and name == "a100")]
    results = {name: STUDIES[name](options.data) for name in names}
    if options.json:
        print(json.dumps({name: r.figures() for name, r in results.items()}))
        return
    print(table(list(results.values())))
    if options.rows:
        for r in results.values():
            print(f"\n{r.name}: measured, zero-shot, left out")
            print("\n".join(r.lines))


if __name__ == "__main__":
    main()
