"""Learned biases of attention scores by relative position, one a head and bucket of distances, shared by a stack.

Raffel et al. 2020 (arXiv:1910.10683), section 2.1; the buckets are those of their code (mesh_tensorflow,
`_relative_position_bucket`): half of them for one distance each, the others logarithmically up to 128 tokens, beyond
which all are one. An encoder splits them between keys before and behind the query, a decoder has keys before alone.

Shapes: Q queries, S keys, U buckets, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_FARTHEST = 128  # T5's `relative_attention_max_distance`


def buckets(queries: int, keys: int, number: int, *, causal: bool, device: torch.device) -> Tensor:
    """Bucket of each query and key [Q, S]."""
    key_S, query_Q = torch.arange(keys, device=device), torch.arange(queries, device=device)
    behind_QS = key_S - query_Q.unsqueeze(1)
    if causal:
        return _by_distance(-behind_QS.clamp(max=0), number)
    half = number // 2
    return _by_distance(behind_QS.abs(), half) + half * (behind_QS > 0)


def _by_distance(distance_QS: Tensor, number: int) -> Tensor:
    exact = number // 2
    share_QS = torch.log(distance_QS.clamp(min=1).float() / exact) / math.log(_FARTHEST / exact)
    far_QS = exact + (share_QS * (number - exact)).long()
    return torch.where(distance_QS < exact, distance_QS, far_QS.clamp(max=number - 1))


def position_bias(table_UH: Tensor, bucket_QS: Tensor, *, causal: bool) -> Tensor:
    """What is added to scores [1, H, Q, S]; keys behind a causal query are out of its sight."""
    bias_HQS = functional.embedding(bucket_QS, table_UH).permute(2, 0, 1)
    if causal:
        unseen_QS = torch.ones_like(bucket_QS, dtype=torch.bool).triu(1)
        bias_HQS = bias_HQS.masked_fill(unseen_QS, float("-inf"))
    return bias_HQS.unsqueeze(0)
