"""The crossover study: from which size on a Mixture-of-Experts takes less energy an inference than a dense MLP.

neuralwatt, "Mixture of Experts: When Does It Really Deliver Energy Efficiency?" (April 2025, code and outputs at
https://github.com/neuralwatt/moe_energy_evaluation). What is known of it, read there:

    models    the presets `mlp-moe-SIZE` and `mlp-dense-SIZE`, the latter of the same parameters; 784 features, 10
              classes, float32; two forms of the Mixture-of-Experts, which `profiler.studies.perceptrons` describes
    a pass    one batch of 128 samples, always the same, under `torch.no_grad`; the host waits for the device before
              and after each (utils.py, `time_inference`), for 30 s a model
    products  nothing sets TF32 or the precision of products, and torch leaves TF32 off in products by default; the
              largest dense model's 15.1 TFLOP/s stay below the 19.5 of an A100's FP32 pipes
    power     NVML's power of the board is read once a pass, between two passes, and counted for the time since the
              last (utils.py); what the reading takes is part of the pass's time, and no energy counter is asked
    machine   one A100 80 GB of 300 W, virtual machine with 12 processors of a Xeon Gold 6338
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from moemodel.model.architecture.spec import Moe
from moemodel.model.layers.expert_loops import with_expert_loop
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.system import system_of

Form = Literal["dense", "every", "chosen"]

SIZES = ("small", "medium", "large", "xlarge")  # in rising order
FORMS: tuple[Form, ...] = ("dense", "every", "chosen")
MIXTURES: tuple[Form, ...] = ("every", "chosen")
BATCH = 128  # samples of a forward pass


def architecture_name(size: str, form: Form) -> str:
    """The preset of a model of the study."""
    return f"mlp-{'dense' if form == 'dense' else 'moe'}-{size}"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One model of the study on one GPU, measured, predicted or published; None: not known.

    Attributes:
        inferences_per_s, inferences_per_J: an inference is one sample.
        power_W: mean of the GPU.
        waits_for_host: share of the time in which the GPU has nothing to do.
    """

    inferences_per_s: float | None
    power_W: float | None
    inferences_per_J: float
    waits_for_host: float | None = None


Rates = Mapping[tuple[str, Form], Rate]


def winner(rates: Rates, size: str, mixture: Form) -> Literal["dense", "moe"]:
    """Which of both makes more inferences of a joule."""
    dense, sparse = rates[size, "dense"], rates[size, mixture]
    return "moe" if sparse.inferences_per_J > dense.inferences_per_J else "dense"


def turns_at(rates: Rates, mixture: Form) -> str | None:
    """The smallest size from which on the Mixture-of-Experts wins; None: it does not at the largest."""
    found = None
    for size in reversed([size for size in SIZES if (size, "dense") in rates and (size, mixture) in rates]):
        if winner(rates, size, mixture) == "dense":
            break
        found = size
    return found


# ---- predicted ------------------------------------------------------------------------------------------------------


def plan_of(size: str, form: Form, gpu: str) -> Plan:
    """A model of the study as a plan: a sample is a sequence of one token, a step is one pass."""
    document = {
        "name": f"{size}-{form}",
        "mode": "inference",
        "architecture": architecture_name(size, form),
        "sequence_length": 1,
        "global_batch": BATCH,
        "micro_batch": BATCH,
        "precision": "fp32",
        "cluster": {"gpu": gpu},
    }
    return Plan.model_validate(document)


def predicted(size: str, form: Form, calibration: Calibration) -> Rate:
    """One model of the study on the GPU of a calibration, in the steady state.

    Raises:
        InputError: the GPU's description has no rate for products in fp32.
        CalibrationError: the calibration lacks an operator.
    """
    plan = plan_of(size, form, calibration.gpu)
    architecture = architecture_of(plan)
    machine = system_of(plan, calibration)
    block = architecture.decoder[0].feed_forward
    if form != "dense" and isinstance(block, Moe):
        machine = replace(machine, framework=with_expert_loop(machine.framework, form, block))
    found = predict(architecture, batch_of(plan), machine)
    step_s, energy_J = float(found.step_time_s[0]), float(found.energy_J[0])
    return Rate(
        inferences_per_s=BATCH / step_s,
        power_W=float(found.power_W[0]),
        inferences_per_J=BATCH / energy_J,
        waits_for_host=float(found.host_wait_s[0]) / step_s,
    )


def predicted_rates(calibration: Calibration, sizes: tuple[str, ...] = SIZES) -> dict[tuple[str, Form], Rate]:
    """All models of the study on one GPU."""
    return {(size, form): predicted(size, form, calibration) for size in sizes for form in FORMS}


# ---- as documents ---------------------------------------------------------------------------------------------------


def rates_json(rates: Rates) -> dict[str, Any]:
    """Every model's figures, who wins at each size, and the size from which on the Mixture-of-Experts does."""
    sizes = [size for size in SIZES if all((size, form) in rates for form in FORMS)]
    return {
        "cases": [{"size": size, "form": form, **asdict(rate)} for (size, form), rate in rates.items()],
        "winners": {form: {size: winner(rates, size, form) for size in sizes} for form in MIXTURES},
        "turns_at": {form: turns_at(rates, form) for form in MIXTURES},
    }


def rates_of(cases: Iterable[Mapping[str, Any]]) -> dict[tuple[str, Form], Rate]:
    """Figures of a document's cases, those without energy left out."""
    return {
        (case["size"], case["form"]): Rate(
            inferences_per_s=case.get("inferences_per_s"),
            power_W=case.get("power_W"),
            inferences_per_J=case["inferences_per_J"],
            waits_for_host=case.get("waits_for_host"),
        )
        for case in cases
        if case["inferences_per_J"] is not None
    }
