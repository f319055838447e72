"""What a run does, one thing after another, each priced by itself; and sums over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np

from moemodel.model.grid.hours import Hours
from moemodel.model.grid.optimum import Optimum
from moemodel.model.grid.options import PausedRun

Does = Literal["start", "train", "checkpoint", "wait", "off"]

_SHORT_H = 1e-5  # 36 ms: less is rounding


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of time in which one thing is done.

    Attributes:
        begins, ends: UTC.
        hour: place among the hours.
        does: "train"; "start" and "checkpoint", in which it makes no progress; "wait": paused, and kept; "off".
        clock: place among the run's clocks; None: it does not train.
        hours: that it lasts.
        share: of the run that is done in it.
        energy_kWh: at the meter.
        emissions_kg: CO2-equivalent.
        cost: of energy and GPUs; None: unknown.
    """

    begins: datetime
    ends: datetime
    hour: int
    does: Does
    clock: int | None
    hours: float
    share: float
    energy_kWh: float
    emissions_kg: float
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Of a whole run.

    Attributes:
        energy_kWh: at the meter; `emissions_kg`, `cost` (None: unknown) of it.
        training_h, standing_h, waiting_h: training, starts and checkpoints, paused with GPUs kept.
        pauses: between its first start and its end.
        begins, ends: of all of it.
    """

    energy_kWh: float
    emissions_kg: float
    cost: float | None
    training_h: float
    standing_h: float
    waiting_h: float
    pauses: int
    begins: datetime
    ends: datetime

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Totals:
        """Sums over segments."""
        lasts = {does: sum(s.hours for s in segments if s.does == does) for does in ("train", "wait")}
        on = [s for s in segments if s.does in ("start", "train", "checkpoint")]
        costs = [s.cost for s in segments if s.cost is not None]
        return cls(
            energy_kWh=sum(s.energy_kWh for s in segments),
            emissions_kg=sum(s.emissions_kg for s in segments),
            cost=sum(costs) if len(costs) == len(segments) else None,
            training_h=lasts["train"],
            standing_h=sum(s.hours for s in on) - lasts["train"],
            waiting_h=lasts["wait"],
            pauses=len(stretches_of(segments)) - 1,
            begins=on[0].begins,
            ends=on[-1].ends,
        )

    def to_json(self) -> dict[str, Any]:
        """Units in the names."""
        values = asdict(self) | {"begins": self.begins.isoformat(), "ends": self.ends.isoformat()}
        return {("emissions_kgCO2eq" if name == "emissions_kg" else name): value for name, value in values.items()}


class Pricing:
    """Makes segments, with what each takes."""

    def __init__(self, run: PausedRun, hours: Hours) -> None:
        self.run, self.hours = run, hours

    def segment(self, hour: int, begins: datetime, lasts_h: float, does: Does, clock: int | None) -> Segment:
        """One, within an hour."""
        run = self.run
        power = {"start": run.standing_kW, "checkpoint": run.standing_kW, "wait": run.off_kW, "off": 0.0}
        energy = lasts_h * (power[does] if clock is None else run.clocks[clock].power_kW)
        price = self.hours.price
        paid = 0.0 if does == "off" else lasts_h * run.hourly_cost
        unknown = price is None and not run.plan.site.gpu_hour_price
        return Segment(
            begins=begins,
            ends=begins + timedelta(hours=lasts_h),
            hour=hour,
            does=does,
            clock=clock,
            hours=lasts_h,
            share=0.0 if clock is None else lasts_h / run.clocks[clock].hours,
            energy_kWh=energy,
            emissions_kg=energy * float(self.hours.carbon[hour]),
            cost=None if unknown else paid + (0.0 if price is None else energy * float(price[hour])),
        )

    def _needs(self, clock: int) -> list[tuple[Does, int | None, float]]:
        run = self.run
        return [
            ("start", None, run.start_s / 3600),
            ("train", clock, run.clocks[clock].hours),
            ("checkpoint", None, run.checkpoint_s / 3600),
        ]

    def fits_at_once(self, clock: int) -> bool:
        """Whether it ends in time at a clock, without a pause."""
        return sum(need for _, _, need in self._needs(clock)) <= float(self.hours.hours.sum()) + _SHORT_H

    def at_once(self, clock: int) -> Iterator[Segment]:
        """From the start on, without a pause."""
        hour, spent = 0, 0.0
        for does, of, need in self._needs(clock):
            left = need
            while left > _SHORT_H and hour < len(self.hours.begins):
                room = float(self.hours.hours[hour]) - spent
                part = min(left, room)
                yield self.segment(hour, self.hours.begins[hour] + timedelta(hours=spent), part, does, of)
                left, spent = left - part, spent + part
                if spent >= float(self.hours.hours[hour]) - _SHORT_H:
                    hour, spent = hour + 1, 0.0


def of_optimum(found: Optimum, pricing: Pricing) -> Iterator[Segment]:
    """What an optimum does, in order; the fastest clock first within an hour."""
    hours, run = pricing.hours, pricing.run
    fastest_first = sorted(range(len(run.clocks)), key=lambda k: run.clocks[k].hours)
    last = int(np.flatnonzero(found.runs)[-1])
    kept = run.when_off == "kept"
    for t, begins in enumerate(hours.begins):
        parts: list[tuple[Does, int | None, float]] = []
        paused: Does = "wait" if kept and t < last else "off"
        if not found.runs[t]:
            parts.append((paused, None, float(hours.hours[t])))
        else:
            idle_h, waits_first = float(found.idle_h[t]), bool(found.starts[t])
            paused = "wait" if kept else "off"
            parts.append((paused, None, idle_h if waits_first else 0.0))
            parts.append(("start", None, float(found.begin_h[t])))
            parts += [("train", k, float(found.at_clock_h[t, k])) for k in fastest_first]
            parts.append(("checkpoint", None, float(found.write_h[t])))
            parts.append((paused, None, 0.0 if waits_first else idle_h))
            parts.append(("off", None, float(found.after_h[t])))
        spent = 0.0
        for does, clock, lasts in parts:
            if lasts > _SHORT_H:
                yield pricing.segment(t, begins + timedelta(hours=spent), lasts, does, clock)
                spent += lasts


def stretches_of(segments: Sequence[Segment]) -> list[tuple[Segment, ...]]:
    """What is done without a pause."""
    found: list[list[Segment]] = [[]]
    for segment in segments:
        if segment.does in ("start", "train", "checkpoint"):
            found[-1].append(segment)
        elif found[-1]:
            found.append([])
    return [tuple(each) for each in found if each]
