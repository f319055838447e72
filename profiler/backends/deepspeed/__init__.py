"""DeepSpeed: its Mixture-of-Experts layer and its engine, in the torch backend's model.

What version 0.19.8 does, for predictions. Operators were counted by running its layer on a CPU (every aten call but
views, which is about a kernel each); the rest is read from its source, named in brackets.

Letters: T tokens of a micro-batch here, D hidden, F width, E experts, L of them here, k experts a token, R = T k
rows, C rows that an expert's buffer holds; activations of 2 B.

A layer's forward pass (moe/sharded_moe.py, moe/experts.py):

- Gate: x to float32 [T, D]; a product [T, D] x [D, E] in float32, which torch does not round to TF32 by default;
  softmax, top k, masks and a cumsum on [T, E]; the balance loss, whatever its coefficient (`TopKGate`, `topkgating`).
- Capacity. Dropless: C = rows of the busiest expert, with ep the largest over its ranks (an all-reduce of one
  number); then the host waits for it. With a factor: C = max(ceil(T k factor / E), 4), known to the host. Every
  expert has C rows either way, so that E C rows are computed and not R (`_capacity`, `MOELayer`).
- Dispatch: a copy of x with a row of zeros, and a gather to [E C, D]. There is no einsum any more (`_sparse_encode`).
- All-to-all with ep > 1: two, and two in the backward pass, of the padded buffer, E C D elements in equal parts;
  nothing runs meanwhile (`_AllToAll`).
- Experts: one after another, ep C rows each: gate, up, silu, product, down; then a copy of all outputs. With ep > 1
  each of gate and up copies its input first (`Experts`).
- Combine: a copy with a row of zeros, a gather to [k, T, D], times the weights in float32, summed over k, cast
  (`_sparse_decode`).

Backward: both gathers are index_add with atomics: of R rows into [E C + 1, D], and of E C rows into [T + 1, D], where
all padding adds to one row.

| operators, gated experts | forward, ep 1 | backward, ep 1 | forward, ep > 1 | backward, ep > 1 |
| ------------------------ | ------------- | -------------- | --------------- | ---------------- |
| k >= 3, dropless         | 59 + 5 L      | 36 + 10 L      | 62 + 7 L        | 38 + 11 L        |
| k >= 3, with a capacity  | 65 + 5 L      | 36 + 10 L      | 67 + 7 L        | 38 + 11 L        |
| k = 2, dropless          | 80 + 5 L      | 53 + 10 L      |                 |                  |
| k = 2, with a capacity   | 83 + 5 L      | 53 + 10 L      |                 |                  |
| k = 1, dropless          | 67 to 71 + 5 L | 21 + 10 L     |                 |                  |
| k = 1, with a capacity   | 61 + 5 L      | 21 + 10 L      |                 |                  |

Bytes of a layer. Kept for the backward pass: 4 T D (x in float32) + 2 E C D (dispatched rows; 4 E C D with ep > 1) +
8 E C F + 2 R D (gathered outputs) + 8 E C + 20 R + 13 T E. Transient: 4 R D forward, 10 R D backward.

The engine (runtime/engine.py, runtime/zero/stage_1_and_2.py, runtime/fp16/fused_optimizer.py); n ranks hold the same:

- Gradients, in bf16 on the wire. ZeRO 0: all-reduced behind the last backward pass, in flat copies of up to 5e8
  elements (`buffered_allreduce_fallback`). ZeRO 1: behind the last one, ZeRO 2: in every one, in buckets that are
  all-reduced, not reduce-scattered (`allreduce_and_scatter`). Nothing overlaps: `overlap_comm` is off by default.
- Bucket of ZeRO 1 and 2: 5e8 elements, 1 GB in bf16, whatever the model's size, from the first gradient of a step to
  the end of the reduction (`setup_buckets`).
- Parameters: with ZeRO 1 and 2 all-gathered behind the step, in bf16.
- Norm: with ZeRO 0 of float32 copies, with 1 and 2 of a float64 copy of each gradient (`get_grad_norm_direct`).
- Kernels for each parameter, of which an expert has three, queued one by one by the host: ZeRO 0: a copy behind the
  reduction; in the step 12 that ask whether its gradient is finite, for whose answer the host waits, a copy to
  float32 and one of the master back. ZeRO 1: two copies in the reduction, ZeRO 2: one; in the step 13 for finiteness,
  a copy to float64, a norm. Counted, with one rank too: everything runs as with several
  (`CheckOverflow.has_overflow_serial`, `has_overflow_partitioned_grads_serial`).
- From the third step on the host waits for the device before every forward pass and behind every micro-batch: its
  throughput timer does, which is on by default and left so here (utils/timer.py, `ThroughputTimer`).
- Transient in the step: ZeRO 0: 4 B a parameter, and 4 of the largest group's; ZeRO 1 and 2: 6 / n B of a group at a
  time. Groups: all but experts; experts, at most 178,956,971 parameters each (moe/utils.py). What is kept:
  `configuration`.
"""
