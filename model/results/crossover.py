"""The crossover study: from which size on a Mixture-of-Experts takes less energy an inference than a dense MLP.

neuralwatt, "Mixture of Experts: When Does It Really Deliver Energy Efficiency?" (April 2025, code and outputs at
https://github.com/neuralwatt/moe_energy_evaluation). What is known of it, read there:

    models    the presets `mlp-moe-SIZE` and `mlp-dense-SIZE`, the latter of the same parameters; 784 features, 10
              classes, float32; two forms of the Mixture-of-Experts, which `profiler.studies.perceptrons` describes
    a pass    one batch of 128 samples, always the same, under `torch.no_grad`; the host waits for the device before
              and after each (utils.py, `time_inference`), for 30 s a model
    products  nothing sets TF32 or the precision of products, and torch leaves TF32 off in products by default; the
              largest dense model's 15.1 TFLOP/s stay below the 19.5 of an A100's FP32 pipes
    energy    NVML of the one GPU (outputs of a run: "NVML initialized for GPU 0"), whose code the public repository
              does not hold; board power, without the host
    machine   one A100 80 GB of 300 W, virtual machine with 12 processors of a Xeon Gold 6338
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
    """One model of the study on one GPU, measured, predicted or published; None: not known."""

    inferences_per_s: float | None
    power_W: float | None
    inferences_per_J: float


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
