"""FastMoE as this project runs it: its MoE layer in the torch backend's model."""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.torch_native import TORCH

FASTMOE = replace(TORCH, name="fastmoe")
