"""Megatron-DeepSpeed's pretrain_gpt.py: its arguments from a run, its files, and its log.

Sources: deepspeedai/Megatron-DeepSpeed at 4efb479 (2025-07-16): megatron/arguments.py (names of arguments),
examples_deepspeed/MoE/ds_pretrain_gpt_125M_MoE64.sh and ds_config_gpt_TEMPLATE.json (how they go together),
megatron/training.py, `training_log` (the log's lines), megatron/data/indexed_dataset.py (the data's files).

On a GPU it imports apex whatever its arguments are (megatron/optimizer/__init__.py, model/fused_layer_norm.py), and it
compiles its own helpers when it starts, with a C++ compiler.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.arrays import IntArray
from moemodel.model.core.errors import InputError, MissingExtraError
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.external import Command, ExternalStep
from moemodel.profiler.backends.megatron_deepspeed.supported_plans import expert_interval

NAME = "Megatron-DeepSpeed"
VARIABLE = "MOEMODEL_MEGATRON_DEEPSPEED"  # of the environment: the checkout
_PROGRAM = "pretrain_gpt.py"
_CONFIG, _DATA = "deepspeed.json", "tokens"
_MAX_NORM = 1.0  # GPT-3 (Brown et al. 2020, appendix B), as the torch backend's; so are the figures of the optimizer
_DOCUMENTS = 64  # that the tokens are cut into, at most; assumed: enough for its shuffling of documents to do something


def checkout_of(text: str | None = None) -> Path:
    """The checkout that a user names, in a run document or in the environment.

    Args:
        text: as the document says; None: nothing.

    Raises:
        MissingExtraError: none is named, or the folder is none; how to name one.
    """
    named = text or os.environ.get(VARIABLE)
    if not named:
        raise MissingExtraError(
            f"the backend megatron-deepspeed needs a checkout of {NAME}, and none is named; set {VARIABLE} to its "
            "folder, the one that holds pretrain_gpt.py"
        )
    folder = Path(named)
    if not (folder / _PROGRAM).is_file():
        raise MissingExtraError(
            f"the backend megatron-deepspeed: found {named!r} as the checkout of {NAME}; allowed: a folder that holds "
            f"{_PROGRAM}"
        )
    return folder


# ---- what it is told ------------------------------------------------------------------------------------------------


def command(run: TrainingRun, checkout: Path, folder: Path, *, iterations: int) -> Command:
    """What trains a run on the GPUs of this node.

    Args:
        run: supported by `supported_plans.check_runs`.
        checkout: of the program.
        folder: of the run, with what `prepare` wrote.
        iterations: steps, those of the warm-up among them.
    """
    p = run.parallel
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={p.dp * p.tp * p.pp}")
    return Command(
        argv=(*launcher, str(checkout / _PROGRAM), *arguments(run, folder, iterations=iterations)),
        environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},  # arguments.py wants it of sequence parallelism
        folder=folder,
    )


def arguments(run: TrainingRun, folder: Path, *, iterations: int) -> list[str]:
    """Arguments of pretrain_gpt.py.

    Args:
        run: see `command`.
        folder: of the run.
        iterations: steps.
    """
    flags: dict[str, Any] = {
        **_model(run),
        **_products(run.architecture),
        **_experts(run),
        **_parallel(run),
        **_training(run, iterations),
        **_data(run, folder),
        "--deepspeed": True,
        "--deepspeed_config": folder / _CONFIG,
    }
    said = {name: value for name, value in flags.items() if value is not None and value is not False}
    return [part for name, value in said.items() for part in ((name,) if value is True else (name, str(value)))]


def _model(run: TrainingRun) -> dict[str, Any]:
    architecture, layer = run.architecture, run.architecture.decoder[0]
    (attention,) = layer.attentions
    return {
        "--num-layers": len(architecture.decoder),
        "--hidden-size": architecture.hidden,
        "--ffn-hidden-size": layer.own_feed_forward.width,
        "--num-attention-heads": attention.heads,
        "--num-key-value-heads": attention.kv_heads,
        "--kv-channels": attention.head_dim,
        "--seq-length": run.seq,
        "--max-position-embeddings": architecture.learned_positions or run.seq,
        "--use-rotary-position-embeddings": attention.rotary,
        "--normalization": "rmsnorm" if layer.norm == "rms" else "layernorm",
        "--untie-embeddings-and-output-weights": not architecture.tied,
    }


def _products(architecture: Architecture) -> dict[str, Any]:
    block = architecture.decoder[0].own_feed_forward
    return {
        "--swiglu": block.gated,
        "--disable-bias-linear": not block.bias,
        "--attention-dropout": 0.0,
        "--hidden-dropout": 0.0,
        "--no-query-key-layer-scaling": True,
        # it wants the kernel of apex and then leaves the call out (core/tensor_parallel/layers.py)
        "--no-gradient-accumulation-fusion": True,
    }


def _experts(run: TrainingRun) -> dict[str, Any]:
    block = next((b for layer in run.architecture.decoder if isinstance(b := layer.own_feed_forward, Moe)), None)
    if block is None:
        return {}
    capacity = block.capacity_factor
    return {
        "--num-experts": block.experts,
        "--expert-interval": expert_interval(run.architecture),
        "--topk": block.top_k,
        "--mlp-type": "residual" if run.routing.residual else "standard",
        "--moe-loss-coeff": run.routing.balance_loss,
        "--moe-train-capacity-factor": capacity,
        "--disable-moe-token-dropping": capacity is None,
        "--moe-expert-parallel-size": run.parallel.ep,
        "--create-moe-param-group": True,
    }


def _parallel(run: TrainingRun) -> dict[str, Any]:
    p = run.parallel
    return {
        "--tensor-model-parallel-size": p.tp,
        "--pipeline-model-parallel-size": p.pp,
        "--no-pipeline-parallel": p.pp == 1,
        "--sequence-parallel": p.sequence_parallel and p.tp > 1,
        "--zero-stage": p.zero_stage,
        "--checkpoint-activations": run.recompute == "full",
        "--deepspeed-activation-checkpointing": run.recompute == "full",
    }


def _training(run: TrainingRun, iterations: int) -> dict[str, Any]:
    return {
        "--micro-batch-size": run.micro_batch,
        "--global-batch-size": _global_batch(run),
        "--train-iters": iterations,
        "--log-interval": 1,
        "--eval-iters": 0,
        "--eval-interval": iterations + 1,
        "--lr": run.lr,
        "--min-lr": run.lr,
        "--lr-decay-style": "constant",
        "--weight-decay": 0.1,
        "--clip-grad": _MAX_NORM,
        "--adam-beta1": 0.9,
        "--adam-beta2": 0.95,
        "--seed": run.seed or 1234,  # its own default: a seed of 0 is refused (initialize.py, `_set_random_seed`)
        "--bf16": run.precision == "bf16-mixed",
    }


def _data(run: TrainingRun, folder: Path) -> dict[str, Any]:
    return {
        "--data-path": folder / _DATA,
        "--data-impl": "mmap",
        "--split": "100,0,0",
        "--num-workers": 0,
        "--tokenizer-type": "NullTokenizer",
        "--vocab-size": run.architecture.vocab - 1,  # it adds one for the end of a document
        "--make-vocab-size-divisible-by": 1,
    }


def _global_batch(run: TrainingRun) -> int:
    return run.micro_batch * run.micro_batches * run.parallel.dp


# ---- what it reads --------------------------------------------------------------------------------------------------


def prepare(run: TrainingRun, folder: Path) -> None:
    """Write DeepSpeed's configuration and the tokens.

    Args:
        run: see `command`.
        folder: of the run; it is there.

    Raises:
        InputError: the data is none that is written for it.
    """
    if run.data is not None and run.data.source != "synthetic":
        raise InputError(
            f"data: found {run.data.source!r}; allowed with backend megatron-deepspeed: synthetic, whose tokens are "
            "written in the form that it reads"
        )
    (folder / _CONFIG).write_text(json.dumps(deepspeed_config(run), indent=2) + "\n")
    rng = np.random.default_rng(run.seed)
    number = (run.seq + 1) * max(_DOCUMENTS, _global_batch(run))
    exponent = 1.0 if run.data is None else run.data.zipf_exponent
    write_tokens(folder / _DATA, _zipf(run.architecture.vocab - 1, number, exponent, rng), documents=_DOCUMENTS)


def deepspeed_config(run: TrainingRun) -> dict[str, Any]:
    """What `--deepspeed_config` says; the batch must be that of the arguments."""
    return {
        "train_batch_size": _global_batch(run),
        "train_micro_batch_size_per_gpu": run.micro_batch,
        "steps_per_print": 1_000_000,
        "zero_optimization": {"stage": run.parallel.zero_stage},
        "gradient_clipping": _MAX_NORM,
        "bf16": {"enabled": run.precision == "bf16-mixed"},
        "wall_clock_breakdown": False,
    }


def write_tokens(prefix: Path, tokens: IntArray, *, documents: int) -> None:
    """Write `prefix.bin` and `prefix.idx` in the form of `MMapIndexedDataset`.

    Args:
        prefix: without an ending.
        tokens: of all documents, one after another.
        documents: of one length each, but for the last.
    """
    sizes = np.array([len(part) for part in np.array_split(tokens, documents)], dtype=np.int32)
    prefix.with_suffix(".bin").write_bytes(tokens.astype("<i4").tobytes())
    pointers = np.concatenate([[0], np.cumsum(sizes[:-1], dtype=np.int64)]) * 4
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, len(sizes), len(sizes) + 1)  # version, int32, sizes, ends
    ends = np.arange(len(sizes) + 1, dtype=np.int64)
    body = sizes.astype("<i4").tobytes() + pointers.astype("<i8").tobytes() + ends.astype("<i8").tobytes()
    prefix.with_suffix(".idx").write_bytes(header + body)


def _zipf(vocab: int, number: int, exponent: float, rng: np.random.Generator) -> IntArray:
    """Token ids as frequent as words are (Zipf 1949): the torch backend's made-up tokens."""
    share = np.arange(1, vocab + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(share / share.sum())
    return np.searchsorted(cumulative, rng.random(number)).clip(max=vocab - 1).astype(np.int64)


# ---- what it says ---------------------------------------------------------------------------------------------------

# ` iteration {:8d}/{:8d} | consumed samples: {:12d} | ... | lm loss: {:.6E} | moe loss: {:.6E} | ...`
_STEP = re.compile(r"\biteration\s+(\d+)/\s*(\d+) \|(.*)\|")


def read_log(lines: Iterable[str]) -> Iterator[ExternalStep]:
    """Steps of a log, whose other lines are left alone.

    Args:
        lines: of standard output; what a launcher puts before them does not matter.
    """
    for line in lines:
        found = _STEP.search(line)
        if found is None:
            continue
        fields = _fields(found[3])
        if "elapsed time per iteration (ms)" not in fields:
            continue
        yield ExternalStep(
            iteration=int(found[1]),
            iterations=int(found[2]),
            samples=int(fields["consumed samples"]),
            time_s=fields["elapsed time per iteration (ms)"] * 1e-3,
            task_loss=fields.get("lm loss"),
            router_loss=fields.get("moe loss"),
            skipped=int(fields.get("number of skipped iterations", 0)),
        )


def _fields(text: str) -> dict[str, float]:
    pairs = (part.rpartition(":") for part in text.split("|"))
    return {name.strip(): float(value) for name, _, value in pairs if name}
