"""What is compared, and how it is called and written."""

from __future__ import annotations

from moemodel.validation.report.units import Unit

# At equal samples. Of losses only the task's: what routers add depends on their coefficients.
COMPARED: dict[str, Unit] = {
    "energy": Unit(label="energy of the GPUs", short="energy", symbol="J", scale=1.0),
    "duration": Unit(label="duration", short="time", symbol="s", scale=1.0),
    "emissions": Unit(label="emissions", short="CO2e", symbol="g", scale=1e3),
    "loss": Unit(label="task loss", short="loss", symbol="nats", scale=1.0),
    "memory": Unit(label="peak memory of a GPU", short="memory", symbol="GB", scale=1e-9),
}
# Of one step.
OF_STEP: dict[str, Unit] = {
    "step_time": Unit(label="step time", short="step", symbol="ms", scale=1e3),
    "step_energy": Unit(label="energy of a step", short="J/step", symbol="J", scale=1.0),
    "power": Unit(label="power of a GPU", short="power", symbol="W", scale=1.0),
    "clock": Unit(label="true SM clock", short="clock", symbol="MHz", scale=1e-6),
    "temperature": Unit(label="temperature of the die", short="die", symbol="C", scale=1.0),
}
# Of routers, over the compared steps.
OF_ROUTERS: dict[str, Unit] = {
    "skew": Unit(label="load skew: busiest expert over the mean", short="skew", symbol="", scale=1.0),
    "dropped": Unit(label="dropped share", short="dropped", symbol="%", scale=100.0),
    "entropy": Unit(label="router entropy", short="entropy", symbol="nats", scale=1.0),
}
ALL: dict[str, Unit] = COMPARED | OF_STEP | OF_ROUTERS
PHASES: dict[str, str] = {
    "forward": "forward pass",
    "backward": "backward pass",
    "pipeline": "pipeline",
    "optimizer": "optimizer",
    "rest": "between phases",
}
