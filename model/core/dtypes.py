"""Types of numbers that tensor cores and SIMD pipes compute with.

fp8, fp6 and fp4 are operands of that width, however a kernel scales them. mxfp8 and nvfp4 are formats whose scales of
blocks (32 and 16 elements) the tensor cores apply themselves; a GPU that computes in fp8 need not have them.
"""

from __future__ import annotations

from typing import Literal

Dtype = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "mxfp8", "fp6", "fp4", "nvfp4"]
