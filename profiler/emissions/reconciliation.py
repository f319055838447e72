"""CodeCarbon's readings against the energy counter's: session, every step, every phase; and which of them to trust.

Both read the same counter, CodeCarbon at the instants of its calls, the meter at the counter's ticks. So they agree but
for what happens in between, and what is left is a fault:

    session      within `Shares.session` (5 %), plus a tick at each end
    one step     within `Shares.step` of the step, plus one tick's energy: CodeCarbon sees whole ticks only. A step
                 shorter than a tick reads zero or a tick; that is no fault, and no measurement either
    all steps    within `Shares.total`, plus 3 sqrt(n/6) ticks: the ends of n steps fall anywhere between two ticks, so
                 each step is wrong by the difference of two even chances, of variance 1/6 of a tick squared
    a phase      likewise over its calls, plus twice the attribution's standard error

The meter interpolates the counter between ticks (steps), or solves for the power of phases; where the counter itself
failed (ran backwards, stuck), neither is right, and the power readings are what is left. Where there is no counter at
all, both have power readings, and are compared likewise; on a superchip CodeCarbon's counter has the CPU in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from moemodel.profiler.emissions.records import CarbonReading, CarbonSummary
from moemodel.profiler.meter.device_meter import FinishedStep
from moemodel.profiler.meter.summary import Summary

TICK_S = 0.1  # of NVML's energy counter (H100, measured for this project, 2026)
METER = "the energy counter"
PHASE_METER = "the meter's power of phases"
BOTH = "both"
CODECARBON = "CodeCarbon"
POWER = "the power readings"
NEITHER = "neither"

# What a note of the meter says of a counter that failed (`attribution.check_counter`, `device_meter`).
_FAULTS = ("ran backwards", "jumped", "did not change", "did not answer", "never changed", "nothing read")
_KEPT_STEPS = 2000  # in the table of steps; counts cover all
_SHOWN = 5  # steps that a warning names


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Disagreement that is still agreement, as a share of the energy; what ticks explain comes on top."""

    session: float = 0.05  # assumed, as are those below (docs/meter.md has them)
    step: float = 0.10
    total: float = 0.05
    phase: float = 0.10


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something to know.

    Attributes:
        level: "error": a reading is wrong; "warning": they disagree; "info": as it has to be.
        subject: "session", "steps", or a phase's name.
        trust: whose figure to use.
        text: what was found, and why that one.
    """

    level: Literal["error", "warning", "info"]
    subject: str
    trust: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A line of the table.

    Attributes:
        subject: as in `Finding`.
        readings: of CodeCarbon that were added up.
        duration_s: they cover.
        codecarbon_J, counter_J: energy of the device, without the PUE; None where nothing says it.
        difference_share: CodeCarbon's less the counter's, of the counter's.
        allowed_share: that the difference may be.
        trust: whose figure to use.
    """

    subject: str
    readings: int
    duration_s: float
    codecarbon_J: float
    counter_J: float | None
    difference_share: float | None
    allowed_share: float | None
    trust: str


@dataclass(frozen=True, kw_only=True)
class StepComparison:
    """One step; `allowed_J` is how far apart the two may be."""

    step: int
    time_s: float
    codecarbon_J: float
    counter_J: float
    allowed_J: float

    @property
    def agrees(self) -> bool:
        """Whether they are no further apart than that."""
        return abs(self.codecarbon_J - self.counter_J) <= self.allowed_J


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """What came of it.

    Attributes:
        comparisons: session, steps, phases.
        findings: the gravest first.
        steps: the last 2,000.
        steps_compared, steps_zero, steps_apart: how many had both readings; of these, how many CodeCarbon read as
            zero, and how many are further apart than ticks explain.
        overhead_share_of_time: level -> share of the session's time spent inside CodeCarbon's calls.
        compared_with: what `counter_J` is of: the energy counter, or without one the power readings.
    """

    comparisons: tuple[Comparison, ...]
    findings: tuple[Finding, ...]
    steps: tuple[StepComparison, ...]
    steps_compared: int
    steps_zero: int
    steps_apart: int
    overhead_share_of_time: Mapping[str, float]
    compared_with: str = METER

    @property
    def agrees(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(finding.level == "info" for finding in self.findings)

    def to_json(self) -> str:
        """Names carry units; unknown figures are null."""
        return json.dumps({"agrees": self.agrees, **asdict(self)}, indent=2, allow_nan=False)

    def to_text(self) -> str:
        """A table and the findings."""
        with_ = "power, J" if self.compared_with == POWER else "counter, J"
        head = f"{'':24} {'readings':>8} {'time, s':>9} {'CodeCarbon, J':>14} {with_:>12}"
        head += f" {'apart':>8} {'may be':>7}  trust"
        lines = [head, *(_line(row) for row in self.comparisons), ""]
        lines += [f"{f.level}: {f.subject}: {f.text}" for f in self.findings] or ["they agree"]
        shares = ", ".join(f"{name} {share:.2%}" for name, share in self.overhead_share_of_time.items())
        return "\n".join([*lines, "", f"time inside CodeCarbon's calls, of the session: {shares}"])

    def __str__(self) -> str:
        return self.to_text()


def reconcile(
    carbon: CarbonSummary,
    readings: Mapping[str, Sequence[CarbonReading]],
    meter: Summary,
    counted: Iterable[FinishedStep],
    *,
    shares: Shares | None = None,
    tick_s: float = TICK_S,
) -> Reconciliation:
    """Compare a session of CodeCarbon's with the meter's of the same time.

    Args:
        carbon, readings: of `codecarbon.CodeCarbonLevels`.
        meter: its summary.
        counted: steps as the meter read them, of every device.
        shares: disagreement to allow.
        tick_s: of the energy counter.
    """
    case = _Case(carbon, readings, meter, shares or Shares(), tick_s)
    case.faults()
    case.session()
    case.steps(counted)
    case.phases()
    return case.result()


class _Case:
    """Comparisons and findings, as they are made."""

    def __init__(
        self,
        carbon: CarbonSummary,
        readings: Mapping[str, Sequence[CarbonReading]],
        meter: Summary,
        shares: Shares,
        tick_s: float,
    ) -> None:
        self._carbon, self._readings, self._meter = carbon, readings, meter
        self._shares, self._tick_s = shares, tick_s
        self._on_cpu = all(device.device == "cpu" for device in meter.devices)
        self._rows: list[Comparison] = []
        self._findings: list[Finding] = []
        self._steps: list[StepComparison] = []
        sources = {device.energy_source for device in meter.devices}
        self._counter = sources == {"counter"}
        self._superchip = any("superchip" in note for device in meter.devices for note in device.notes)
        powers_W = [device.power_W for device in meter.devices]
        self._power_W = None if None in powers_W or not powers_W else sum(power for power in powers_W if power)

    def result(self) -> Reconciliation:
        gravity = {"error": 0, "warning": 1, "info": 2}
        return Reconciliation(
            comparisons=tuple(self._rows),
            findings=tuple(sorted(self._findings, key=lambda finding: gravity[finding.level])),
            steps=tuple(self._steps[-_KEPT_STEPS:]),
            steps_compared=len(self._steps),
            steps_zero=sum(step.codecarbon_J == 0 for step in self._steps),
            steps_apart=sum(not step.agrees for step in self._steps),
            compared_with=POWER if not self._counter and self._power_W is not None else METER,
            overhead_share_of_time={name: level.share_of_time for name, level in self._carbon.levels.items()},
        )

    # --- faults of the counter itself ---

    def faults(self) -> None:
        """What the meter and CodeCarbon said of the counter by themselves."""
        notes = [
            note
            for device in self._meter.devices
            for note in device.notes
            if "energy counter" in note and any(fault in note for fault in _FAULTS)
        ]
        said = [note for note in self._carbon.notes if "went backwards" in note]
        backwards = [note for note in notes if "ran backwards" in note]
        if backwards or said:
            what = backwards[0] if backwards else said[0]
            self._find(
                "error",
                "session",
                POWER,
                f"{what}. CodeCarbon takes power times time for the measurement in which that happens, so its total "
                "looks whole; trust the power readings for the session, and no step or phase across it",
            )
        elif notes:
            self._find("error", "session", POWER, f"{notes[0]}. CodeCarbon reads the same counter")
        elif self._superchip:
            self._find(
                "info",
                "session",
                POWER,
                "the energy counter that CodeCarbon reads is that of the module, CPU and memory included; the meter's "
                "energy is of the GPU alone, from its instantaneous power: trust it for the GPU",
            )
        elif not self._counter and self._power_W is not None:
            self._find(
                "info",
                "session",
                BOTH,
                "no energy counter here: the meter's energy is the mean of power readings, and CodeCarbon takes power "
                "times time, so that what varies between readings is in neither",
            )
        elif self._power_W is None:
            self._find(
                "info",
                "session",
                CODECARBON,
                "the meter had no energy counter here, so that there is nothing to compare CodeCarbon with; whether it "
                "measured or guessed stands in its own columns and warnings",
            )

    # --- the session ---

    def session(self) -> None:
        level = self._carbon.levels.get("session")
        if level is None:
            return
        codecarbon_J = self._device_J(level.gpu_J, level.cpu_J)
        if self._power_W is None:
            self._row("session", level.readings, level.duration_s, codecarbon_J, None, None, CODECARBON)
            return
        counter_J = self._power_W * level.duration_s  # the same time for both
        allowed = self._shares.session + 2 * self._tick_s / max(level.duration_s, self._tick_s)
        ours = METER if self._counter else POWER
        trust = BOTH
        if codecarbon_J == 0 and counter_J > 0:
            trust = ours
            self._find(
                "error",
                "session",
                trust,
                f"CodeCarbon read 0 J in {level.duration_s:.1f} s, {ours} {counter_J:.0f} J: it does not see this "
                f"device (no nvidia-smi in the path, another GPU's number, a MIG slice). Trust {ours}; CodeCarbon's "
                "emissions lack all of this",
            )
        elif abs(codecarbon_J - counter_J) > allowed * counter_J:
            trust = ours
            self._find("error", "session", trust, self._apart(codecarbon_J, counter_J, allowed, ours))
        self._row("session", level.readings, level.duration_s, codecarbon_J, counter_J, allowed, trust)

    def _apart(self, codecarbon_J: float, counter_J: float, allowed: float, ours: str) -> str:
        ratio = codecarbon_J / counter_J
        if self._superchip:
            why = "CodeCarbon reads the counter of the module, CPU and memory included"
        elif self._on_cpu:
            why = "without RAPL CodeCarbon guesses a processor's power from its load"
        elif ratio > 1.5 and abs(ratio - round(ratio)) < 0.1:  # near a whole number of GPUs (assumed: a tenth)
            why = f"{ratio:.1f} times as much, as if it counted other GPUs too"
        elif ratio < 1:
            why = "CodeCarbon misses what lies between its measurements if it cannot read the counter"
        else:
            why = "CodeCarbon takes power times time where it cannot read the counter"
        return (
            f"CodeCarbon read {codecarbon_J:.0f} J, {ours} {counter_J:.0f} J: {ratio - 1:+.1%}, more than the "
            f"{allowed:.1%} that may be. Trust {ours}{', which sees every tick' if ours == METER else ''}; {why}"
        )

    # --- steps ---

    def steps(self, counted: Iterable[FinishedStep]) -> None:
        readings = self._readings.get("step", ())
        if not readings:
            return
        counter = _by_step(counted, len(self._meter.devices))
        for reading in readings:
            if reading.step in counter:
                self._steps.append(self._step(reading, *counter[reading.step]))
        codecarbon_J = sum(step.codecarbon_J for step in self._steps)
        seconds = sum(step.time_s for step in self._steps)
        if not self._steps:
            every_J = sum(self._device_J(r.gpu_J, r.cpu_J) for r in readings)
            every_s = sum(r.duration_s for r in readings)
            self._row("steps", len(readings), every_s, every_J, None, None, CODECARBON if self._counter else NEITHER)
            return
        counter_J = sum(step.counter_J for step in self._steps)
        noise_J = self._noise_J(len(self._steps), counter_J / max(seconds, 1e-9))
        allowed = self._shares.total + noise_J / max(counter_J, 1e-9)
        short = seconds / len(self._steps) < self._tick_s
        trust = METER if short or any(not step.agrees for step in self._steps) else BOTH
        if codecarbon_J > 0 and abs(codecarbon_J - counter_J) > allowed * counter_J:
            trust = METER
            self._find("warning", "steps", METER, f"together: {self._apart(codecarbon_J, counter_J, allowed, METER)}")
        self._row("steps", len(self._steps), seconds, codecarbon_J, counter_J, allowed, trust)
        self._zero_steps(short)
        self._steps_apart()

    def _step(self, reading: CarbonReading, time_s: float, counter_J: float) -> StepComparison:
        tick_J = self._tick_s * counter_J / max(time_s, 1e-9)
        return StepComparison(
            step=reading.step,
            time_s=time_s,
            codecarbon_J=self._device_J(reading.gpu_J, reading.cpu_J),
            counter_J=counter_J,
            allowed_J=self._shares.step * counter_J + 1.02 * tick_J,  # ticks vary by 2 % (assumed)
        )

    def _zero_steps(self, short: bool) -> None:
        zero = [step for step in self._steps if step.codecarbon_J == 0 and step.counter_J > 0]
        long = [step for step in zero if not step.agrees]
        if long:
            self._find(
                "error",
                "steps",
                METER,
                f"{len(long)} of {len(self._steps)} steps read 0 J in CodeCarbon although they lasted longer than the "
                f"counter's tick of {self._tick_s * 1e3:.0f} ms (the first: step {long[0].step}, "
                f"{long[0].time_s * 1e3:.0f} ms, {long[0].counter_J:.1f} J). Trust the energy counter: CodeCarbon "
                "did not see this device in them",
            )
        if short and len(zero) > len(long):
            mean_s = sum(step.time_s for step in self._steps) / len(self._steps)
            self._find(
                "info",
                "steps",
                METER,
                f"{len(zero) - len(long)} of {len(self._steps)} steps read 0 J in CodeCarbon, as they must: a step "
                f"lasts {mean_s * 1e3:.0f} ms, and the counter ticks every {self._tick_s * 1e3:.0f} ms. Trust the "
                "meter's energy of a step, which interpolates between ticks, or CodeCarbon's sum over steps",
            )

    def _steps_apart(self) -> None:
        apart = [step for step in self._steps if not step.agrees and step.codecarbon_J > 0]
        if apart:
            shown = ", ".join(f"{s.step}: {s.codecarbon_J:.1f} and {s.counter_J:.1f} J" for s in apart[:_SHOWN])
            self._find(
                "warning",
                "steps",
                METER,
                f"{len(apart)} of {len(self._steps)} steps are further apart than {self._shares.step:.0%} and a tick "
                f"({shown}{', ...' if len(apart) > _SHOWN else ''}). Trust the energy counter; CodeCarbon's readings "
                "were late, or made while the device was at other work",
            )

    # --- phases ---

    def phases(self) -> None:
        readings = self._readings.get("phase", ())
        for name in dict.fromkeys(reading.phase for reading in readings):
            self._phase(name, [reading for reading in readings if reading.phase == name])

    def _phase(self, name: str, readings: Sequence[CarbonReading]) -> None:
        seconds = sum(reading.duration_s for reading in readings)
        codecarbon_J = sum(self._device_J(r.gpu_J, r.cpu_J) for r in readings)
        known = self._phase_power(name)
        if known is None:
            self._row(name, len(readings), seconds, codecarbon_J, None, None, NEITHER)
            self._find(
                "info",
                name,
                NEITHER,
                "the meter could not tell this phase's power (its notes say why), so that CodeCarbon's sum over "
                f"{len(readings)} readings stands alone; a single one of them is zero or a whole tick",
            )
            return
        power_W, error_W, calls_s = known
        # The time of as many calls as CodeCarbon has readings of: it lasts a little longer with CodeCarbon in it.
        counter_J = power_W * calls_s * len(readings)
        error_J = 2 * error_W * calls_s * len(readings)
        noise_J = self._noise_J(len(readings), power_W) + error_J
        allowed = self._shares.phase + noise_J / max(counter_J, 1e-9)
        short = seconds / len(readings) < self._tick_s
        trust = PHASE_METER if short else BOTH
        if abs(codecarbon_J - counter_J) > allowed * counter_J:
            trust = PHASE_METER
            what = "read 0 J" if codecarbon_J == 0 else f"read {codecarbon_J:.0f} J"
            self._find(
                "warning",
                name,
                trust,
                f"CodeCarbon {what} over {len(readings)} calls, the meter {counter_J:.0f} J, further apart than the "
                f"{allowed:.1%} that may be. Trust the meter's, which fits all intervals of the counter at once",
            )
        self._row(name, len(readings), seconds, codecarbon_J, counter_J, allowed, trust)

    def _phase_power(self, name: str) -> tuple[float, float, float] | None:
        """Power, its standard error and the mean time of a call, over all devices; None if any is unknown."""
        found = [device.phases.get(name) for device in self._meter.devices]
        if not self._counter or any(phase is None or phase.power_W is None for phase in found):
            return None
        phases = [phase for phase in found if phase is not None]
        power_W = sum(phase.power_W or 0.0 for phase in phases)
        error_W = math.hypot(*(phase.power_standard_error_W or 0.0 for phase in phases))
        return power_W, error_W, sum(phase.mean_time_s for phase in phases) / len(phases)

    # --- shared ---

    def _device_J(self, gpu_J: float, cpu_J: float) -> float:
        return (cpu_J if self._on_cpu else gpu_J) / self._carbon.pue

    def _noise_J(self, readings: int, power_W: float) -> float:
        return 3 * math.sqrt(readings / 6) * self._tick_s * power_W

    def _find(self, level: Literal["error", "warning", "info"], subject: str, trust: str, text: str) -> None:
        self._findings.append(Finding(level=level, subject=subject, trust=trust, text=text))

    def _row(
        self,
        subject: str,
        readings: int,
        duration_s: float,
        codecarbon_J: float,
        counter_J: float | None,
        allowed: float | None,
        trust: str,
    ) -> None:
        difference = None if not counter_J else codecarbon_J / counter_J - 1
        self._rows.append(
            Comparison(
                subject=subject,
                readings=readings,
                duration_s=duration_s,
                codecarbon_J=codecarbon_J,
                counter_J=counter_J,
                difference_share=difference,
                allowed_share=allowed,
                trust=trust,
            )
        )


def _by_step(counted: Iterable[FinishedStep], devices: int) -> dict[int, tuple[float, float]]:
    """Step -> its time and energy, of all devices together; those of which a device is missing are left out."""
    rows: dict[int, list[tuple[float, float]]] = {}
    for row in counted:
        if row.energy_J is not None:
            rows.setdefault(row.step.index, []).append((row.step.end_s - row.step.begin_s, row.energy_J))
    return {
        index: (max(time_s for time_s, _ in found), sum(energy_J for _, energy_J in found))
        for index, found in rows.items()
        if len(found) == devices
    }


def _line(row: Comparison) -> str:
    counter = "" if row.counter_J is None else f"{row.counter_J:.1f}"
    apart = "" if row.difference_share is None else f"{row.difference_share:+.1%}"
    allowed = "" if row.allowed_share is None else f"{row.allowed_share:.1%}"
    name = f"{row.subject:24} {row.readings:8d} {row.duration_s:9.2f} {row.codecarbon_J:14.1f}"
    return f"{name} {counter:>12} {apart:>8} {allowed:>7}  {row.trust}"
