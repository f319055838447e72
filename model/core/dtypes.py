"""Types of numbers that tensor cores and SIMD pipes compute with."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp4"]
