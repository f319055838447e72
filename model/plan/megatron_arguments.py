"""Megatron-LM's arguments as a plan and a model: which mean what, and which are named because nothing here has them.

Names and defaults are those of megatron/training/arguments.py and the dataclasses it builds arguments from
(megatron/core/transformer/transformer_config.py) of 2026. Every argument ends in one of four places:

    read        the plan or the model say it
    harmless    neither time nor memory depend on it: `HARMLESS`, by reason
    left out    they do, and a plan cannot say it: `LEFT_OUT`, named in the result with what is assumed instead
    refused     the run is no training of a decoder or of BERT: `REFUSED`, an error

An argument that is in none of them is named in the result as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shown
from moemodel.model.hardware.gpu import is_known_gpu, read_gpu
from moemodel.model.plan.recompute import PARTS

Arguments = Mapping[str, Any]
Model = Literal["gpt", "bert", "t5"]


@dataclass(frozen=True, kw_only=True)
class MegatronRun:
    """What arguments say.

    Attributes:
        plan: the plan's document but for `architecture`, which names the model's file.
        config: the model's file, of `model_type: megatron`.
        left_out: arguments that no plan can say, a sentence each.
        unknown: names of arguments that nobody here knows.
    """

    plan: dict[str, Any]
    config: dict[str, Any]
    left_out: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


# ---- names ----------------------------------------------------------------------------------------------------------

HARMLESS: dict[str, str] = {
    "what is printed and logged": r"log-.*|logging-level|tensorboard-.*|wandb-.*|timing-.*|straggler-.*|one-logger-.*|"
    r"no-one-logger|profile.*|use-pytorch-profiler|inference-logging-.*|enable-one-logger|disable-straggler.*|"
    r"throughput-.*|record-memory-history|memory-snapshot-path",
    "checkpoints": r"save|save-.*|load|load-.*|ckpt-.*|async-.*|use-persistent-ckpt-worker|dist-ckpt-.*|no-save-.*|"
    r"no-load-.*|no-ckpt-.*|auto-detect-ckpt-format|verify-integrity|use-checkpoint-.*|override-opt.param-scheduler|"
    r"finetune|exit-.*|use-dist-ckpt.*|non-persistent-.*|replication.*|no-use-tokenizer-model-from-checkpoint-args",
    "data": r"data-path|data-args-path|data-cache-path|(train|valid|test)-data-path|per-split-data-args-path|split|"
    r"tokenizer-(model|prompt-format)|vocab-file|merge-file|mock-data|num-workers|no-mmap-bin-files|dataloader-.*|"
    r"no-create-attention-mask-in-dataloader|reset-.*|eod-mask-loss|num-dataset-builder-threads|fim-.*|tiktoken-.*|"
    r"mask-prob|short-seq-prob|titles-data-path|special-tokens|trust-remote-code|no-data-sharding|legacy-tokenizer",
    "how long it trains, and how fast it learns": r"train-(iters|samples|tokens)|eval-.*|lr|lr-.*|min-lr|decoupled-.*|"
    r"weight-decay.*|adam-(beta1|beta2|eps)|sgd-momentum|clip-grad|start-weight-decay|end-weight-decay|"
    r"warmup|optimizer-beta.*|muon-(?!tp-mode|num-ns-steps).*|head-lr-mult|skip-train|rampup-batch-size|step-batch-size-schedule|"
    r"no-weight-decay-cond-type|apply-wd-to-qk-layernorm",
    "values, which cost what others cost": r"init-method-.*|embedding-init-method-std|seed|data-parallel-random-init|"
    r"norm-epsilon|layernorm-epsilon|rotary-(base|percent|scaling-factor|interleaved|seq-len-interpolation-factor)|"
    r"use-rope-scaling|rope-.*|apply-layernorm-1p|no-rope-freq|mscale.*|moe-(aux-loss-coeff|z-loss-coeff)|"
    r"moe-router-(bias-update-rate|topk-scaling-factor|pre-softmax|dtype|num-groups|group-topk|"
    r"load-balancing-type|force-load-balancing)|moe-aux-loss-free.*|loss-scale.*|initial-loss-scale|min-loss-scale|"
    r"hysteresis|attention-softmax-in-fp32|apply-query-key-layer-scaling|mtp-loss-scaling-factor|"
    r"calculate-per-token-loss|te-rng-tracker|inference-rng-tracker|xavier-.*|softmax-scale|use-mup|mup-.*|"
    r"original-max-position-embeddings|beta-fast|beta-slow",
    "how processes find each other": r"distributed-(backend|timeout-.*)|local-rank|lazy-mpu-init|no-initialization-.*|"
    r"use-cpu-initialization|nccl-communicator-config-path|use-ring-exchange-p2p|nproc.per.node|nnodes|node.rank|"
    r"master.addr|master.port|rdzv.*|disable-gloo-process-groups|enable-gloo-process-groups|"
    r"high-priority-stream-groups|use-tp-pp-dp-mapping",
    "when garbage is collected, and what is checked": r"manual-gc.*|no-check-for-nan-in-loss-and-grad|"
    r"check-for-(nan|large|spiky).*|rerun-mode|error-injection-.*|"
    r"test-mode|enable-experimental|use-mcore-models|is-hybrid-model|ft-.*|enable-ft-package|no-persist-layer-norm|"
    r"empty-unused-memory-level|inference-max-seq-length|inference-max-requests|max-tokens-to-oom|use-legacy-models|"
    r"inference-batch-times-seqlen-threshold",
}

# argument -> what a plan has in its place; only where the run differs by it
LEFT_OUT: dict[str, str] = {
    "cuda-graph-modules": "the host queues every kernel",
    "cuda-graph-scope": "the host queues every kernel",
    "no-gradient-accumulation-fusion": "gradients are added by kernels of their own: priced and kept as if fused",
    "no-bias-gelu-fusion": "priced as fused",
    "no-bias-swiglu-fusion": "priced as fused",
    "no-bias-dropout-fusion": "priced as fused",
    "no-rope-fusion": "priced as fused",
    "no-masked-softmax-fusion": "priced as fused",
    "moe-permute-fusion": "rows are permuted as the framework does it",
    "moe-router-fusion": "routers are priced as the framework does it",
    "optimizer": "AdamW is priced and kept instead",
    "muon-tp-mode": "tensor-parallel ranks gather whole matrices",
    "cpu-offloading-weights": "weights are taken to stay on the GPU",
    "fine-grained-activation-offloading": "activations are taken to stay on the GPU",
    "tp-comm-overlap-cfg": "communication of tensor parallelism overlaps as the framework does it",
    "delay-wgrad-compute": "weights' gradients are made with the inputs'",
    "cp-comm-type": "the first layer's way is every layer's",
    "first-last-layers-bf16": "all layers multiply in 8 bits",
    "num-layers-at-start-in-bf16": "all layers multiply in 8 bits",
    "num-layers-at-end-in-bf16": "all layers multiply in 8 bits",
    "fp16": "16 bits are taken to be bf16",
    "fp32-residual-connection": "residuals are taken to be in 16 bits",
    "fp16-lm-cross-entropy": "the loss is computed as the framework does it",
    "nccl-ub": "buffers are not registered with NCCL",
    "use-nccl-ub": "buffers are not registered with NCCL",
    "overlap-param-gather-with-optimizer-step": "parameters are gathered as the framework does it",
    "ddp-num-buckets": "gradients are reduced in buckets as the framework does it",
    "use-transformer-engine-op-fuser": "operators are priced as the framework does them",
    "mtp-use-repeated-layer": "each module has a layer of its own",
    "attention-output-gate": "attention has no gate",
    "recompute-num-layers": "every layer is computed again from its own input",
    "spec": "kernels are Transformer Engine's",
    "check-weight-hash-across-dp-replicas-interval": "steps between are predicted, which hash nothing",
}

REFUSED: dict[str, str] = {
    "perform-rl-step": "reinforcement learning, whose steps generate text",
    "experimental-attention-variant": "linear or sparse attention",
    "heterogeneous-layers-config-path": "layers of their own shapes",
    "model-provider": "encoders of images beside the language model",
    "img-h": "encoders of images beside the language model",
    "retro-add-retriever": "retrieval",
}
_BERT = "bert-no-binary-head"
_ENCODER = "encoder-num-layers"  # what T5 alone is told

_HARMLESS = re.compile("|".join(f"(?:{pattern})" for pattern in HARMLESS.values()))

_MODEL_COUNTS = (
    *("num-layers", "hidden-size", "num-attention-heads", "ffn-hidden-size", "kv-channels", "max-position-embeddings"),
    *("num-experts", "moe-ffn-hidden-size", "moe-router-topk", "moe-shared-expert-intermediate-size", "mtp-num-layers"),
    *("q-lora-rank", "kv-lora-rank", "qk-head-dim", "qk-pos-emb-head-dim", "v-head-dim", "moe-latent-size"),
    *("mamba-state-dim", "mamba-head-dim", "mamba-num-groups", "mamba-num-heads"),
)
_MODEL_FLAGS = (
    *("qk-layernorm", "swiglu", "squared-relu", "add-qkv-bias", "untie-embeddings-and-output-weights"),
    *("moe-router-enable-expert-bias", "moe-shared-expert-gate", "multi-latent-attention"),
)
_MODEL_WORDS = ("normalization", "position-embedding-type", "moe-router-score-function")
_RARE: tuple[str, ...] = (
    "group-query-attention",
    "num-query-groups",
    "disable-bias-linear",
    "use-rotary-position-embeddings",
)
_RARE += ("moe-layer-freq", "moe-expert-capacity-factor", "window-size", "no-position-embedding")
_PATTERNS = ("hybrid-layer-pattern", "hybrid-override-pattern")  # the latter as it was called before
_RARE += _PATTERNS
_OF_MODEL = frozenset({*_MODEL_COUNTS, *_MODEL_FLAGS, *_MODEL_WORDS, *_RARE, "vocab-size", "padded-vocab-size"})
_OF_MODEL |= {
    _ENCODER,
    "decoder-num-layers",
    "make-vocab-size-divisible-by",
    "tokenizer-type",
    "vocab-extra-ids",
    _BERT,
}
_OF_PLAN = frozenset(
    {
        *("micro-batch-size", "global-batch-size", "seq-length", "encoder-seq-length", "decoder-seq-length"),
        *("tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size"),
        *("expert-model-parallel-size", "sequence-parallel"),
        *("num-layers-per-virtual-pipeline-stage", "num-virtual-stages-per-pipeline-rank"),
        "microbatch-group-size-per-virtual-pipeline-stage",
        *("use-distributed-optimizer", "use-megatron-fsdp", "use-custom-fsdp", "use-torch-fsdp2"),
        *("data-parallel-sharding-strategy", "overlap-grad-reduce", "overlap-param-gather", "bf16", "fp8-format"),
        *("fp8-recipe", "fp4-format", "grad-reduce-in-bf16", "accumulate-allreduce-grads-in-fp32", "main-grads-dtype"),
        *("cross-entropy-loss-fusion", "cross-entropy-fusion-impl", "recompute-activations", "recompute-granularity"),
        *("recompute-method", "recompute-num-layers", "recompute-modules", "moe-grouped-gemm", "use-flash-attn"),
        *("transformer-impl", "deterministic-mode", "ddp-bucket-size"),
        *("use-precision-aware-optimizer", "main-params-dtype", "exp-avg-dtype", "exp-avg-sq-dtype"),
        *(
            "expert-tensor-parallel-size",
            "moe-token-dispatcher-type",
            "moe-flex-dispatcher-backend",
            "moe-enable-deepep",
        ),
        "overlap-moe-expert-parallel-comm",
        *("cuda-graph-impl", "enable-cuda-graph", "external-cuda-graph", "cuda-graph-warmup-steps"),
        *("hidden-dropout", "attention-dropout", "attention-backend", "flash-attention-version"),
        *(
            "activation-func-fp8-input-store",
            "tp-comm-overlap",
            "fp8-param-gather",
            "reuse-grad-buf-for-mxfp8-param-ag",
        ),
        *("muon-num-ns-steps", "optimizer-cpu-offload", "optimizer-offload-fraction", "overlap-cpu-optimizer-d2h-h2d"),
        *("cpu-offloading", "cpu-offloading-num-layers", "no-pin-cpu-grads", "no-pin-cpu-params"),
        *("num-distributed-optimizer-instances", "cp-comm-type", "hierarchical-context-parallel-sizes"),
        *("ddp-average-in-collective", "ddp-pad-buckets-for-high-nccl-busbw"),
        *("decoder-first-pipeline-num-layers", "decoder-last-pipeline-num-layers", "pipeline-model-parallel-layout"),
        *("account-for-embedding-in-pipeline-split", "account-for-loss-in-pipeline-split"),
        *("megatron-fsdp-main-params-dtype", "megatron-fsdp-main-grads-dtype", "megatron-fsdp-grad-comm-dtype"),
    }
)


# ---- reading --------------------------------------------------------------------------------------------------------


def megatron_run(
    arguments: Arguments, *, gpu: str, gpus: int, vocab: int | None = None, model: Model | None = None
) -> MegatronRun:
    """What arguments mean.

    Args:
        arguments: name -> value, with or without dashes in front; True for a flag.
        gpu, gpus: that the run is on; Megatron's arguments do not say.
        vocab: of the tokenizer, where the arguments don't state it; None: by their tokenizer, if one is known.
        model: that the program trains (pretrain_gpt.py, pretrain_bert.py); None: as far as the arguments tell.

    Raises:
        InputError: an argument is missing or wrong, or the run is nothing that a plan can be of.
    """
    given = {_name(name): value for name, value in arguments.items() if not _is_off(value)}
    for name, what in REFUSED.items():
        if name in given:
            raise InputError(
                f"--{name}: found {shown(given[name])}: {what}; allowed: training of a decoder, of BERT, or of T5"
            )
    said = _Said(given, "t5" if _ENCODER in given else model or ("bert" if _BERT in given else "gpt"))
    plan, sentences = _plan(said, gpu, gpus)
    left_out = [f"--{name} {shown(given[name])}: {LEFT_OUT[name]}" for name in given if _is_left_out(name, given)]
    return MegatronRun(
        plan=plan,
        config=_config(said, vocab),
        left_out=(*left_out, *sentences),
        unknown=tuple(sorted(name for name in given if not _is_known(name))),
    )


def _name(argument: str) -> str:
    return argument.strip().lstrip("-").replace("_", "-")


def _is_off(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str) and value.strip().lower() in ("false", "none"))


def _is_known(name: str) -> bool:
    return name in _OF_MODEL or name in _OF_PLAN or name in LEFT_OUT or _HARMLESS.fullmatch(name) is not None


# values of arguments in LEFT_OUT that say what is assumed anyway
_AS_ASSUMED: dict[str, tuple[str, ...]] = {
    "optimizer": ("adam", "muon", "dist_muon"),
    "muon-tp-mode": ("duplicated", "blockwise"),
    "recompute-num-layers": ("1",),
    "spec": ("local",),
    "check-weight-hash-across-dp-replicas-interval": ("1",),
}
_DROPOUT = "0.1"  # of attention and of blocks, where the arguments don't say (transformer_config.py)


def _is_left_out(name: str, given: Arguments) -> bool:
    if name == "recompute-num-layers" and given.get("recompute-method") == "block":
        return False
    if name == "cp-comm-type":
        return len(set(_words(given[name]))) > 1
    if name == _NO_FUSED_SOFTMAX:
        return not _is_float32(_Said(given, "gpt"))
    return name in LEFT_OUT and str(given[name]).strip() not in _AS_ASSUMED.get(name, ())


def _words(value: Any) -> list[str]:
    """Of a value that may be a list, or one as text."""
    return re.findall(r"[a-z0-9_+]+", str(value))


class _Said:
    """Arguments, by their names, as numbers and words."""

    def __init__(self, given: Arguments, model: Model) -> None:
        self.given, self.model = given, model

    def flag(self, name: str) -> bool:
        return name in self.given

    def word(self, name: str, missing: str) -> str:
        return str(self.given.get(name, missing)).strip()

    def count(self, name: str, missing: int | None = None) -> int:
        """A number.

        Raises:
            InputError: it is none, or is missing.
        """
        value = self.given.get(name, missing)
        if value is None:
            raise InputError(f"--{name}: found nothing; allowed: a number, which Megatron needs")
        try:
            number = int(str(value).replace("_", ""))
        except ValueError:
            raise InputError(f"--{name}: found {shown(value)}; allowed: a whole number") from None
        return number

    def share(self, name: str, missing: float) -> float:
        """A number from 0 to 1.

        Raises:
            InputError: it is none.
        """
        value = self.given.get(name, missing)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not 0 <= number <= 1:
            raise InputError(f"--{name}: found {shown(value)}; allowed: a number from 0 to 1")
        return number


# ---- the model ------------------------------------------------------------------------------------------------------

# Radford et al. 2019; Devlin et al. 2019 (their vocabularies of 30,522 and 28,996 words)
_TOKENIZERS = {"GPT2BPETokenizer": 50257, "BertWordPieceLowerCase": 30522, "BertWordPieceCase": 28996}
# of programs that are told none (pretrain_bert.py)
_USUAL: dict[Model, str] = {"gpt": "GPT2BPETokenizer", "bert": "BertWordPieceLowerCase", "t5": "BertWordPieceCase"}
_NULL_EXTRA = 1  # the end of a document (megatron/core/tokenizers, NullTokenizer)


def _config(said: _Said, vocab: int | None) -> dict[str, Any]:
    """The model's file."""
    config: dict[str, Any] = {"model_type": "megatron", "model": said.model}
    config |= {_key(name): said.count(name) for name in _MODEL_COUNTS if said.flag(name)}
    config |= {_key(name): True for name in _MODEL_FLAGS if said.flag(name)}
    config |= {_key(name): said.word(name, "") for name in _MODEL_WORDS if said.flag(name)}
    config |= {name: read(said) for name, read in _OTHER_KEYS.items() if read(said) is not None}
    if said.model == "t5":
        config["encoder_num_layers"] = said.count(_ENCODER)
        config["num_layers"] = said.count("decoder-num-layers", said.count(_ENCODER))
    return config | {"vocab_size": _vocab(said, vocab)}


def _key(name: str) -> str:
    return name.replace("-", "_")


def _positions(said: _Said) -> str | None:
    if said.flag("no-position-embedding"):
        return "none"
    return "rope" if said.flag("use-rotary-position-embeddings") else None


def _frequency(said: _Said) -> int | str | None:
    if not said.flag("moe-layer-freq"):
        return None
    text = said.word("moe-layer-freq", "1").strip("'\"")
    return int(text) if text.isdigit() else text


def _window(said: _Said) -> int | None:
    numbers = re.findall(r"-?\d+", said.word("window-size", ""))
    return int(numbers[0]) + 1 if numbers and int(numbers[0]) >= 0 else None  # keys before a query, and its own


def _capacity(said: _Said) -> float | None:
    return float(said.word("moe-expert-capacity-factor", "1")) if said.flag("moe-expert-capacity-factor") else None


def _pattern(said: _Said) -> str:
    """What each layer is, ends of stages and modules of multi-token prediction among them; empty: all are alike."""
    return next((said.word(name, "").strip("'\"") for name in _PATTERNS if said.flag(name)), "")


def _layers_of(pattern: str) -> str:
    """A letter a layer of the model itself (hybrid_layer_allocation.py, ParsedHybridPattern)."""
    return pattern.split("/")[0].replace("|", "")


_OTHER_KEYS: dict[str, Callable[[_Said], Any]] = {
    "num_query_groups": lambda said: said.count("num-query-groups", 1) if said.flag("group-query-attention") else None,
    "add_bias_linear": lambda said: False if said.flag("disable-bias-linear") else None,
    "position_embedding_type": _positions,
    "moe_layer_freq": _frequency,
    "moe_expert_capacity_factor": _capacity,
    "window_size": _window,
    "hybrid_layer_pattern": lambda said: _pattern(said) or None,
    "num_layers": lambda said: len(_layers_of(_pattern(said))) or None,
}


def _vocab(said: _Said, vocab: int | None) -> int:
    """Rows of the embedding, padded (vocab_size_with_padding).

    Raises:
        InputError: nobody says how large the vocabulary is.
    """
    if said.flag("padded-vocab-size"):
        return said.count("padded-vocab-size")
    kind = said.word("tokenizer-type", _USUAL[said.model])
    own = _TOKENIZERS.get(kind) if vocab is None else vocab
    if said.flag("vocab-size"):
        own = said.count("vocab-size") + (_NULL_EXTRA if kind == "NullTokenizer" else 0)
    if own is None:
        raise InputError(f"--vocab-size: found nothing; allowed: a number, since {kind} does not say how many it has")
    own += said.count("vocab-extra-ids", 0)
    multiple = said.count("make-vocab-size-divisible-by", 128) * said.count("tensor-model-parallel-size", 1)
    return -(-own // multiple) * multiple


# ---- the plan -------------------------------------------------------------------------------------------------------


def _plan(said: _Said, gpu: str, gpus: int) -> tuple[dict[str, Any], list[str]]:
    """The plan's document, and what has to be said of it."""
    tp, pp, cp = (said.count(f"{axis}-parallel-size", 1) for axis in ("tensor-model", "pipeline-model", "context"))
    if gpus % (tp * pp * cp):
        raise InputError(f"gpus: found {gpus}; allowed: multiples of tp {tp} x pp {pp} x cp {cp} = {tp * pp * cp}")
    dp = gpus // (tp * pp * cp)
    micro_batch = said.count("micro-batch-size")
    seq = "seq-length" if said.flag("seq-length") else "encoder-seq-length"
    recompute, sentences = _recompute(said)
    plan: dict[str, Any] = {
        "sequence_length": said.count(seq),
        "decoder_sequence_length": said.count("decoder-seq-length") if said.model == "t5" else None,
        "global_batch": said.count("global-batch-size", micro_batch * dp),
        "micro_batch": micro_batch,
        "recompute": recompute,
        "micro_batches_per_round": _round(said, pp),
        "stage_layers": _stage_layers(said),
        **_software(said, gpu),
        **_dispatch(said),
        "cluster": {"gpu": gpu, "gpus": gpus},
        "parallel": {
            "dp": dp,
            "tp": tp,
            "pp": pp,
            "cp": cp,
            "ep": said.count("expert-model-parallel-size", 1),
            **_experts_cut(said, tp),
            "virtual_stages": _virtual_stages(said, pp),
            **_sharding(said, dp),
            "sequence_parallel": said.flag("sequence-parallel") and tp > 1,
        },
    }
    return plan, sentences


def _chunks_of(said: _Said) -> list[int]:
    """Layers of each chunk, where a pattern says where one ends; empty: it doesn't."""
    chunks = _pattern(said).split("/")[0].split("|")
    return [len(chunk) for chunk in chunks] if len(chunks) > 1 else []


def _virtual_stages(said: _Said, pp: int) -> int:
    if chunks := _chunks_of(said):
        return max(len(chunks) // pp, 1)
    if said.flag("pipeline-model-parallel-layout"):
        return len(layout_layers(said.word("pipeline-model-parallel-layout", ""))) // pp
    if said.flag("num-virtual-stages-per-pipeline-rank"):
        return said.count("num-virtual-stages-per-pipeline-rank")
    if said.flag("num-layers-per-virtual-pipeline-stage"):
        return said.count("num-layers") // pp // said.count("num-layers-per-virtual-pipeline-stage")
    return 1


def _round(said: _Said, pp: int) -> int | None:
    """Micro-batches that pass a chunk before the next; None: as many as there are stages, which is the default."""
    each = said.count("microbatch-group-size-per-virtual-pipeline-stage", pp)
    return None if each == pp or _virtual_stages(said, pp) == 1 else each


def _stage_layers(said: _Said) -> Any:
    """How layers are cut into stages, in a plan's words; None: evenly."""
    if said.flag("pipeline-model-parallel-layout"):
        return layout_layers(said.word("pipeline-model-parallel-layout", ""))
    chunks = _chunks_of(said)
    if len(set(chunks)) > 1:
        return chunks
    slots = {
        end: 1
        for end, name in (("embedding", "embedding"), ("head", "loss"))
        if said.flag(f"account-for-{name}-in-pipeline-split")
    }
    ends = {
        end: said.count(f"decoder-{end}-pipeline-num-layers")
        for end in ("first", "last")
        if said.flag(f"decoder-{end}-pipeline-num-layers")
    }
    return slots or ends or None


_REPEATED = re.compile(r"(\([^()]*\)|[EtmL|])\*(\d{1,4})")


def layout_layers(text: str) -> list[int]:
    """Layers of each chunk of a layout such as `Et*2|(tt|)*5t|tmL` (PipelineParallelLayerLayout).

    Raises:
        InputError: it is none.
    """
    bare = re.sub(r"[\s,'\"]", "", text)
    spelled = re.sub(r"[()]", "", _REPEATED.sub(lambda found: found[1].strip("()") * int(found[2]), bare))
    if not spelled or set(spelled) - set("EtmL|") or len(spelled) > _LONGEST_LAYOUT:
        raise InputError(
            f"--pipeline-model-parallel-layout: found {shown(text)}; allowed: stages of E, t, m and L, joined by |"
        )
    return [chunk.count("t") for chunk in spelled.split("|")]


_LONGEST_LAYOUT = 100_000
_SHARDED = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}  # data_parallel_sharding_strategy


def _experts_cut(said: _Said, tp: int) -> dict[str, int]:
    """Expert tensor parallelism, by default as wide as that of the rest (validate_args)."""
    return {"etp": said.count("expert-tensor-parallel-size", tp)} if said.flag("num-experts") else {}


def _dispatch(said: _Said) -> dict[str, Any]:
    """How rows get to experts: by default all tokens are gathered (transformer_config.py, moe_token_dispatcher_type);
    `flex` is DeepEP, or HybridEP, which do the same with other kernels."""
    if not said.flag("num-experts"):
        return {}
    kind = said.word("moe-token-dispatcher-type", "allgather")
    sent = "deepep" if kind == "flex" or said.flag("moe-enable-deepep") else kind
    overlapped = {"dispatch_overlap": True} if said.flag("overlap-moe-expert-parallel-comm") else {}
    products = "grouped" if said.flag("moe-grouped-gemm") else "each"
    return {"routing": {"dispatch": sent, "products": products} | overlapped}


def _sharding(said: _Said, dp: int) -> dict[str, int]:
    """ZeRO's stage, and groups that shard for themselves: as many of them as there are replicas shard nothing."""
    instances = said.count("num-distributed-optimizer-instances", 1)
    if 1 < instances == dp:
        return {"zero_stage": 0}
    return {"zero_stage": _zero_stage(said), "replicas": instances}


def _zero_stage(said: _Said) -> int:
    if said.flag("use-torch-fsdp2"):
        return 3
    if said.flag("use-megatron-fsdp") or said.flag("use-custom-fsdp"):
        return _SHARDED.get(said.word("data-parallel-sharding-strategy", "optim_grads_params"), 3)
    return int(said.flag("use-distributed-optimizer") or said.word("optimizer", "adam") == "dist_muon")


def _software(said: _Said, gpu: str) -> dict[str, Any]:
    """Framework, precision and what the program chooses."""
    precision = _precision(said)
    reduced = said.flag("grad-reduce-in-bf16") or said.word("main-grads-dtype", "fp32") == "bf16"
    # of fp16 as weights are, unless told otherwise (training/arguments.py, accumulate_allreduce_grads_in_fp32)
    reduced = reduced or (said.flag("fp16") and not said.flag("accumulate-allreduce-grads-in-fp32"))
    return {
        "precision": precision,
        "backend": _backend(said, precision),
        "attention": _attention(said, gpu),
        "cuda_graphs": _is_replayed(said) or None,
        "deterministic": said.flag("deterministic-mode") or None,
        "gradient_dtype": "bf16" if reduced else "fp32",
        "bucket_parameters": said.count("ddp-bucket-size", 0) or None,
        "weight_checks": said.count("check-weight-hash-across-dp-replicas-interval", 0) == 1 or None,
        "cross_entropy": _loss(said),
        "fp8_recipe": _FP8_RECIPES.get(said.word("fp8-recipe", "delayed")) if precision == "fp8" else None,
        "activation_input_dtype": "fp8" if said.flag("activation-func-fp8-input-store") else None,
        "parameter_dtype": "fp8" if said.flag("fp8-param-gather") and precision in ("fp8", "mxfp8") else None,
        "tp_comm_overlap": (said.flag("tp-comm-overlap") and said.flag("sequence-parallel")) or None,
        "cp_comm": _context_comm(said),
        "multi_token": said.count("mtp-num-layers", 0) > 0 or "/" in _pattern(said) or None,
        "dropout": any(float(said.word(f"{kind}-dropout", _DROPOUT)) > 0 for kind in ("hidden", "attention")),
        "optimizer": _optimizer(said),
        "offload": _offload(said),
    }


_LOCAL = "local"
_FP8_RECIPES = {name: name for name in ("tensorwise", "delayed", "blockwise")}  # of fp8_recipe (core/enums.py)


def _backend(said: _Said, precision: str) -> str:
    """Of the frameworks known here the nearest: products of 8 bits and overlap of tensor parallelism are of
    `megatron-core`."""
    if _is_local(said):
        return "megatron-local"
    if precision not in ("bf16-mixed", "fp32") or said.flag("tp-comm-overlap"):
        return "megatron-core"
    return "megatron-overlap" if said.flag("overlap-grad-reduce") else "megatron"


def _is_local(said: _Said) -> bool:
    """Whether layers are Megatron's own; of BERT `spec` says so (examples/bert/pretrain_bert.py)."""
    of_bert = said.model == "bert" and _words(said.word("spec", "")) == [_LOCAL]
    return of_bert or said.word("transformer-impl", "transformer_engine") == _LOCAL


def _loss(said: _Said) -> str:
    """Kernels of the loss; the fusion of its own (`native`, by default) is what torch.compile makes of the plain ones
    (core/fusions/fused_cross_entropy.py)."""
    if not said.flag("cross-entropy-loss-fusion"):
        return "plain"
    return "fused" if said.word("cross-entropy-fusion-impl", "native") == "te" else "compiled"


def _optimizer(said: _Said) -> dict[str, Any] | None:
    """Muon, or types of AdamW's states (optimizer_config.py); None: AdamW with float32."""
    if said.word("optimizer", "adam") in ("muon", "dist_muon"):
        mode = {"tp_mode": "blockwise"} if said.word("muon-tp-mode", "duplicated") == "blockwise" else {}
        return {"name": "muon", "ns_steps": said.count("muon-num-ns-steps", 5)} | mode
    if not said.flag("use-precision-aware-optimizer"):
        return None
    moments = {name: said.word(f"{name.replace('_', '-')}-dtype", "fp32") for name in ("exp_avg", "exp_avg_sq")}
    master = said.word("main-params-dtype", "fp32")
    return moments | {"master": "remainder" if master == "fp32" else master}  # store_param_remainders is the default


def _context_comm(said: _Said) -> str | None:
    """How keys and values are reached, of the first layer where each has its own; None: around a ring, the default."""
    kind, *_ = _words(said.word("cp-comm-type", "p2p")) or ["p2p"]
    if kind == "a2a+p2p":
        return f"a2a-{_words(said.word('hierarchical-context-parallel-sizes', '1'))[0]}+p2p"
    return None if kind == "p2p" else kind


def _offload(said: _Said) -> dict[str, Any] | None:
    """What the host keeps: a share of the optimizer (optimizer_config.py), and of the activations so many layers."""
    found: dict[str, Any] = {}
    if said.flag("optimizer-cpu-offload"):
        found["optimizer"] = said.share("optimizer-offload-fraction", 1.0)
        found["overlap"] = said.flag("overlap-cpu-optimizer-d2h-h2d")
    if said.flag("cpu-offloading-num-layers"):
        found["activations"] = min(said.count("cpu-offloading-num-layers") / said.count("num-layers"), 1.0)
    return found if found.get("optimizer") or found.get("activations") else None


def _is_replayed(said: _Said) -> bool:
    """Whether whole layers are captured as CUDA graphs, as they are where no modules are named (transformer_config.py,
    cuda_graph_modules)."""
    parts = said.flag("cuda-graph-modules") or said.flag("cuda-graph-scope")
    impl = said.word("cuda-graph-impl", "none") != "none"
    return (impl or said.flag("enable-cuda-graph") or said.flag("external-cuda-graph")) and not parts


def _attention(said: _Said, gpu: str) -> str | None:
    """Its kernel in a plan's words; None: as the framework runs it on that GPU.

    `local` layers multiply, mask and multiply (core/transformer/dot_product_attention.py); `fused` is cuDNN's, a pinned
    FlashAttention that generation (transformer_config.py, AttnBackend and flash_attention_version). How fast cuDNN's is
    on other GPUs than Hopper nobody measured: there the framework's stands for it.
    """
    backend = said.word("attention-backend", "auto")
    if backend in ("unfused", _LOCAL) or _is_local(said):
        return "unfused-fp32" if said.flag(_NO_FUSED_SOFTMAX) and _is_float32(said) else "unfused"
    if backend == "fused":
        return "cudnn" if is_known_gpu(gpu) and read_gpu(gpu).architecture == "hopper" else None
    return {"2": "flash2", "3": "flash3"}.get(said.word("flash-attention-version", ""))


_NO_FUSED_SOFTMAX = "no-masked-softmax-fusion"


def _is_float32(said: _Said) -> bool:
    """Whether a softmax of several kernels is in float32 (training/arguments.py: scaling by layers asks for it)."""
    return said.flag("attention-softmax-in-fp32") or said.flag("apply-query-key-layer-scaling")


def _precision(said: _Said) -> str:
    if said.flag("fp4-format"):
        return "nvfp4"
    if said.flag("fp8-format"):
        return "mxfp8" if said.word("fp8-recipe", "delayed") == "mxfp8" else "fp8"
    return "bf16-mixed" if said.flag("bf16") or said.flag("fp16") else "fp32"


def _recompute(said: _Said) -> tuple[str, list[str]]:
    """What is computed again, in a plan's words; and what has to be said of it."""
    granularity = said.word("recompute-granularity", "selective" if said.flag("recompute-activations") else "none")
    if granularity == "full":
        layers = said.count("recompute-num-layers", 1)
        return (f"first-{layers}" if said.word("recompute-method", "uniform") == "block" else "full"), []
    if granularity != "selective":
        return "none", []
    modules = re.findall(r"[a-z_]+", said.word("recompute-modules", "core_attn"))
    known = [part for part in modules if part in PARTS]
    others = sorted(set(modules) - set(PARTS))
    said_of = [f"--recompute-modules {' '.join(others)}: not computed again here"] if others else []
    return ("+".join(known) or "none"), said_of
