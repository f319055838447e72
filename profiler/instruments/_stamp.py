"""The stamp kernel, in a file of its own: Triton reads its source, and importing it needs Triton."""

# No `from __future__ import annotations`: Triton reads `tl.constexpr`-style annotations as objects.
import torch
import triton
import triton.language as tl


@triton.jit
def _stamp(out):  # type: ignore[no-untyped-def]
    pid = tl.program_id(0)
    cycles = tl.inline_asm_elementwise("mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)
    time_ns = tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)
    sm = tl.inline_asm_elementwise("mov.u32 $0, %smid;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    tl.store(out + pid * 3, cycles)
    tl.store(out + pid * 3 + 1, time_ns)
    tl.store(out + pid * 3 + 2, sm.to(tl.int64))


def launch_stamp(buffer: torch.Tensor, programs: int) -> None:
    """Queue one stamp: (cycles, ns, SM) of each program into `buffer`, 3 * programs int64."""
    _stamp[(programs,)](buffer)
