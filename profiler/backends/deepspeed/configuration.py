"""What DeepSpeed is told: its configuration of a run.

`bf16-mixed` is DeepSpeed's `bf16` switch and nothing else that concerns types: bf16 parameters and gradients, float32
masters and moments. The optimizer that it then takes (0.19.8, `DeepSpeedEngine._do_optimizer_sanity_check`):

| ZeRO | optimizer                                                | bytes a parameter (n ranks hold the same) |
| ---- | -------------------------------------------------------- | ----------------------------------------- |
| 0    | `FP16_Optimizer`, on bf16 (without FusedAdam: its twin,  | 2 + 2 + 12                                |
|      | `FP16_UnfusedOptimizer`, whose norm leaves experts out)  |                                           |
| 1    | `DeepSpeedZeroOptimizer`, gradients whole                | 2 + 2 + 12 / n                            |
| 2    | `DeepSpeedZeroOptimizer`, gradients in parts             | 2 + 2 / n + 12 / n                        |

That of ZeRO 0 takes a step with gradients of zero when it is made, so that AdamW counts from one: its first updates
are smaller than those of the others. `BF16_Optimizer` is what it takes for ZeRO 1 with gradients that are summed in
float32 (`data_types: {grad_accum_dtype: fp32}`); no plan that is run asks for that.

`bf16` keeps all of it in bf16 (`bf16_master_weights_and_grads`, `bf16_optimizer_states`), which DeepSpeed does with
ZeRO 1 and 2; it still keeps a copy of the parameters as masters: 2 + 2 + 6 / n.

On a GPU AdamW is DeepSpeed's FusedAdam, which it compiles when first used, unless it was installed with it; on a CPU it
is torch's.
"""

from __future__ import annotations

from typing import Any

from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.optimizer import ADAMW, MAX_NORM


def configuration(run: TrainingRun, *, fused: bool) -> dict[str, Any]:
    """The document that `deepspeed.initialize` takes.

    Args:
        run: what is trained, in bf16 or (for comparisons) float32.
        fused: whether AdamW is DeepSpeed's fused one; else torch's.
    """
    return {
        "train_micro_batch_size_per_gpu": run.micro_batch,
        "gradient_accumulation_steps": run.micro_batches,
        "gradient_clipping": MAX_NORM,
        "bf16": _bf16(run),
        "zero_optimization": {"stage": run.parallel.zero_stage},
        "optimizer": {"type": "AdamW", "params": _adamw(run, fused)},
        "steps_per_print": None,  # else it prints, and waits for the device to know what
    }


def _bf16(run: TrainingRun) -> dict[str, bool]:
    enabled = run.dtype == "bfloat16"
    alone = enabled and run.precision == "bf16"
    return {"enabled": enabled, "bf16_master_weights_and_grads": alone, "bf16_optimizer_states": alone}


def _adamw(run: TrainingRun, fused: bool) -> dict[str, Any]:
    options = {name: value for name, value in ADAMW.items() if name != "fused"}
    return {"lr": run.lr, "torch_adam": not fused, **options}
