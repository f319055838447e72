"""FastMoE: its Mixture-of-Experts layer and data parallelism, in the torch backend's model.

What version 1.1.0 does, for predictions. Operators of torch were counted by running its layer on a CPU, with its CUDA
functions stood in for; those, and where the host waits, are read from its source, named in brackets.

Letters: T tokens of a micro-batch here, D hidden, F width, E experts, L of them here, k experts a token, R = T k
rows; activations of 2 B.

A layer's forward pass (fmoe/layers.py, fmoe/functions.py, cuda/):

- Gate, the naive one: a product [T, D] x [D, E] in bf16, top k, softmax of the k; a loss of zero is copied from the
  host.
- Counting: a kernel of one block for up to 256 experts, which goes over all R rows (`expert_count_kernel`), casts, a
  cumsum, `assign_pos` with atomics. The host waits five times (`prepare_forward`).
- Permute: a gather to [R, D], not padded (`_local_scatter`).
- Exchange with ep > 1: counts first; then L groups of ncclSend and ncclRecv, one an expert, of exactly the rows;
  twice forward, twice backward; nothing runs meanwhile (global_exchange.h).
- Experts: one after another, as in `FMoETransformerMLP`: gate, up, silu, product, down; then a copy of all outputs.
  Each product waits for the device before and behind it, forward and backward: six waits an expert in each direction,
  in which the GPU idles (`expert_fn`, parallel_linear.cuh).
- Unpermute: zeros, `index_copy_`, and a batched product [1, k] x [k, D] of each token (`MOEGather`, `FMoE`).

| of a layer, gated experts  | forward  | backward  |
| -------------------------- | -------- | --------- |
| kernels                    | 19 + 5 L | 11 + 13 L |
| of these, products         | 1 + 3 L  | 2 + 6 L   |

In the backward pass three of an expert's kernels are on [R, D], however few its rows: the gradient of its slice is a
tensor of zeros with a copy in it, which is added to those of the others, 8 R D bytes to and from memory for each
expert.

Bytes of a layer. Kept for the backward pass: 4 R D + 8 R F + 16 R. Outside torch's allocator: workspaces of cuBLAS
handles of its own.

Data parallelism: behind the last backward pass, one all-reduce of all gradients of a type and a group, flattened (a
copy), divided and copied back, in their own type (`DistributedGroupedDataParallel`). Optimizer and clipping are
torch's.
"""
