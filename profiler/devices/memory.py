"""Give memory of a device back: what only the cycle collector finds, and what torch's allocator keeps for later."""

from __future__ import annotations

import gc

import torch


def make_room(device: torch.device) -> None:
    """Free what only the cycle collector finds (optimizers refer to themselves), and the allocator's cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> None:
    """Give back what no tensor uses, so that a run starts with a clean allocator."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        # Else the first run alone would be charged for cuBLAS's workspaces.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
