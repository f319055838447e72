"""Megatron-DeepSpeed's program: its arguments are ones that its parser has, and its log is read line by line."""

from __future__ import annotations

import argparse
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.core.errors import InputError, MissingExtraError
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.routing import RoutingSpec, routed_architecture
from moemodel.model.plan.spec import ParallelSpec, Plan
from moemodel.profiler.backends.base import TrainingRun, builder, check_runs
from moemodel.profiler.backends.external import ProgramError, program
from moemodel.profiler.backends.megatron_deepspeed.program import (
    VARIABLE,
    arguments,
    checkout_of,
    command,
    prepare,
    read_log,
    write_tokens,
)
from moemodel.profiler.backends.megatron_deepspeed.supported_plans import expert_interval
from moemodel.profiler.jobs.ranks import failure_of

_ARGUMENTS = Path(__file__).with_name("arguments.txt")
_HEADS = Attention(heads=4, kv_heads=2, head_dim=8)
_DENSE = Mlp(width=64, activation="silu", gated=True)
_EXPERTS = Moe(experts=8, top_k=2, width=64, activation="silu", gated=True)


def _model(*blocks: Mlp | Moe, attention: Attention = _HEADS, **options: Any) -> Architecture:
    norm = options.pop("norm", "rms")
    layers = tuple(Layer(attentions=(attention,), feed_forward=b, norm=norm, norm_bias=norm == "layer") for b in blocks)
    settings: dict[str, Any] = {"hidden": 32, "vocab": 97, "embedding_width": 32, "tied": False}
    return Architecture(name="tiny", decoder=layers, **settings | options)


_GPT = _model(
    *[Mlp(width=128, activation="gelu", gated=False, bias=True)] * 2,
    attention=replace(_HEADS, kv_heads=4, rotary=False, bias_qkv=True, bias_out=True),
    norm="layer",
    tied=True,
    learned_positions=64,
)
_MODELS = {"llama": _model(_DENSE, _DENSE), "mixtral": _model(_EXPERTS, _EXPERTS), "gpt": _GPT}
_MODELS["switch"] = _model(_DENSE, replace(_EXPERTS, top_k=1, router="switch_top1", capacity_factor=1.25))


def _run(name: str, **changes: Any) -> TrainingRun:
    routing = RoutingSpec(**changes.pop("routing", {}))
    settings: dict[str, Any] = {"seq": 16, "micro_batch": 2, "micro_batches": 3, "precision": "fp32"}
    return TrainingRun(
        name=name,
        architecture=routed_architecture(_MODELS[name], routing),
        routing=routing,
        parallel=ParallelSpec(**changes.pop("parallel", {})),
        **settings | changes,
    )


# ---- arguments ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    """With the arguments that the program's own has."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for line in _ARGUMENTS.read_text().splitlines():
        if line.startswith("#"):
            continue
        name, kind, type_name, choices = line.split(" ")
        if kind == "flag":
            parser.add_argument(name, action="store_true")
            continue
        types: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool}
        parser.add_argument(
            name,
            type=types.get(type_name, str),
            nargs="+" if kind == "values" else None,
            choices=None if choices == "-" else choices.split(","),
        )
    return parser


def _parsed(run: TrainingRun) -> argparse.Namespace:
    known, rest = _parser().parse_known_args(arguments(run, Path("/run"), iterations=7))
    assert rest == []
    return known


@pytest.mark.parametrize("name", _MODELS)
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_arguments_are_ones_that_its_parser_has(name: str, recompute: Any) -> None:
    found = _parsed(_run(name, recompute=recompute))
    assert found.checkpoint_activations == (recompute == "full")
    assert (found.num_layers, found.hidden_size, found.seq_length, found.train_iters) == (2, 32, 16, 7)
    assert (found.micro_batch_size, found.global_batch_size) == (2, 6)
    assert found.deepspeed_config == "/run/deepspeed.json"
    assert found.data_path == ["/run/tokens"]
    assert found.no_pipeline_parallel


def test_numbers_that_are_nought_are_said_too() -> None:
    found = _parsed(_run("mixtral"))
    assert (found.zero_stage, found.eval_iters, found.hidden_dropout, found.moe_loss_coeff) == (0, 0, 0.0, 0.0)


def test_shapes() -> None:
    llama, gpt = _parsed(_run("llama")), _parsed(_run("gpt"))
    assert (llama.normalization, gpt.normalization) == ("rmsnorm", "layernorm")
    assert llama.swiglu
    assert llama.disable_bias_linear
    assert llama.untie_embeddings_and_output_weights
    assert llama.use_rotary_position_embeddings
    assert (llama.num_attention_heads, llama.num_key_value_heads, llama.kv_channels) == (4, 2, 8)
    assert llama.num_experts is None
    assert not any((gpt.swiglu, gpt.disable_bias_linear, gpt.use_rotary_position_embeddings))
    assert (gpt.max_position_embeddings, llama.max_position_embeddings) == (64, 16)


def test_experts() -> None:
    found = _parsed(_run("mixtral", parallel={"dp": 2, "ep": 2}, routing={"balance_loss": 0.01}))
    assert (found.num_experts, found.topk, found.expert_interval, found.moe_expert_parallel_size) == ([8], 2, 1, 2)
    assert found.moe_loss_coeff == 0.01
    assert found.disable_moe_token_dropping
    assert found.create_moe_param_group
    switch = _parsed(_run("switch"))
    assert (switch.topk, switch.expert_interval, switch.moe_train_capacity_factor) == (1, 2, 1.25)
    assert not switch.disable_moe_token_dropping


def test_degrees_and_what_starts_them() -> None:
    run = _run("llama", parallel={"dp": 2, "tp": 2, "pp": 2, "sequence_parallel": True, "zero_stage": 1})
    found = _parsed(run)
    assert (found.tensor_model_parallel_size, found.pipeline_model_parallel_size, found.zero_stage) == (2, 2, 1)
    assert found.sequence_parallel
    assert not found.no_pipeline_parallel
    told = command(run, Path("/checkout"), Path("/run"), iterations=7)
    assert told.argv[1:6] == (
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8"),
        "/checkout/pretrain_gpt.py",
    )
    assert told.environment == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}


@pytest.mark.parametrize(
    ("blocks", "interval"),
    [
        ((_EXPERTS, _EXPERTS), 1),
        ((_DENSE, _EXPERTS, _DENSE, _EXPERTS), 2),
        ((_DENSE, _EXPERTS, _DENSE), 2),
        ((_EXPERTS, _DENSE, _EXPERTS), None),
        ((_DENSE, _DENSE), None),
    ],
)
def test_expert_interval(blocks: tuple[Mlp | Moe, ...], interval: int | None) -> None:
    assert expert_interval(_model(*blocks)) == interval


# ---- files ----------------------------------------------------------------------------------------------------------


def test_tokens_are_what_its_reader_reads(tmp_path: Path) -> None:
    tokens = np.arange(10)
    write_tokens(tmp_path / "tokens", tokens, documents=3)
    index = (tmp_path / "tokens.idx").read_bytes()  # as MMapIndexedDataset.Index reads it
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, sizes, ends = struct.unpack("<QBQQ", index[9:34])
    assert (version, code, sizes, ends) == (1, 4, 3, 4)
    assert np.frombuffer(index, "<i4", sizes, 34).tolist() == [4, 3, 3]
    assert np.frombuffer(index, "<i8", sizes, 34 + 4 * sizes).tolist() == [0, 16, 28]  # bytes
    assert np.frombuffer(index, "<i8", ends, 34 + 12 * sizes).tolist() == [0, 1, 2, 3]
    assert len(index) == 34 + 12 * sizes + 8 * ends
    assert np.fromfile(tmp_path / "tokens.bin", "<i4").tolist() == tokens.tolist()


def test_what_it_reads_is_written_and_agrees_with_its_arguments(tmp_path: Path) -> None:
    run = _run("mixtral", parallel={"dp": 2, "zero_stage": 2})
    prepare(run, tmp_path)
    told, found = json.loads((tmp_path / "deepspeed.json").read_text()), _parsed(run)
    assert told["train_batch_size"] == found.global_batch_size == 12
    assert told["train_micro_batch_size_per_gpu"] == found.micro_batch_size
    assert told["zero_optimization"]["stage"] == found.zero_stage == 2
    tokens = np.fromfile(tmp_path / "tokens.bin", "<i4")
    assert len(tokens) >= found.global_batch_size * (run.seq + 1)
    assert 0 <= tokens.min() <= tokens.max() < found.vocab_size


def test_a_data_source_that_it_is_not_given_is_refused(tmp_path: Path) -> None:
    from moemodel.profiler.data.spec import DataSpec

    with pytest.raises(InputError, match="data: found 'corpus'; allowed with backend megatron-deepspeed: synthetic"):
        prepare(_run("llama", data=DataSpec(source="corpus")), tmp_path)


# ---- its log --------------------------------------------------------------------------------------------------------

# As `training_log` of megatron/training.py writes them (its format strings, lines 1146 to 1184), behind a launcher's
# prefix; the second step's update was skipped, and the third line is none of a step.
_LOG = """> setting tensorboard ...
[before the start of training step] datetime: 2025-07-16 12:00:00
[default0]: iteration        1/      50 | consumed samples:            8 | consumed tokens:        16384 | elapsed \
time per iteration (ms): 7128.3 | learning rate: 1.000E-04 | global batch size:     8 | lm loss: 1.091240E+01 | moe \
loss: 1.237810E-01 | loss scale: 1.0 | grad norm: 12.345 | actual seqlen:  2048 | number of skipped iterations:   0 | \
number of nan iterations:   0 | samples per second: 1.122 | tokens per gpu per second (tgs): 2298.422 | TFLOPs: 8.41 |
 iteration        2/      50 | consumed samples:           16 | consumed tokens:        32768 | elapsed time per \
iteration (ms): 512.9 | learning rate: 1.000E-04 | global batch size:     8 | loss scale: 1.0 | actual seqlen:  2048 \
| number of skipped iterations:   1 | number of nan iterations:   0 | samples per second: 15.598 | tokens per gpu per \
second (tgs): 31943.849 | TFLOPs: 116.90 |
 iteration 3 is not a step | of the log |
"""


def test_steps_are_read_off_its_log() -> None:
    first, second = read_log(_LOG.splitlines())
    assert (first.iteration, first.iterations, first.samples) == (1, 50, 8)
    assert first.time_s == pytest.approx(7.1283)
    assert (first.task_loss, first.router_loss, first.skipped) == (10.9124, 0.123781, 0)
    assert (second.iteration, second.task_loss, second.router_loss, second.skipped) == (2, None, None, 1)
    assert second.time_s == pytest.approx(0.5129)


def test_a_dense_models_log_has_no_routers_loss() -> None:
    line = _LOG.splitlines()[2].replace(" moe loss: 1.237810E-01 |", "")
    (step,) = read_log([line])
    assert (step.task_loss, step.router_loss) == (10.9124, None)


# ---- refusals -------------------------------------------------------------------------------------------------------


def _plan(**changes: Any) -> Plan:
    parallel = changes.pop("parallel", {})
    gpus = parallel.get("dp", 1) * parallel.get("tp", 1) * parallel.get("pp", 1)
    document = {"name": "p", "architecture": "mixtral-8x7b", "sequence_length": 512, "global_batch": 16}
    document |= {"backend": "megatron-deepspeed", "precision": "fp32"} | changes
    return Plan.model_validate(document | {"cluster": {"gpu": "h100-sxm-80gb", "gpus": gpus}, "parallel": parallel})


@pytest.mark.parametrize("name", ["mixtral-8x7b", "llama-3-8b"])
def test_models_that_run(name: str) -> None:
    plan = _plan(architecture=name)
    check_runs(plan, architecture_of(plan))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "olmoe-1b-7b"}, "olmoe-1b-7b: the megatron-deepspeed backend does not run norms of queries"),
        ({"architecture": "opt-350m"}, "activations other than GELU and SwiGLU"),
        ({"recompute": "selective"}, "recompute: found 'selective'; allowed for plans that are run: none, full"),
        ({"parallel": {"pp": 2}}, "parallel.pp: found 2 with experts"),
        ({"parallel": {"dp": 2, "zero_stage": 3}}, "parallel.zero_stage: found 3 with experts; allowed: 0, 1, 2"),
        ({"routing": {"z_loss": 0.1}}, "routing.z_loss: found 0.1; it has no argument for it, allowed: 0"),
        ({"routing": {"normalize": False}}, "routing.normalize: found false; DeepSpeed's gates normalise"),
        ({"routing": {"router": "expert_choice"}}, "expert_choice routers"),
        ({"routing": {"capacity_factor": 1.0, "pad": False}}, "routing.pad: found false with a capacity"),
    ],
)
def test_plans_outside_are_refused(changes: dict[str, Any], said: str) -> None:
    plan = _plan(**changes)
    with pytest.raises(InputError) as refusal:
        check_runs(plan, architecture_of(plan))
    assert said in str(refusal.value)


def test_a_checkout_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(MissingExtraError, match=f"needs a checkout of Megatron-DeepSpeed, .* set {VARIABLE}"):
        checkout_of(None)
    with pytest.raises(MissingExtraError, match=r"allowed: a folder that holds pretrain_gpt\.py"):
        checkout_of(str(tmp_path))
    (tmp_path / "pretrain_gpt.py").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert checkout_of() == tmp_path


_FAKE = """import argparse, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--global-batch-size", type=int)
batch = parser.parse_known_args()[0].global_batch_size
for i in range(1, {steps} + 1):
    time.sleep(0.05)
    print(f" iteration {{i:8d}}/{{{steps}:8d}} | consumed samples: {{i * batch:12d}} | "
          f"elapsed time per iteration (ms): 50.0 | lm loss: {{10 - i / 10:.6E}} | moe loss: 1.0E-01 | "
          "number of skipped iterations:   0 |", flush=True)
if {fails}:
    sys.exit("torch.OutOfMemoryError: CUDA out of memory")
"""


def _checkout(folder: Path, *, steps: int = 10_000, fails: bool = False) -> Path:
    (folder / "pretrain_gpt.py").write_text(_FAKE.format(steps=steps, fails=fails))
    return folder


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is started by itself, and not by torchrun."""
    from moemodel.profiler.backends.megatron_deepspeed import program

    real = program.command

    def alone(*arguments: Any, **options: Any) -> Any:
        told = real(*arguments, **options)
        return replace(told, argv=(sys.executable, *told.argv[5:]))

    monkeypatch.setattr(program, "command", alone)


@pytest.mark.usefixtures("no_launcher")
def test_it_is_a_run_that_is_measured_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moemodel.profiler.runs.record import phases_of

    monkeypatch.setenv(VARIABLE, str(_checkout(tmp_path)))
    run = builder("megatron-deepspeed")(_run("mixtral"), torch.device("cpu"))
    assert run is not None
    marks: list[str] = []
    losses = []
    for _ in range(3):
        run.step(marks.append)
        losses.append(run.loss())
    assert losses == pytest.approx([9.8, 9.7, 9.6])  # the first step is the start's
    assert marks == ["start", "step"] * 3
    assert phases_of(run, 3) == ["step"]
    found = run.statistics()
    assert found.task_loss is not None
    assert found.router_loss is not None
    assert (float(found.task_loss), float(found.router_loss)) == pytest.approx((9.6, 0.1))
    assert run.parameters == parameters(_MODELS["mixtral"]).total
    folder = Path(run._folder.name)  # type: ignore[attr-defined]
    assert (folder / "tokens.idx").exists()
    run.close()
    assert not folder.exists()


@pytest.mark.usefixtures("no_launcher")
def test_a_program_that_runs_out_of_memory_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(_checkout(tmp_path, steps=2, fails=True)))
    run = builder("megatron-deepspeed")(_run("llama"), torch.device("cpu"))
    assert run is not None
    run.step(lambda _: None)
    with pytest.raises(ProgramError, match="CUDA out of memory") as failure:
        run.step(lambda _: None)
    assert failure_of(failure.value, 0).kind == "memory"


@pytest.mark.usefixtures("no_launcher")
def test_a_program_that_ends_early_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(_checkout(tmp_path, steps=0)))
    with pytest.raises(ProgramError, match="Megatron-DeepSpeed ended before it was told to"):
        builder("megatron-deepspeed")(_run("llama"), torch.device("cpu"))


def test_several_gpus_are_refused() -> None:
    with pytest.raises(
        InputError, match="llama: found 2 GPUs; Megatron-DeepSpeed is run by its own launcher on one GPU"
    ):
        builder("megatron-deepspeed")(_run("llama", parallel={"dp": 2}), torch.device("cpu"))


def test_programs_are_found_by_their_backend() -> None:
    assert program("megatron-deepspeed").NAME == "Megatron-DeepSpeed"
    with pytest.raises(InputError, match="found 'torch'; allowed for a program of its own: megatron-deepspeed"):
        program("torch")
