"""What a plan keeps on the host instead of on its GPUs: the optimizer, with what it keeps, or activations."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from moemodel.model.core.documents import Strict, Switch

Share = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
Bandwidth = Annotated[float, Field(gt=0.0, le=1e6, strict=True)]

# Of a GPU's eighth of a host: two sockets of eight channels of DDR5-4800 are 614 GB/s by data sheet (DGX H100: Intel
# Xeon Platinum 8480C), of which 0.8 is assumed to be reached
_HOST_MEMORY_GBPS = 61.0


class OffloadSpec(Strict):
    """Shares of what is kept on the host, and how fast that is."""

    optimizer: Share = Field(default=0.0, description="share of the parameters that the host updates")
    activations: Share = Field(default=0.0, description="share of what layers keep for their backward passes")
    overlap: Switch = Field(
        default=True, description="gradients come, the host updates and parameters go beside each other"
    )
    link_GBps: Bandwidth | None = Field(
        default=None, description="of a GPU to its host, either way; null: of PCI Express, by the GPU's description"
    )
    host_memory_GBps: Bandwidth = Field(
        default=_HOST_MEMORY_GBPS, description="of the host's memory, a GPU's part of it"
    )

    @model_validator(mode="after")
    def _something(self) -> OffloadSpec:
        if not (self.optimizer or self.activations):
            raise ValueError("allowed: null, or a share of optimizer or activations above 0")
        return self
