"""Which text, or which made-up tokens, a run trains on: the part `data` of a run document. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from moemodel.model.core.documents import Strict

Source = Literal["corpus", "synthetic", "c4", "dataset"]


class DataSpec(Strict):
    """What sequences are made of.

    Attributes:
        source: `corpus`: the small text that Python itself carries; `synthetic`: made-up tokens; `c4`: shards
            of C4 (`*.json.gz`) from `path`; `dataset`: any text that `datasets` loads.
    """

    source: Source = "corpus"
    path: Path | None = Field(default=None, description="of c4: a shard, or a folder of shards")
    name: str | None = Field(default=None, description="of dataset: as `datasets.load_dataset` takes it")
    split: str = Field(default="train", description="of dataset: as `datasets.load_dataset` takes it")
    column: str = Field(default="text", description="of dataset: the column that holds the text")
    zipf_exponent: Annotated[float, Field(ge=0.0, le=10.0, strict=True)] = Field(
        default=1.0, description="of synthetic: frequency falls with rank to this power; 0: uniform"
    )
    tokenizer: str | None = Field(
        default=None,
        description="words: the text's words by frequency; bytes; or a tokenizer.json, or its name for `tokenizers`; "
        "null: words",
    )
    tokens: Annotated[int, Field(gt=0, le=1 << 30, strict=True)] = Field(
        default=1 << 22, description="of text: read at most so many; longer runs see them again"
    )

    def read_in(self, folder: Path) -> DataSpec:
        """The same, its path relative to a folder."""
        return self if self.path is None else self.model_copy(update={"path": (folder / self.path).resolve()})
