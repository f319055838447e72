"""An architecture as a PyTorch module, built of the operators in `operators`.

What the profiler times operator by operator is what this model runs, so a prediction can be checked against it.
Choices that a prediction has to share:

- A norm comes before its block, in OPT-350M behind it and its residual; the operators are the same.
- Queries, keys, values and output are four products. Gate and up-projection are two in a dense block and one of
  width 2F in experts, of which `swiglu` reads the two halves in place.
- Learned positions are looked up for every token, as Hugging Face's models do.
- Activations between blocks are [T, D]. The head's logits are in the model's precision, the loss in float32.
- Routers have no loss unless a plan asks for one; the load is measured, not assumed.
- Weights depend on a seed and on each parameter's name alone, so that whoever holds a part of the model can draw it.

A rank of several builds the same modules for what it holds: some of the layers (`Span`), and of these a part
(`ShardingStrategy`).

Recompute. `full`: a layer keeps its input and runs again in the backward pass. `selective`: so it does, but for every
other product and the core of attention, whose outputs it keeps (torchtitan's `selective_ac_option: op`).

Shapes: T tokens (batch x seq), D hidden, B batch, H heads, G key/value heads, S seq, K head_dim, E experts, k experts
per token, F width, R = T k rows, V vocabulary, W embedding width.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.profiler.backends.torch_native.decoder import DecoderModel, Span
from moemodel.profiler.backends.torch_native.encoder_decoder import EncoderDecoderModel
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.mixture import reference_shapes
from moemodel.profiler.backends.torch_native.supported_models import check_routing, check_supported

__all__ = [
    "DecoderModel",
    "Span",
    "build_model",
    "draw",
    "has_small_embedding",
    "initialise",
    "model_of",
    "reference_weights",
]

_INIT_STD = 0.02  # GPT-2 (Radford et al. 2019) and most models since


def model_of(architecture: Architecture, making: Making) -> DecoderModel:
    """A whole model, on whatever device is the default, its parameters not filled."""
    return (EncoderDecoderModel if architecture.encoder else DecoderModel)(architecture, making)


def build_model(
    architecture: Architecture,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    making: Making | None = None,
    seed: int = 0,
) -> DecoderModel:
    """A model with fresh weights; see `draw`.

    Args:
        architecture: with or without an encoder.
        device: where its parameters are allocated; never on the host first.
        dtype: of parameters and activations.
        making: how its layers are made; None: without recompute, by the routers of the architecture.
        seed: of the weights.

    Raises:
        InputError: the architecture has a part that this backend does not run.
    """
    making = making or Making()
    check_supported(architecture)
    check_routing(architecture, making.routing)
    with torch.device("meta"):
        model = model_of(architecture, making)
    model = model.to(dtype=dtype).to_empty(device=device)
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: DecoderModel, seed: int) -> None:
    """Fill every parameter of a model that is whole.

    A block of another framework gets the weights that `Mixture` would have.
    """
    for name, parameter in model.named_parameters():
        draw(parameter, name, seed, tied=has_small_embedding(model.architecture))
    for number, _, layer in model.numbered_layers():
        foreign = getattr(layer.feed_forward, "load_reference", None)
        if foreign is not None:
            foreign(*reference_weights(model, number, seed))


def has_small_embedding(architecture: Architecture) -> bool:
    """Whether the embedding is the head's as well, unscaled (T5 scales it)."""
    return architecture.tied and not architecture.encoder


def reference_weights(model: DecoderModel, number: int, seed: int) -> list[Tensor]:
    """Weights of a Mixture-of-Experts block as `Mixture` has them: router [E, D], up [E, D, F or 2F], down [E, F, D].

    Args:
        model: on the device that the weights shall be on, in their precision.
        number: of the layer, which is there, in `Architecture.layers`.
        seed: of the model.
    """
    name_of_layer = {n: name for n, name, _ in model.numbered_layers()}[number]
    block = model.architecture.layers[number].feed_forward
    assert isinstance(block, Moe)
    like = next(model.parameters())
    weights = []
    for name, shape in reference_shapes(block, model.architecture.hidden).items():
        weights.append(torch.empty(shape, dtype=like.dtype, device=like.device))
        draw(weights[-1], f"{name_of_layer}.feed_forward.{name}", seed, tied=False)
    return weights


@torch.no_grad()
def draw(parameter: Tensor, name: str, seed: int, *, tied: bool) -> None:
    """Fill a parameter: matrices normal with deviation 0.02, norms one, biases zero.

    The values depend on the seed, the name and the shape, and on no other parameter.

    An embedding of its own (not the head's as well) gets unit variance, PyTorch's default: beside it the first
    layers' output, much the same for every token, is small, so that tokens differ where routers see them. With a small
    one, a router sends every token to the same experts.

    Args:
        parameter: whole, in its own precision.
        name: in the whole model.
        seed: of the model.
        tied: whether the embedding is the head's as well (`has_small_embedding`).
    """
    if parameter.dim() > 1:
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()  # a seed has less than 64 bits
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest))
        std = 1.0 if name == "embedding_VW" and not tied else _INIT_STD
        nn.init.normal_(parameter, std=std, generator=generator)
    elif name.endswith("bias"):
        nn.init.zeros_(parameter)
    else:
        nn.init.ones_(parameter)
