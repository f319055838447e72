"""Nanotron on 8 to 512 H100 (Hugging Face's Ultra-Scale Playbook): plans of two models, and which ran out of memory.

Runs of one job are those of a model on as many GPUs with the same sequences a step. Plans with a pipeline count where
they ran after its memory was mended (`after_pp_fix`). World rank 0, on the first stage, writes what its allocator has
reserved (nanotron/helpers.py, write_to_csv); what it has given out is counted behind the last reset, in the optimizer's
step (logging/base.py, log_memory), and says nothing of the peak. The machines are AWS's p5 (Ultra-Scale Playbook, "our
cluster"), whose EFA gives 3,200 Gb/s to eight GPUs.

Before it trains a run measures its links, by collectives of 1 GiB (branch nouamane/bench2, trainer.py,
`measure_bandwidth`). By these there are three kinds of runs: those whose collectives take what EFA takes; those where
all three take 0.3 ms for each rank, as where torch checks every collective beforehand (the author's launch script, as
it was published in March 2025, asks for TORCH_DISTRIBUTED_DEBUG=DETAIL: commit 77f54c1), told by the all-gather inside
a node; and ten whose links inside a node have a sixth of NVLink's rate, as without NCCL's peer-to-peer, which a plan
cannot say: their times are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from studies.public.models import llama
from studies.public.run import PublicRun, plan_or_refusal

NANOTRON = "nanotron/plans.csv"
_GiB = 2.0**30
# Of an all-gather of 1 GiB over the GPUs of a node, which reached 263 in some runs, 242 in others that take another 0.3
# ms, hardly anything between, and 42 in ten
_CHECKED_GBps, _BROKEN_GBps = 253.0, 100.0
_LINK = "AG Intra-node (GB/s)"
_MODEL = ("hidden_size", "num_layers")


def nanotron(folder: Path) -> list[PublicRun]:
    """All rows that can be used."""
    table = pd.read_csv(folder / NANOTRON)
    # those that ran out of memory don't say: as all of the model that ran
    for column in ("num_kv_heads", "tie_word_embeddings"):
        known = table.dropna(subset=[column]).groupby(list(_MODEL))[column].first()
        missing = table[column].isna()
        table.loc[missing, column] = [known.get(tuple(row)) for row in table.loc[missing, list(_MODEL)].to_numpy()]
    usable = table[(table["pp"] == 1) | table["after_pp_fix"]]
    return list(_runs(usable.to_dict("records")))


def _runs(records: list[dict[Any, Any]]) -> Iterator[PublicRun]:
    for r in records:
        dp, tp, pp, micro_batch = (int(r[key]) for key in ("dp", "tp", "pp", "mbs"))
        gpus, batch, ran = dp * tp * pp, micro_batch * dp * int(r["batch_accum"]), r["status"] == "Success"
        timed = ran and not r[_LINK] < _BROKEN_GBps
        time_s = batch * int(r["seq_len"]) / (gpus * float(r["tok/s/gpu"])) if timed else np.nan
        yield PublicRun(
            label=f"{r['hidden_size']} dp{dp} tp{tp} pp{pp} zero{r['zero_stage']} mb{micro_batch}",
            plans=(plan_or_refusal(_document(r, gpus, batch)),),
            time_s=(time_s,) if timed else (),
            memory_B=float(r["Mem Res (GB)"]) * _GiB,
            of_memory="reserved",
            stage=0,
            ran=ran,
            job=f"{r['hidden_size']} on {gpus} GPUs, {batch} sequences",
        )


def _document(r: Mapping[Any, Any], gpus: int, batch: int) -> dict[str, Any]:
    hidden, heads, tp = int(r["hidden_size"]), int(r["num_heads"]), int(r["tp"])
    architecture = llama(
        hidden=hidden,
        layers=int(r["num_layers"]),
        heads=heads,
        kv_heads=int(r["num_kv_heads"]),
        width=int(r["interm_dim"]),
        vocab=int(r["vocab_size"]),
        tied=bool(r["tie_word_embeddings"]),
    )
    return {
        "architecture": architecture,
        "sequence_length": int(r["seq_len"]),
        "global_batch": batch,
        "micro_batch": int(r["mbs"]),
        "backend": "nanotron",
        "collective_checks": bool(_BROKEN_GBps < r[_LINK] < _CHECKED_GBps),
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": gpus, "internode": "efa-p5"},
        "parallel": {
            "dp": int(r["dp"]),
            "tp": tp,
            "pp": int(r["pp"]),
            "zero_stage": int(r["zero_stage"]),
            "sequence_parallel": tp > 1,  # tp_mode REDUCE_SCATTER
        },
    }
