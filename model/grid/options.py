"""What a plan does of an hour at each of its clocks: share of the run, and power at the meter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moemodel.model.core.errors import CalibrationError, InfeasiblePlanError, InputError
from moemodel.model.grid.optimum import Machine
from moemodel.model.plan.failures import CHECKPOINT_S, RESTART_S
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import RunTotals, outcome
from moemodel.model.search.candidates import measured_clocks_MHz
from moemodel.model.step.idle_power import idle_power_W
from moemodel.model.step.system import system_of

_SHORTEST_H = 1 / 60  # assumed: what is over sooner has nothing to wait for

Clocks = Literal["measured", "plan"] | Sequence[float]
WhenOff = Literal["kept", "released"]


@dataclass(frozen=True, kw_only=True)
class ClockOption:
    """A plan at one clock.

    Attributes:
        name: what it is called.
        clock_MHz: that is held; None: the governor's, or several, of a plan with clocks by stage or phase.
        is_own: it is the plan as it is written.
        run: the whole run at it, without a pause.
    """

    name: str
    clock_MHz: float | None
    is_own: bool
    run: RunTotals

    @property
    def hours(self) -> float:
        """Of the whole run; with its failures, where the plan states them."""
        return self.run.hours.value

    @property
    def power_kW(self) -> float:
        """Mean, at the meter."""
        return self.run.energy_kWh.value / self.hours

    @property
    def slow_ratio(self) -> float:
        """How much longer the upper end of the interval is."""
        return (self.run.hours.high or self.hours) / self.hours


@dataclass(frozen=True, kw_only=True)
class PausedRun:
    """A run that can be paused.

    Attributes:
        plan: as it is written.
        clocks: what it may run at, the plan as it is written first.
        idle_W: of one GPU that keeps the job's memory and does nothing.
        start_s, checkpoint_s: from a pause until it trains; writing a checkpoint.
        when_off: what is done with GPUs and hosts in a pause.
        notes: where these figures come from.
    """

    plan: Plan
    clocks: tuple[ClockOption, ...]
    idle_W: float
    start_s: float
    checkpoint_s: float
    when_off: WhenOff
    notes: tuple[str, ...]

    @property
    def standing_kW(self) -> float:
        """At the meter, of all GPUs and hosts that do nothing."""
        site, gpus = self.plan.site, self.plan.cluster.gpus
        return gpus * (self.idle_W + site.host_power_W) * site.pue / 1e3

    @property
    def off_kW(self) -> float:
        """At the meter, in a pause."""
        return self.standing_kW if self.when_off == "kept" else 0.0

    @property
    def hourly_cost(self) -> float:
        """Of the GPUs, in the site's currency; 0 where they have no price."""
        return self.plan.cluster.gpus * (self.plan.site.gpu_hour_price or 0.0)

    def machine(self, *, hourly_cost: float) -> Machine:
        """What the optimisation knows of it."""
        return Machine(
            share_per_h=np.array([1 / option.hours for option in self.clocks]),
            power_kW=np.array([option.power_kW for option in self.clocks]),
            standing_kW=self.standing_kW,
            off_kW=self.off_kW,
            is_held=self.when_off == "kept",
            hourly_cost=hourly_cost,
            start_h=self.start_s / 3600,
            write_h=self.checkpoint_s / 3600,
        )


def paused_run(
    plan: Plan,
    calibration: Calibration,
    *,
    clocks: Clocks = "measured",
    when_off: WhenOff = "kept",
    start_s: float | None = None,
    checkpoint_s: float | None = None,
) -> PausedRun:
    """A plan at each of its clocks, and what a pause of it takes.

    Args:
        plan: a checked plan with `tokens`.
        calibration: of its GPU.
        clocks: "measured": the plan's own, and ten over the range that was measured; "plan": its own alone; or MHz.
        when_off: "kept": GPUs and hosts idle, and are paid for; "released": others have them.
        start_s, checkpoint_s: None: as the plan's `failures` say, else assumed.

    Raises:
        InputError: the plan has no tokens, or a clock is none of the GPU's.
        InfeasiblePlanError: it does not fit in memory.
        CalibrationError: no power was measured.
    """
    if plan.tokens is None:
        raise InputError("tokens: found none; a schedule is of a whole run: say how many tokens it trains on")
    options = tuple(_options(plan, calibration, clocks))
    stated = plan.failures
    start = start_s if start_s is not None else RESTART_S if stated is None else stated.restart_s
    write = checkpoint_s if checkpoint_s is not None else CHECKPOINT_S if stated is None else stated.checkpoint_s
    machine = system_of(plan, calibration)
    idle_W = idle_power_W(machine)
    measured = machine.gpu.idle_power_W is not None
    assumed = [
        name
        for name, given in (("a start", start_s), ("a checkpoint", checkpoint_s))
        if given is None and stated is None
    ]
    notes = [
        f"A pause costs a checkpoint of {write:g} s before it and a start of {start:g} s after it"
        f"{', both assumed' if len(assumed) > 1 else f', {assumed[0]} assumed' if assumed else ''}; so do the end and "
        f"the beginning. Meanwhile, a GPU draws {idle_W:.0f} W ("
        f"{'measured idle' if measured else 'idle, by the calibration'}), and its host "
        f"{plan.site.host_power_W:g} W (site.host_power_W).",
        "GPUs and hosts are kept from the start on: paused, and before the first start, they idle and are paid for."
        if when_off == "kept"
        else "Paused, GPUs and hosts are released: they draw and cost nothing here. That they are there again when the "
        "run goes on is assumed.",
    ]
    return PausedRun(
        plan=plan,
        clocks=options,
        idle_W=idle_W,
        start_s=start,
        checkpoint_s=write,
        when_off=when_off,
        notes=tuple(notes),
    )


def _options(plan: Plan, calibration: Calibration, clocks: Clocks) -> Iterator[ClockOption]:
    own = outcome(plan, calibration)
    if own.run is None or calibration.power.points == 0:
        raise CalibrationError(
            f"calibration {calibration.name}: no power was measured, so there is no energy to schedule"
        )
    if own.run.hours.value < _SHORTEST_H:
        raise InputError(
            f"tokens: found {plan.tokens:g}, a run of {own.run.hours.value * 3600:.3g} s; allowed: a minute or longer"
        )
    one = plan.clock_MHz if isinstance(plan.clock_MHz, float | int) else None
    name = "governor" if plan.clock_MHz is None else "the plan's clocks" if one is None else f"{one:g} MHz"
    yield ClockOption(name=name, clock_MHz=one, is_own=True, run=own.run)
    gpu = system_of(plan, calibration).gpu
    asked = () if clocks == "plan" else measured_clocks_MHz(gpu, calibration) if clocks == "measured" else clocks
    for clock_MHz in asked:
        if isinstance(clock_MHz, str):
            raise InputError(f"clocks: found {clock_MHz!r}; allowed: measured, plan, or clocks in MHz")
        if clock_MHz != plan.clock_MHz:
            run = _at_clock(plan, calibration, float(clock_MHz))
            yield ClockOption(name=f"{clock_MHz:g} MHz", clock_MHz=float(clock_MHz), is_own=False, run=run)


def _at_clock(plan: Plan, calibration: Calibration, clock_MHz: float) -> RunTotals:
    found = outcome(plan.model_copy(update={"clock_MHz": clock_MHz}), calibration).run
    if found is None:
        raise InfeasiblePlanError(f"clock_MHz {clock_MHz:g}: nothing is known of the run")
    return found
