"""DeepSpeed as this project runs it: its MoE layer and its ZeRO, in the torch backend's model."""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.torch_native import TORCH

DEEPSPEED = replace(TORCH, name="deepspeed")
