"""A run's part of a GPTModel on this rank, with the torch backend's weights."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn
from torch.nn import functional

from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.megatron_core.groups import own_part
from moemodel.profiler.backends.megatron_core.layer_specs import block_spec
from moemodel.profiler.backends.megatron_core.projected import replace_ends
from moemodel.profiler.backends.megatron_core.settings import model_settings, transformer_settings
from moemodel.profiler.backends.megatron_core.versions import kernels
from moemodel.profiler.backends.megatron_core.weights import drawn, fill

_ACTIVATIONS = {"gelu": functional.gelu, "relu": functional.relu, "silu": functional.silu}


def transformer_config(run: TrainingRun) -> TransformerConfig:
    """The configuration of all layers."""
    settings = transformer_settings(run, kernels())
    dtype: torch.dtype = getattr(torch, run.dtype)
    return TransformerConfig(
        **settings | {"activation_func": _ACTIVATIONS[settings["activation_func"]]},
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
    )


def block_specs_of(run: TrainingRun, config: TransformerConfig, vp_stage: int | None = None) -> Any:
    """Specifications of this rank's layers."""
    return block_spec(run.architecture, config, kernels(), vp_stage)


def build_chunks(run: TrainingRun, config: TransformerConfig, device: torch.device) -> list[nn.Module]:
    """This rank's layers, a chunk a virtual stage, in bfloat16 in Megatron's wrapper."""
    stages: list[int | None] = list(range(run.parallel.virtual_stages)) if run.parallel.virtual_stages > 1 else [None]
    return [_chunk(run, config, device, stage) for stage in stages]


def decoder_layers(chunk: nn.Module) -> list[Any]:
    """The `TransformerLayer`s of a chunk, in whatever wrappers it is."""
    model: Any = chunk
    while hasattr(model, "module"):
        model = model.module
    return list(model.decoder.layers)


def _chunk(run: TrainingRun, config: TransformerConfig, device: torch.device, vp_stage: int | None) -> nn.Module:
    ends = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
    model: nn.Module = GPTModel(
        config=config,
        transformer_layer_spec=block_specs_of(run, config, vp_stage),
        pre_process=parallel_state.is_pipeline_first_stage(**ends),
        post_process=parallel_state.is_pipeline_last_stage(**ends),
        parallel_output=True,
        vp_stage=vp_stage,
        **model_settings(run),
    ).to(device)
    replace_ends(model, run.architecture, config)
    layers = decoder_layers(model)
    first = layers[0].layer_number - 1 if layers else 0
    whole = drawn(run.seed, tied=run.architecture.tied, device=device, dtype=config.params_dtype)
    fill(model, run.architecture, own_part(), whole, first_layer=first)
    if not config.bf16:
        return model
    wrapped: nn.Module = Float16Module(config, model)
    return wrapped
