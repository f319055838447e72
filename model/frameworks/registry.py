"""The frameworks that are known, by the name that a plan's `backend` gives, and what they were called before."""

from __future__ import annotations

from dataclasses import dataclass

from moemodel.model.core.suggest import unknown
from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.frameworks.deepspeed import DEEPSPEED, DEEPSPEED_EINSUM
from moemodel.model.frameworks.fastmoe import FASTMOE
from moemodel.model.frameworks.framework_file import names_framework_file, read_framework
from moemodel.model.frameworks.fsdp import FSDP, FSDP_1_13
from moemodel.model.frameworks.megatron_core import MEGATRON_CORE, MEGATRON_CORE_LOCAL
from moemodel.model.frameworks.megatron_deepspeed import MEGATRON_DEEPSPEED
from moemodel.model.frameworks.megatron_lm import (
    MEGATRON_LM,
    MEGATRON_LM_2021,
    MEGATRON_LM_LOCAL,
    MEGATRON_LM_OVERLAPPED,
)
from moemodel.model.frameworks.nanotron import NANOTRON
from moemodel.model.frameworks.nemo import NEMO
from moemodel.model.frameworks.torch_native import TORCH
from moemodel.model.frameworks.torchtitan import TORCHTITAN, TORCHTITAN_0_2
from moemodel.model.frameworks.transformers import TRANSFORMERS

FRAMEWORKS: dict[str, Framework] = {
    framework.name: framework
    for framework in (
        TORCH,
        DEEPSPEED,
        DEEPSPEED_EINSUM,
        FASTMOE,
        FSDP,
        FSDP_1_13,
        MEGATRON_LM,
        MEGATRON_LM_2021,
        MEGATRON_LM_LOCAL,
        MEGATRON_LM_OVERLAPPED,
        MEGATRON_CORE,
        MEGATRON_CORE_LOCAL,
        MEGATRON_DEEPSPEED,
        NANOTRON,
        NEMO,
        TORCHTITAN,
        TORCHTITAN_0_2,
        TRANSFORMERS,
    )
}


@dataclass(frozen=True, kw_only=True)
class FormerName:
    """A name that held a precision too: the framework that it means, in that precision."""

    framework: str
    precision: Precision


FORMER_NAMES: dict[str, FormerName] = {
    "megatron-core-fp8": FormerName(framework="megatron-core", precision="fp8"),
    "megatron-deepspeed-fp32": FormerName(framework="megatron-deepspeed", precision="fp32"),
}


def framework_of(name: str) -> Framework:
    """A framework by its name, by a former one, or by the file that describes it.

    Raises:
        InputError: unknown; names the known ones. Or what is wrong with the file.
    """
    if names_framework_file(name):
        return read_framework(name, FRAMEWORKS)
    former = FORMER_NAMES.get(name)
    known = name if former is None else former.framework
    if known not in FRAMEWORKS:
        raise unknown("backend", name, FRAMEWORKS, aliases=FORMER_NAMES)
    return FRAMEWORKS[known]


def frameworks_with(precision: Precision) -> list[str]:
    """Names of the frameworks that train in a precision."""
    return [name for name, framework in FRAMEWORKS.items() if precision in framework.precisions]
