"""The timeline of a simulated GPU: a host that queues, a device that works, and the physics in between.

Time is virtual. It passes only when the host does something that takes time (queueing, waiting, sleeping); the device
then works off its queue, in order. Between two events power is constant:

    P = base + leak (T_die - 50) + v(f) ((tree + active) f/f0 + switching energy of the work) + that of memory traffic
    v(f) = (V(f)/V(f0))^2,  V = 1 + slope max(0, f/knee - 1)

    die:   C_d dT_d/dt = P - (T_d - T_s)/R_d          sink:  C_s dT_s/dt = (T_d - T_s)/R_d - (T_s - T_inlet)/R_s

Governor: every period the clock moves by gain x (what was allowed - what was drawn), which holds the mean over a second
at its share of the cap; what is set is a whole number of steps, and no more than a lock allows (a lock holds the clock
down; it does not hold it up against the cap). The fast limit acts at once and on each kernel: while
its tensor cores work, cycles are skipped, so the SMs run slower than the clock that is reported (as real H100s do, see
`model.governor`). Voltage is taken at the clock after skipping: on the real H100 bursts draw 1.24 times the switching
energy of the sustained load, which is what their true clocks give, and not the 1.9 times of the clocks reported.

Left out: kernels side by side, throttling by anything but power and temperature.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from moemodel.profiler.simulated.chip import Chip
from moemodel.profiler.simulated.faults import Faults
from moemodel.profiler.simulated.kernels import Kernel
from moemodel.profiler.simulated.state import StoredSettings

_LEAK_AT_C = 50.0
_QUEUE = 1024  # launches that the queue holds
_BATCH = 256  # calls queued as one
_STEP_S = 5e-3  # of the physics, at most
_STAMP_S = 8e-6  # host time of a clock stamp
_DONE = 1e-9  # of a call
_LOST = "CUDA error: the GPU is lost (simulated)"


@dataclass(eq=False, kw_only=True)
class Mark:
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
        die_C, sink_C: true temperatures.
        set_Hz: the clock that the driver reports.
    """

    def __init__(
        self, chip: Chip, seed: int = 0, faults: Faults | None = None, settings: StoredSettings | None = None
    ) -> None:
        self.chip = chip
        self.settings = settings or StoredSettings(None)
        self.noise = np.random.default_rng(seed)
        self.faults = faults or Faults()
        self.now_s = 0.0
        self.totals = Totals()
        self.die_C = self.sink_C = chip.thermal.inlet_C
        self._goal_Hz = self.set_Hz = chip.clock_max_Hz
        self._settle_idle()
        self._cycles = 0.0
        self._queue: deque[Mark | Hold | Batch] = deque()
        self._pending = 0.0  # calls in the queue
        self._counter_from_J = -2.7e6  # the counter counts since the driver was loaded
        self._readings = Readings(energy_J=-self._counter_from_J, power_W=self.static_W())
        self._governed_J = self._ticked_J = 0.0
        self._rhythms = [
            _Every(period_s=chip.governor.period_s, act=self._govern, next_s=chip.governor.period_s),
            _Every(period_s=chip.sensors.tick_s, act=self._tick, next_s=chip.sensors.tick_s),
        ]

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
            self.sleep(count * kernel.host_s * float(self.noise.normal(1, 0.05)))
            calls -= count

    def hold(self, seconds: float) -> None:
        """Queue a spin."""
        self.check()
        self._queue.append(Hold(left_s=seconds))
        self.sleep(_STAMP_S)

    def mark(self) -> Mark:
        """Queue a stamp of time and cycles."""
        self.check()
        mark = Mark()
        self._queue.append(mark)
        self.sleep(_STAMP_S)
        return mark

    def wait(self, mark: Mark) -> None:
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
        e, f = self.chip.electrics, self.set_Hz if clock_Hz is None else clock_Hz
        tree_W = e.tree_W * self.voltage2(f) * f / self.chip.clock_max_Hz
        return e.base_W + tree_W + e.leak_W_per_C * (self.die_C - _LEAK_AT_C)

    def voltage2(self, clock_Hz: float) -> float:
        """Square of the voltage over that at the highest clock."""
        e = self.chip.electrics

        def voltage(f: float) -> float:
            return 1 + e.voltage_slope * max(0.0, f / e.knee_Hz - 1)

        return (voltage(clock_Hz) / voltage(self.chip.clock_max_Hz)) ** 2

    def energy_J(self, kernel: Kernel, clock_Hz: float) -> float:
        """Of one call, beyond the static power."""
        e = self.chip.electrics
        switching = e.flop_J * kernel.flops + e.vector_op_J * kernel.vector_ops + e.cache_J_per_B * kernel.bytes_B
        active = e.active_W * clock_Hz / self.chip.clock_max_Hz * kernel.busy_s(clock_Hz)
        return kernel.factor * (self.voltage2(clock_Hz) * (switching + active) + e.dram_J_per_B * kernel.bytes_B)

    def true_clock_Hz(self, kernel: Kernel) -> float:
        """The mean clock of a kernel now: as set, less the cycles that are skipped while its tensor cores work."""
        g, set_Hz = self.chip.governor, self.set_Hz
        rate = self.chip.flops_per_cycle * self.chip.multiprocessors * set_Hz
        share = min(1.0, kernel.flops / (rate * kernel.time_s(set_Hz)))  # of its time, were nothing skipped
        skipped_Hz: float = (set_Hz**-g.sharpness + g.tensor_Hz**-g.sharpness) ** (-1 / g.sharpness)
        cycles_s = share * set_Hz / skipped_Hz + 1 - share  # how much longer it takes
        return set_Hz / cycles_s

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
        while self._queue and isinstance(self._queue[0], Mark):
            self._reach(self._queue[0])
        while self.now_s < end_s - 1e-12 and not (done and done()):
            head = self._queue[0] if self._queue else None
            if isinstance(head, Batch):
                self._work(head, end_s - self.now_s)
            elif isinstance(head, Hold):
                lasting = min(head.left_s, end_s - self.now_s)
                head.left_s -= lasting
                self._elapse(lasting, 0.0, self.set_Hz)
                if head.left_s <= 1e-12:
                    self._queue.popleft()
            else:
                self._elapse(end_s - self.now_s, 0.0, self.set_Hz)
            while self._queue and isinstance(self._queue[0], Mark):
                self._reach(self._queue[0])
        if not done:
            self.now_s = max(self.now_s, end_s)
        for rhythm in list(self._rhythms):
            if self.now_s >= rhythm.next_s - 1e-12:
                rhythm.next_s += rhythm.period_s
                rhythm.act()

    def _reach(self, mark: Mark) -> None:
        mark.time_s, mark.cycles, mark.reached = self.now_s, self._cycles, True
        self._queue.popleft()

    def _work(self, batch: Batch, at_most_s: float) -> None:
        """Some of a batch: back to back while the host is ahead, else as fast as the host queues."""
        kernel = batch.kernel
        clock_Hz = self.true_clock_Hz(kernel)
        call_s = kernel.time_s(clock_Hz)
        host_s = kernel.host_s
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
        busy_s = calls * kernel.busy_s(clock_Hz)
        self._elapse(seconds, calls * self.energy_J(kernel, clock_Hz), clock_Hz)
        totals = self.totals
        totals.busy_s += busy_s
        totals.flops += calls * kernel.flops
        totals.vector_ops += calls * kernel.vector_ops
        totals.bytes_B += calls * kernel.bytes_B
        if batch.calls - batch.done < _DONE * batch.calls:
            self._pending -= batch.calls - batch.done
            self._queue.popleft()

    def _elapse(self, seconds: float, dynamic_J: float, clock_Hz: float) -> None:
        """Time, cycles, energy and heat."""
        t = self.chip.thermal
        energy_J = self.static_W(clock_Hz) * seconds + dynamic_J
        through_J = (self.die_C - self.sink_C) / t.die_C_per_W * seconds
        away_J = (self.sink_C - t.inlet_C) / t.sink_C_per_W * seconds
        self.die_C += (energy_J - through_J) / t.die_J_per_C
        self.sink_C += (through_J - away_J) / t.sink_J_per_C
        self.now_s += seconds
        self._cycles += clock_Hz * seconds
        self.totals.time_s += seconds
        self.totals.energy_J += energy_J

    def _settle_idle(self) -> None:
        """Temperatures after a long time without work."""
        t = self.chip.thermal
        for _ in range(50):
            power_W = self.static_W()
            self.sink_C = t.inlet_C + t.sink_C_per_W * power_W
            self.die_C = self.sink_C + t.die_C_per_W * power_W

    def _govern(self) -> None:
        """The slow limit, and the thermal one."""
        g, chip, state = self.chip.governor, self.chip, self.settings.state
        cap_W = chip.cap_W if state.power_limit_W is None else state.power_limit_W
        drawn_J = self.totals.energy_J - self._governed_J
        self._governed_J = self.totals.energy_J
        change_Hz = g.gain_Hz_per_J * (g.sustained_share * cap_W * g.period_s - drawn_J)
        slowdown_C = chip.gpu.slowdown_C
        if slowdown_C is not None and self.die_C > slowdown_C:
            change_Hz = min(change_Hz, -chip.clock_step_Hz)
        self._goal_Hz = min(chip.clock_max_Hz, max(chip.clock_min_Hz, self._goal_Hz + change_Hz))
        allowed_Hz = self._goal_Hz if state.locked_Hz is None else min(self._goal_Hz, state.locked_Hz[1])
        steps = math.floor((allowed_Hz - chip.clock_min_Hz) / chip.clock_step_Hz + 1e-9)
        self.set_Hz = chip.clock_min_Hz + steps * chip.clock_step_Hz

    # --- sensors -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """The energy counter and the power reading change."""
        if self._counter_from_J < 0 and self.now_s >= self.faults.reset_s:
            self._counter_from_J = self.totals.energy_J
        tick_s = self.chip.sensors.tick_s
        mean_W = (self.totals.energy_J - self._ticked_J) / tick_s
        self._ticked_J = self.totals.energy_J
        noise_W = self.chip.sensors.power_noise * mean_W * float(self.noise.normal())
        self._readings.energy_J = round(self.totals.energy_J - self._counter_from_J, 3)
        self._readings.power_W = round(mean_W + noise_W, 3)

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
