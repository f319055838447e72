"""Megatron Core on the CPU, for tests of what this project makes of it: it asks for CUDA devices by name, streams and
generators, and gets the CPU's.

What it computes is the same; times mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode


class _OnCpu(TorchFunctionMode):
    """Tensors that are to be made on a GPU are made on the CPU, and say that they are on a GPU by their type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        if func is torch.Tensor.cuda:
            return args[0]
        out = func(*args, **kwargs)
        if func is torch.Tensor.type and isinstance(out, str):
            return out.replace("torch.", "torch.cuda.", 1)
        return out


class _Stream:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, _stream: Any) -> None:
        pass

    def record_event(self) -> Any:
        return SimpleNamespace(synchronize=lambda: None)


def _to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    del record_stream
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


@contextmanager
def megatron_on_cpu() -> Iterator[None]:
    """For as long as it lasts."""
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import token_dispatcher

    stream = _Stream()
    stands_in = {
        "current_device": lambda: torch.device("cpu"),
        "Stream": _Stream,
        "stream": lambda _stream: nullcontext(),
        "current_stream": lambda *_: stream,
        "get_rng_state": torch.get_rng_state,
        "manual_seed": lambda _seed: None,
        "synchronize": lambda *_: None,
    }
    with ExitStack() as stack:
        for name, value in stands_in.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(random, "_set_cuda_rng_state", lambda *_, **__: None))
        stack.enter_context(patch.object(random, "_get_cuda_rng_state", lambda *_, **__: torch.get_rng_state()))
        dispatcher = token_dispatcher.MoEAlltoAllTokenDispatcher
        stack.enter_context(patch.object(dispatcher, "cuda_dtoh_stream", None))  # made once a process
        stack.enter_context(patch.object(token_dispatcher, "maybe_move_tensor_to_cpu", _to_host))
        stack.enter_context(_OnCpu())
        yield
