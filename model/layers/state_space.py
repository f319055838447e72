"""State-space mixers: Mamba-2 as `mamba_ssm` runs it, one call for convolution, scan and gate.

Sizes of a scan count what its kernels read and write (mamba_ssm, ops/triton/ssd_combined.py, 2.2), each tensor once a
kernel: inputs of heads, states at the end of every chunk, products of C and B in every chunk. They are priced as copies
of as many bytes, and behind these come the FLOPs of its products, which Triton's kernels do at a small part of what
tensor cores could (`_FLOPS_OF_A_CYCLE`): nobody measured them for this project, others' readings are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moemodel.model.architecture.spec import StateSpace
from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.moe_form import measured_layer
from moemodel.model.layers.base import Block, Component, Kept, LayerComm, LayerOp, MicroBatch, elementwise, linear
from moemodel.model.operators.work import Kind, Shape

_F = 4.0  # bytes of a float32 element
_ROUND = 2.0  # a tensor read and written
# Of the convolution with its activation: inputs, outputs. Backward forward again, inputs and two gradients
_CONVOLUTION, _CONVOLUTION_BACKWARD = 2.0, 2.0 + 3.0
# Tensors as wide as the inputs: chunk_state one; chunk_scan inputs, gate, two outputs. Backward chunk_state again;
# dz five (gate, output, its gradient; two gradients); dstates one; dx three; db, dC one each; dcb and ddA two each
_OF_INPUTS, _OF_INPUTS_BACKWARD = 1.0 + 4.0, 1.0 + 5.0 + 1.0 + 3.0 + 1.0 + 1.0 + 2.0 + 2.0
# States: of chunk_state, state_passing (two) and chunk_scan. Backward the first two again; of dstates one, of
# state_passing four, of dx, db and dC one each
_OF_STATES, _OF_STATES_BACKWARD = 1.0 + 2.0 + 1.0, 3.0 + 1.0 + 4.0 + 3.0
# Products of C and B, float32: of bmm_chunk and chunk_scan; backward again, dx, dcb and two products
_OF_PAIRS, _OF_PAIRS_BACKWARD = 2.0, 2.0 + 1.0 + 2.0
# FLOPs of its products (Dao and Gu 2024, section 6), with P the width of a head, N its states, Q tokens of a chunk.
# Of a token and head 2 P N each: forward the state of its chunk, and what comes of the state before it; backward the
# first again, gradients of states, of inputs, of B and of C. Q P each, half of a chunk's square: forward what its own
# chunk gives; backward gradients of inputs, of pairs and of decays. Of a token and group Q N each: products of C and B;
# backward again, and two of their gradients
_STATE_PRODUCTS, _STATE_PRODUCTS_BACKWARD = 2.0, 5.0
_CHUNK_PRODUCTS, _CHUNK_PRODUCTS_BACKWARD = 1.0, 3.0
_GROUP_PRODUCTS, _GROUP_PRODUCTS_BACKWARD = 1.0, 3.0
# How many of these an SM does in a cycle, of 4,096 that an H100's tensor cores could: forward and backward.
#   forward     five kernels on an H100 take 80 ns a token in the mean of 8,192 to 32,768 (vLLM, pull request 27299: 128
#               heads of 64, 128 states, one group, chunks of 256): 6.3 MFLOP behind 84 kB that a copy moves in 28 ns,
#               at 1.9 GHz
#   backward    Mamba-2 of 1.3B (48 layers of 64 such heads) trains at 102, 239 and 360 TFLOP/s on an A100, an H200 and
#               a GB200 (state-spaces/mamba, issue 904; 6 N FLOPs a token, four sequences of 4,096): less what all else
#               is predicted to take, 0.77, 0.37 and 0.31 us a token and layer are the scan's, of which 0.20, 0.06 and
#               0.04 move its bytes. At 1.41, 1.8 and 1.9 GHz that leaves 104, 124 and 115
_FLOPS_OF_A_CYCLE, _FLOPS_OF_A_CYCLE_BACKWARD = 480.0, 114.0
# Kernels that the host queues for a call of the scan: cumsum, chunk_state, state_passing, bmm_chunk, chunk_scan;
# backward the first four again, then dz, dstates, state_passing, dx, db, dC, dcb, two products, ddA, cumsum. Each is
# Triton's, of some forty arguments, and takes as long as four of torch's: of 1, 4, 7 and 10 the nearest to what two of
# Megatron-LM's functional tests of hybrid models took that the host bounds (commit d98e8a6, dev_dgx_h100, tp1_pp1 and
# tp1_pp4)
_TRITON = 4.0
_SCAN_KERNELS, _SCAN_KERNELS_BACKWARD = 5.0 * _TRITON, (4.0 + 11.0) * _TRITON
_OTHERS = 7.0  # norm, two products, convolution, norm, residual; D's or a step's bias, widened
_OTHERS_BACKWARD = 11.0  # two for each product and norm; the convolution again, and its own
# Beside six messages of context parallelism (Megatron-LM, ssm/mamba_context_parallel.py; tensor_parallel/mappings.py):
# each of their tensors copied and put in the other order (12); B and C repeated (2); all put side by side, and in the
# order of the sequence, and back behind the scan (3); the convolution's weights and biases of its heads (2). Backward
# the same of gradients (12), each made contiguous (6), sums of B's and C's (2), sides and orders (3), zeros and copies
# of five parameters' parts (18), three parts put together of two of them (2)
_CUT, _CUT_BACKWARD = 12.0 + 2.0 + 3.0 + 2.0, 12.0 + 6.0 + 2.0 + 3.0 + 18.0 + 2.0
_CUT_ROUNDS, _CUT_ROUNDS_OUT = 4.0, 2.0  # of what goes into the scan, and of what comes out


@dataclass(frozen=True, kw_only=True)
class StateSpaceBlock(Block):
    """A Mamba-2 mixer; tensor parallelism cuts heads and groups, context parallelism heads."""

    spec: StateSpace
    hidden: int

    # ---- parameters and FLOPs ---------------------------------------------------------------------------------------

    @property
    def _inner(self) -> int:
        """Outputs of the first product: gate, inputs, B, C, and a step of each head."""
        return self.spec.width + self.spec.convolved + self.spec.heads

    def parameters(self) -> Iterator[Component]:
        """With w = heads x head_dim, H (2 w + 2 groups state + heads) + w H of products, the convolution's kernels and
        biases, of each head A, D and the bias of its step, and the norm's w."""
        s = self.spec
        biases = (self._inner + self.hidden) * s.bias
        small = s.convolved * (s.kernel + s.conv_bias) + 3 * s.heads + s.width
        yield Component.of("state_space", self.matmul_parameters() + biases + small, "tp")

    def parameter_tensors(self) -> int:
        return 2 * (1 + self.spec.bias) + 1 + self.spec.conv_bias + 3 + 1

    def matmul_parameters(self) -> int:
        return self.hidden * self._inner + self.spec.width * self.hidden

    def core_flops(self, seq: FloatArray) -> FloatArray:
        """Of the recurrence: a state decays, takes an outer product and gives one, 7 FLOPs an element (Megatron-LM,
        training.py, mamba_layer_flops)."""
        return np.asarray(7.0 * self.spec.width * self.spec.state_dim * seq)

    # ---- operators --------------------------------------------------------------------------------------------------

    def operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        s, tokens, tp = self.spec, batch.tokens, batch.tp
        several = np.asarray(batch.sequences > 1, dtype=np.float64)  # batch and sequence change places, and back
        yield linear(tokens, self._inner / tp, self.hidden, bias=s.bias)
        yield elementwise(tokens * (self._inner / tp), _ROUND, (_ROUND,), mask=several)
        yield elementwise(tokens * (s.convolved / tp), _CONVOLUTION, (_CONVOLUTION_BACKWARD,))
        yield from self._scan(batch)
        if (batch.cp > 1).any():
            cut = (batch.cp > 1).astype(np.float64)
            rounds = _CUT_ROUNDS * (self._inner / tp) + _CUT_ROUNDS_OUT * (s.width / tp)
            yield elementwise(tokens * rounds, _ROUND, (_ROUND,), mask=cut)
        yield elementwise(tokens * (s.width / tp), _ROUND, (_ROUND,), mask=several)
        yield LayerOp(kind=Kind.RMS_NORM, shape=Shape(m=tokens * (s.groups / tp), n=s.width / s.groups))
        yield linear(tokens, self.hidden, s.width / tp, bias=s.bias)

    def _scan(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """Tensors of all kernels of the scan, and the cycles of its products."""
        inputs, states, pairs = self._elements(batch)
        there = _OF_INPUTS * inputs + _OF_STATES * states + _OF_PAIRS * pairs
        back = _OF_INPUTS_BACKWARD * inputs + _OF_STATES_BACKWARD * states + _OF_PAIRS_BACKWARD * pairs
        forward, backward = (flops * (batch.tokens / batch.tp) for flops in self._scan_flops())
        yield LayerOp(kind=Kind.COPY, shape=Shape(m=there / 2), sm_cycles=forward / _FLOPS_OF_A_CYCLE)
        yield LayerOp(
            kind=Kind.COPY,
            shape=Shape(m=back / 2),
            copies=(Shape(m=back / 2),),
            only_backward=True,
            sm_cycles=backward / _FLOPS_OF_A_CYCLE_BACKWARD,
        )

    def _scan_flops(self) -> tuple[float, float]:
        """Of a token's products forward and backward."""
        s = self.spec
        of_states, of_chunks = 2.0 * s.width * s.state_dim, float(s.chunk * s.width)
        of_groups = float(s.groups * s.chunk * s.state_dim)
        return (
            _STATE_PRODUCTS * of_states + _CHUNK_PRODUCTS * of_chunks + _GROUP_PRODUCTS * of_groups,
            _STATE_PRODUCTS_BACKWARD * of_states
            + _CHUNK_PRODUCTS_BACKWARD * of_chunks
            + _GROUP_PRODUCTS_BACKWARD * of_groups,
        )

    def _elements(self, batch: MicroBatch) -> tuple[FloatArray, FloatArray, FloatArray]:
        """16-bit elements of a micro-batch's inputs, of its states at the ends of chunks, of products of C and B."""
        s, tokens = self.spec, batch.tokens / batch.tp
        states = tokens / s.chunk * s.width * s.state_dim
        pairs = tokens * s.groups * s.chunk * (_F / 2)
        return tokens * s.width, states, pairs

    # ---- host -------------------------------------------------------------------------------------------------------

    def host_block(self) -> str:
        return "dense_layer"

    def forward_kernels(self, batch: MicroBatch) -> FloatArray:
        return np.asarray(_OTHERS + _SCAN_KERNELS + 2.0 * (batch.sequences > 1))

    def more_launches(self, batch: MicroBatch) -> tuple[FloatArray, FloatArray]:
        """Beyond half of the measured layer's, which a layer of one block is taken to be."""
        forward, backward = (each / 2 for each in measured_layer("dense_layer"))
        places, cut = 2.0 * (batch.sequences > 1), (batch.cp > 1).astype(np.float64)
        return np.asarray(self.forward_kernels(batch) + _CUT * cut - forward), np.asarray(
            places + _OTHERS_BACKWARD + _SCAN_KERNELS_BACKWARD + _CUT_BACKWARD * cut - backward
        )

    # ---- memory -----------------------------------------------------------------------------------------------------

    def kept(self, batch: MicroBatch) -> Iterator[Kept]:
        """What the first product gives, the scan's output, the norm's input and output: the rest runs again backward
        (mamba_split_conv1d_scan_combined)."""
        s, tokens, element_B = self.spec, batch.tokens / batch.tp, batch.element_size_B
        yield Kept(size_B=tokens * element_B * (self._inner + 2 * s.width))
        yield Kept(size_B=tokens * (batch.recipe.product_input_B * s.width + _F * s.groups))

    def passing_B(self, batch: MicroBatch) -> FloatArray:
        """The gradient of the norm's output."""
        return np.asarray(batch.element_size_B * batch.tokens * (self.spec.width / batch.tp))

    # ---- communication ----------------------------------------------------------------------------------------------

    def collectives(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """Context parallelism: sequences are put together and heads cut instead, of gate, inputs, B, C and steps one by
        one, and back behind the scan (Megatron-LM, ssm/mamba_context_parallel.py); each rank has a group's B and C."""
        s, cut = self.spec, (batch.cp > 1).astype(np.float64)
        pairs = np.maximum(s.groups / batch.tp, batch.cp) * s.state_dim
        inputs = np.asarray(s.width / batch.tp)
        for width in (inputs, inputs, pairs, pairs, np.asarray(s.heads / batch.tp), inputs):
            yield LayerComm(
                axis="cp",
                collective="all_to_all",
                size_B=batch.element_size_B * batch.tokens * width,
                forward=cut,
                backward=cut,
                overlap="never",
                launch="tensor_parallel",
                forward_launches=cut,
                backward_launches=cut,
            )
