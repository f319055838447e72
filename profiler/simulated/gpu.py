"""The timeline of a simulated GPU: a host that queues, a device that works, and the physics in between.

Time is virtual. It passes only when the host does something that takes time (queueing, waiting, sleeping); the device
then works off its queue, in order. Between two events power is constant (see `electrics`), and heat flows from the die
through its vapour chamber and fins to the inlet air:

    die:      C_d dT_d/dt = P - (T_d - T_c)/R_d
    chamber:  C_c dT_c/dt = (T_d - T_c)/R_d - (T_c - T_f)/R_c
    fins:     C_f dT_f/dt = (T_c - T_f)/R_c - (T_f - T_inlet)/R_f

a ladder of lumped masses (Skadron et al. 2003, Temperature-Aware Microarchitecture, ISCA), one more than the predictor
knows. The clock is `governor`'s: what is set changes at its period, and while its tensor cores work a kernel runs
slower than that, as real H100s do. Voltage is taken at the clock after skipping: on the real H100 bursts draw 1.24
times the switching energy of the sustained load, which is what their true clocks give, and not the 1.9 times of the
clocks reported.

Left out: kernels side by side, fans that answer to temperature.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from moemodel.profiler.simulated.chip import SimulatedChip
from moemodel.profiler.simulated.electrics import Draw, Silicon
from moemodel.profiler.simulated.faults import Faults
from moemodel.profiler.simulated.governor import SteppingGovernor, true_clock_Hz
from moemodel.profiler.simulated.kernels import Kernel
from moemodel.profiler.simulated.noise import Flicker
from moemodel.profiler.simulated.state import StoredSettings

_QUEUE = 1024  # launches that the queue holds, about as a CUDA stream (see `profiler.microbench.harness`)
_BATCH = 256  # calls queued as one: fewer events to simulate, a quarter of the queue at most
_STEP_S = 5e-3  # of the physics, at most
_STAMP_S = 8e-6  # host time of a clock stamp; made up
_WARMINGS = 50  # of power and temperature, which change each other
_DONE = 1e-9  # of a call
_LOST = "CUDA error: the GPU is lost (simulated)"


@dataclass(eq=False, kw_only=True)
class TimelineMark:
    """A point in the queue; what the device's clocks said when it got there."""

    time_s: float = math.nan
    cycles: float = math.nan
    reached: bool = False


@dataclass(eq=False, kw_only=True)
class Hold:
    """The device kept waiting, one SM spinning."""

    left_s: float


@dataclass(eq=False, kw_only=True)
class Batch:
    """Calls of one kernel; the host has call i queued at `queued_s + i host_s`."""

    kernel: Kernel
    calls: int
    queued_s: float
    done: float = 0.0


@dataclass(kw_only=True)
class Totals:
    """What has passed since the device was opened."""

    time_s: float = 0.0
    energy_J: float = 0.0
    busy_s: float = 0.0
    flops: float = 0.0
    vector_ops: float = 0.0
    bytes_B: float = 0.0

    def copy(self) -> Totals:
        """As it is now."""
        return Totals(**vars(self))


@dataclass(kw_only=True)
class _Every:
    """Something that happens at a rhythm."""

    period_s: float
    act: Callable[[], None]
    next_s: float


@dataclass(kw_only=True)
class Readings:
    """What the sensors show until the next tick."""

    energy_J: float
    power_W: float
    stuck: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Running:
    """One call of a kernel at the clock that it gets.

    Attributes:
        clock_Hz: true mean clock.
        time_s, busy_s: of the call, and of that with work on the SMs.
        core_J, memory_J: of switching, and of device memory.
    """

    clock_Hz: float
    time_s: float
    busy_s: float
    core_J: float
    memory_J: float

    def draw(self, calls_per_s: float) -> Draw:
        """What so many calls a second draw."""
        return Draw(core_W=calls_per_s * self.core_J, memory_W=calls_per_s * self.memory_J)


@dataclass(kw_only=True)
class Errors:
    """How far what is read is off, each with a memory of its own."""

    time: Flicker
    clock: Flicker
    power: Flicker
    host: Flicker


_IDLE = Draw()


class VirtualGpu:
    """A GPU and the host that queues work on it.

    Args:
        chip: its hidden parameters.
        seed: of the noise in its readings.
        faults: what goes wrong.
        settings: locked clocks and power limit; read anew at each step of the governor.

    Attributes:
        now_s: the time.
        totals: true sums since the start.
        die_C, chamber_C, fins_C: true temperatures.
        errors: of readings.
        noise: for what is drawn beside them.
    """

    def __init__(
        self, chip: SimulatedChip, seed: int = 0, faults: Faults | None = None, settings: StoredSettings | None = None
    ) -> None:
        self.chip = chip
        self.settings = settings or StoredSettings(None)
        self.noise = np.random.default_rng(seed)
        deviations = (getattr(chip.sensors, f"{name}_noise") for name in ("time", "clock", "power", "host"))
        time, clock, power, host = (
            Flicker(random, deviation) for random, deviation in zip(self.noise.spawn(4), deviations, strict=True)
        )
        self.errors = Errors(time=time, clock=clock, power=power, host=host)
        self.faults = faults or Faults()
        self.now_s = 0.0
        self.totals = Totals()
        self._silicon = Silicon(chip.electrics, chip.clock_max_Hz)
        self._governor = SteppingGovernor(chip)
        self._running: dict[tuple[Kernel, float], Running] = {}
        self.die_C = chip.thermal.inlet_C
        for _ in range(_WARMINGS):  # it has been idle for long
            self.warm(self.static_W())
        self._cycles = 0.0
        self._queue: deque[TimelineMark | Hold | Batch] = deque()
        self._pending = 0.0  # calls in the queue
        self._counted_J = 2.7e6  # the counter counts since the driver was loaded
        self._reset = False
        self._readings = Readings(energy_J=self._counted_J, power_W=self.static_W())
        self._governed_J = self._ticked_J = 0.0
        self._rhythms = [
            _Every(period_s=chip.governor.period_s, act=self._govern, next_s=chip.governor.period_s),
            _Every(period_s=chip.sensors.tick_s, act=self._tick, next_s=chip.sensors.tick_s),
        ]

    @property
    def set_Hz(self) -> float:
        """The clock that the driver reports."""
        return self._governor.set_Hz

    # --- the host's side ---------------------------------------------------------------------------------------------

    def launch(self, kernel: Kernel, calls: int = 1) -> None:
        """Queue calls; takes the host its time, and longer where the queue is full.

        Raises:
            RuntimeError: the GPU is lost.
        """
        while calls > 0:
            self.check()
            count = min(calls, _BATCH)
            self._pass_until(lambda: self._pending <= _QUEUE - _BATCH)
            self._queue.append(Batch(kernel=kernel, calls=count, queued_s=self.now_s))
            self._pending += count
            self.sleep(count * kernel.host_s * max(0.5, 1 + self.errors.host.at(self.now_s)))
            calls -= count

    def hold(self, seconds: float) -> None:
        """Queue a spin."""
        self.check()
        self._queue.append(Hold(left_s=seconds))
        self.sleep(_STAMP_S)

    def mark(self) -> TimelineMark:
        """Queue a stamp of time and cycles."""
        self.check()
        mark = TimelineMark()
        self._queue.append(mark)
        self.sleep(_STAMP_S)
        return mark

    def wait(self, mark: TimelineMark) -> None:
        """Until the device reaches the mark.

        Raises:
            RuntimeError: the GPU is lost.
        """
        self._pass_until(lambda: mark.reached)

    def synchronize(self) -> None:
        """Until the queue is empty.

        Raises:
            RuntimeError: the GPU is lost.
        """
        self.check()
        self._pass_until(lambda: not self._queue)

    def sleep(self, seconds: float) -> None:
        """Let time pass, the device working."""
        end_s = self.now_s + seconds
        while self.now_s < end_s - 1e-12:
            self._pass(min(self._until_event_s(), end_s - self.now_s))

    def every(self, period_s: float, act: Callable[[], None]) -> Callable[[], None]:
        """Have something done at a rhythm, now for the first time; what is returned ends it."""
        rhythm = _Every(period_s=period_s, act=act, next_s=self.now_s + period_s)
        act()
        self._rhythms.append(rhythm)
        return lambda: self._rhythms.remove(rhythm)

    @property
    def lost(self) -> bool:
        return self.now_s >= self.faults.lost_s

    def check(self) -> None:
        """Raise what torch would if the GPU is lost."""
        if self.lost:
            raise RuntimeError(_LOST)

    # --- the device's side -------------------------------------------------------------------------------------------

    def static_W(self, clock_Hz: float | None = None) -> float:
        """Drawn at the die's temperature with nothing to do, at a clock or that which is set."""
        return self._silicon.power_W(self.set_Hz if clock_Hz is None else clock_Hz, self.die_C, _IDLE)

    def busy_W(self, kernel: Kernel, clock_Hz: float, interval_s: float | None = None) -> float:
        """Drawn at the die's temperature by calls at a true clock, at this interval or back to back."""
        one = self._at_clock(kernel, clock_Hz)
        return self._silicon.power_W(clock_Hz, self.die_C, one.draw(1 / (interval_s or one.time_s)))

    def running(self, kernel: Kernel) -> Running:
        """A call at the clock that is set now."""
        key = kernel, self.set_Hz
        if key not in self._running:
            peak = self.chip.flops_per_cycle * self.chip.multiprocessors * self.set_Hz
            use = kernel.flops / (peak * kernel.time_s(self.set_Hz))
            self._running[key] = self._at_clock(kernel, true_clock_Hz(self.chip.governor, self.set_Hz, use))
        return self._running[key]

    def _at_clock(self, kernel: Kernel, clock_Hz: float) -> Running:
        e, busy_s = self.chip.electrics, kernel.busy_s(clock_Hz)
        work_J = e.flop_J * kernel.flops + e.vector_op_J * kernel.vector_ops + e.cache_J_per_B * kernel.cache_B
        active_W = e.active_W * clock_Hz / self.chip.clock_max_Hz * kernel.occupied
        return Running(
            clock_Hz=clock_Hz,
            time_s=kernel.time_s(clock_Hz),
            busy_s=busy_s,
            core_J=kernel.factor * self._silicon.switching2(clock_Hz) * (work_J + active_W * busy_s),
            memory_J=kernel.path.bytes_B * (e.dram_J_per_B + e.open_J_per_B * kernel.opens),
        )

    def _until_event_s(self) -> float:
        return max(0.0, min(_STEP_S, min(r.next_s for r in self._rhythms) - self.now_s))

    def _pass_until(self, done: Callable[[], bool]) -> None:
        """Time passes until the device has got so far.

        Raises:
            RuntimeError: the GPU is lost before.
        """
        self._pass(0.0, done)
        while not done():
            self.check()
            self._pass(self._until_event_s(), done)

    def _pass(self, seconds: float, done: Callable[[], bool] | None = None) -> None:
        """Time passes up to the next event at most; no further than `done`."""
        end_s = self.now_s + seconds
        while self._queue and isinstance(self._queue[0], TimelineMark):
            self._reach(self._queue[0])
        while self.now_s < end_s - 1e-12 and not (done and done()):
            head = self._queue[0] if self._queue else None
            if isinstance(head, Batch):
                self._work(head, end_s - self.now_s)
            elif isinstance(head, Hold):
                lasting = min(head.left_s, end_s - self.now_s)
                head.left_s -= lasting
                self._elapse(lasting, self.set_Hz)
                if head.left_s <= 1e-12:
                    self._queue.popleft()
            else:
                self._elapse(end_s - self.now_s, self.set_Hz)
            while self._queue and isinstance(self._queue[0], TimelineMark):
                self._reach(self._queue[0])
        if not done:
            self.now_s = max(self.now_s, end_s)
        for rhythm in list(self._rhythms):
            if self.now_s >= rhythm.next_s - 1e-12:
                rhythm.next_s += rhythm.period_s
                rhythm.act()

    def _reach(self, mark: TimelineMark) -> None:
        mark.time_s, mark.cycles, mark.reached = self.now_s, self._cycles, True
        self._queue.popleft()

    def _work(self, batch: Batch, at_most_s: float) -> None:
        """Some of a batch: back to back while the host is ahead, else as fast as the host queues."""
        kernel = batch.kernel
        running = self.running(kernel)
        call_s, host_s = running.time_s, kernel.host_s
        ahead = min(float(batch.calls), (self.now_s - batch.queued_s) / host_s) - batch.done
        left = batch.calls - batch.done
        if call_s >= host_s or ahead >= left:
            interval_s, lasting_s = call_s, left * call_s
        elif ahead > 1e-6:
            interval_s, lasting_s = call_s, ahead / (1 / call_s - 1 / host_s)
        else:
            interval_s, lasting_s = host_s, left * host_s
        seconds = min(lasting_s, left * interval_s, at_most_s)
        calls = seconds / interval_s
        batch.done += calls
        self._pending -= calls
        self._elapse(seconds, running.clock_Hz, running.draw(1 / interval_s))
        totals = self.totals
        totals.busy_s += calls * running.busy_s * kernel.occupied
        totals.flops += calls * kernel.flops
        totals.vector_ops += calls * kernel.vector_ops
        totals.bytes_B += calls * kernel.path.bytes_B
        if batch.calls - batch.done < _DONE * batch.calls:
            self._pending -= batch.calls - batch.done
            self._queue.popleft()

    def _elapse(self, seconds: float, clock_Hz: float, draw: Draw = _IDLE) -> None:
        """Time, cycles, energy and heat."""
        t = self.chip.thermal
        energy_J = self._silicon.power_W(clock_Hz, self.die_C, draw) * seconds
        spread_J = (self.die_C - self.chamber_C) / t.die_C_per_W * seconds
        risen_J = (self.chamber_C - self.fins_C) / t.chamber_C_per_W * seconds
        away_J = (self.fins_C - t.inlet_C) / t.fins_C_per_W * seconds
        self.die_C += (energy_J - spread_J) / t.die_J_per_C
        self.chamber_C += (spread_J - risen_J) / t.chamber_J_per_C
        self.fins_C += (risen_J - away_J) / t.fins_J_per_C
        self.now_s += seconds
        self._cycles += clock_Hz * seconds
        self.totals.time_s += seconds
        self.totals.energy_J += energy_J

    def warm(self, power_W: float) -> None:
        """Bring die, chamber and fins to where a load that draws so much would have them in the long run."""
        t = self.chip.thermal
        self.fins_C = t.inlet_C + t.fins_C_per_W * power_W
        self.chamber_C = self.fins_C + t.chamber_C_per_W * power_W
        self.die_C = self.chamber_C + t.die_C_per_W * power_W

    def _govern(self) -> None:
        """The slow limit, and the thermal one."""
        chip, state = self.chip, self.settings.state
        drawn_J = self.totals.energy_J - self._governed_J
        self._governed_J = self.totals.energy_J
        self._governor.decide(
            drawn_J / chip.governor.period_s,
            cap_W=chip.cap_W if state.power_limit_W is None else state.power_limit_W,
            too_hot=chip.gpu.slowdown_C is not None and self.die_C > chip.gpu.slowdown_C,
            lock_Hz=chip.clock_max_Hz if state.locked_Hz is None else state.locked_Hz[1],
        )

    # --- sensors -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """The energy counter and the power reading change; both are what one sensor saw of a tick."""
        if not self._reset and self.now_s >= self.faults.reset_s:
            self._counted_J, self._reset = 0.0, True
        drawn_J = (self.totals.energy_J - self._ticked_J) * (1 + self.errors.power.at(self.now_s))
        self._ticked_J = self.totals.energy_J
        self._counted_J += drawn_J
        self._readings.energy_J = round(self._counted_J, 3)
        self._readings.power_W = round(drawn_J / self.chip.sensors.tick_s, 3)

    def read(self, sensor: str) -> float:
        """What a sensor of `faults.SENSORS` shows now."""
        values = {
            "energy": self._readings.energy_J,
            "power": self._readings.power_W,
            "temperature": float(round(self.die_C)),
            "clock": self.set_Hz,
        }
        if self.now_s < self.faults.stuck_s.get(sensor, math.inf):
            return values[sensor]
        return self._readings.stuck.setdefault(sensor, values[sensor])
