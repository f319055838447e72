"""Published runs as plans, machines of other software, fits that leave out whole groups. All rows here are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.layers.parameters import parameters
from moemodel.model.operators.work import Kind
from moemodel.model.plan.dispatch import ALL_TO_ALL, AS_THE_FRAMEWORK, DEEPEP, OVERLAPPED
from moemodel.model.plan.recompute import Recompute
from moemodel.model.schedule.pipeline_layout import PipelineLayout
from studies.runs import (
    BRIDGE,
    FSDP,
    GH200,
    MLPERF,
    Constant,
    Predictor,
    Row,
    Software,
    Study,
    adapted,
    bridge,
    fsdp,
    gh200,
    machine,
    mlperf,
)

H100 = Software(gpu="h100-sxm-80gb", backend="torch", precision="bf16-mixed")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.strip() + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("read", [gh200, fsdp, lambda f: bridge(f, experts=True), mlperf])
def test_a_missing_file_is_named(read: Callable[[Path], Study], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; give the folder that holds the published data"):
        read(tmp_path)


# ---- rows ----


def test_rows_of_gh200(tmp_path: Path) -> None:
    columns = "dp,tp,pp,micro_batch,global_batch,sequence_length,iteration_s,peak_memory_B"
    study = gh200(write(tmp_path, GH200, f"{columns}\n8,4,2,4,64,2048,0.5,1e10\n1,4,1,1,2,2048,0.25,5e9"))
    first, second = study.rows
    assert (first.time_s, first.memory_B, first.group) == (0.5, 1e10, "16 nodes")
    assert first.plan == {"dp": 8, "tp": 4, "pp": 2, "micro_batch": 4, "global_batch": 64, "seq": 2048}
    assert second.group == "1 nodes"
    assert isinstance(first.architecture, PipelineLayout)
    assert parameters(first.architecture).total == pytest.approx(4 * 103.7e6, rel=0.02)  # bytes of its plan files
    made = machine(study.software["sailor"], {})
    assert made.gradient_B == made.framework.precisions[made.precision].element_size_B == 4
    assert not made.framework.overlapped


_FSDP_COLUMNS = (
    "section,Model,SeqLen (T),# GPUs,GPU,MicroBatchSize,GlobalBatchSize,Throughput (T/s/GPU),Precision,"
    "Sharding Strategy,Activation Checkpointing"
)


def test_rows_of_fsdp(tmp_path: Path) -> None:
    rows = """
x,7b,2048,64,h100_80gb,4,256,8192,amp_bf16,FULL_SHARD,True
x,1b,4096,8,h100_80gb,2,32,4096,amp_bf16,SHARD_GRAD_OP,False
x,1b,4096,8,h100_80gb,2,32,4096,amp_fp8,FULL_SHARD,False
"""
    study = fsdp(write(tmp_path, FSDP, _FSDP_COLUMNS + rows))
    first, second = study.rows
    assert first.time_s == pytest.approx(256 * 2048 / 64 / 8192)
    assert (first.plan["zero_stage"], first.plan["recompute"], first.group) == (3, Recompute.FULL, "7b")
    assert (second.plan["zero_stage"], second.plan["recompute"]) == (2, Recompute.NONE)
    assert study.left_out == {"in FP8": 1}
    assert parameters(first.architecture).total == pytest.approx(6.66e9, rel=0.01)
    assert machine(study.software["fsdp"], {}).gradient_B == 4


_BRIDGE_COLUMNS = "file,release,mode,system,model,gpus,precision,gbs,mbs,seq,fsdp,tp,pp,cp,vp,ep,ga,tok_s_gpu"
_BRIDGE_ROWS = """
f,26.02 NeMo,Pre-Training,H,LLAMA3_70B,64,FP8,128,1,8192,0,4,4,2,5,n/a,,1024
f,26.02 NeMo,Pre-Training,H,LLAMA3_8B,8,BF16,128,1,8192,8,1,1,1,n/a,n/a,,8192
f,26.02 NeMo,LoRA Performance,H,LLAMA3_70B,8,FP8,32,1,4096,,2,4,1,20,n/a,,1000
f,26.02 NeMo,Pre-Training,H,Qwen3_30B_a3B (tokendrop),16,FP8,512,2,4096,0,1,2,1,12,8,,4096
f,26.06 NeMo,Pre-Training,H,Qwen3_30B_a3B,16,FP8,512,2,4096,0,1,1,1,n/a,16,,4096
f,26.02 NeMo,Pre-Training,H,Qwen3_235B_a22B,256,FP8,2048,1,4096,0,2,8,1,4,32,,1000
f,26.02 NeMo,Pre-Training,H,DeepSeekV3 (dropless),1024,nan,8192,1,4096,0,2,8,1,4,64,,1000
f,26.02 NeMo,Pre-Training,H,GPT OSS 120B,64,BF16,512,1,4096,0,1,4,1,1,8,,1000
f,26.02 NeMo,Pre-Training,H,Nemotron_3_Nano,16,FP8,512,1,4096,0,1,1,1,1,8,,1000
"""


def test_rows_of_dense_models_of_megatron_bridge(tmp_path: Path) -> None:
    study = bridge(write(tmp_path, BRIDGE, _BRIDGE_COLUMNS + _BRIDGE_ROWS), experts=False)
    first, second = study.rows
    assert first.time_s == pytest.approx(128 * 8192 / 64 / 1024)
    assert {name: first.plan[name] for name in ("dp", "tp", "pp", "cp", "virtual_stages", "sequence_parallel")} == {
        "dp": 2,
        "tp": 4,
        "pp": 4,
        "cp": 2,
        "virtual_stages": 5,
        "sequence_parallel": 1,
    }
    assert (first.software, first.plan["zero_stage"]) == ("FP8", 1)
    assert (second.software, second.plan["zero_stage"]) == ("BF16", 3)
    assert study.left_out == {"with LoRA": 1}


def test_rows_of_models_with_experts(tmp_path: Path) -> None:
    study = bridge(write(tmp_path, BRIDGE, _BRIDGE_COLUMNS + _BRIDGE_ROWS), experts=True)
    assert [row.software for row in study.rows] == ["FP8", "FP8", "FP8", "FP8", "BF16 turned apart"]
    assert [(row.plan["dispatch"], row.plan["dispatch_overlap"]) for row in study.rows] == [
        (ALL_TO_ALL, OVERLAPPED),
        (DEEPEP, AS_THE_FRAMEWORK),
        (ALL_TO_ALL, OVERLAPPED),
        (DEEPEP, AS_THE_FRAMEWORK),
        (ALL_TO_ALL, AS_THE_FRAMEWORK),
    ]
    assert {row.software for row in study.rows} <= set(study.software)
    assert study.left_out == {"with state-space layers": 1}
    sizes = {row.group: parameters(row.architecture).total for row in study.rows}
    published = {"Qwen3_30B_a3B": 30.5e9, "Qwen3_235B_a22B": 235e9, "DeepSeekV3": 671e9, "GPT OSS 120B": 116.8e9}
    assert sizes == pytest.approx(published, rel=0.01)


def test_rows_of_mlperf(tmp_path: Path) -> None:
    columns = "round,submitter,system,nodes,acc_per_node,accelerator,benchmark,gbs,seq,stat_key,median"
    rows = """
v3.1,NVIDIA,eos_n64_ngc23.09_nemo,64,8,NVIDIA H100-SXM-80GB,gpt3,2048,2048,train_step_timing,11
v3.1,NVIDIA,eos_n64_ngc23.09_nemo,64,8,NVIDIA H100-SXM-80GB,gpt3,2048,2048,train_step_timing,13
v3.1,NVIDIA,eos_n64_ngc23.09_nemo,64,8,NVIDIA H100-SXM-80GB,gpt3,2048,2048,validation_step_timing,1
v5.1,Nebius,nebius_h200_n64,64,8,NVIDIA H200-SXM5-141GB,llama31_405b,1152,8192,train_step_time,50
v5,C,three,1,8,NVIDIA H200-SXM5-141GB,llama2_70b_lora,8,,train_step_time,3
"""
    study = mlperf(write(tmp_path, MLPERF, columns + rows))
    first, second = study.rows
    assert (first.time_s, first.software, first.plan["dp"]) == (12.0, "h100", 16)
    assert (second.time_s, second.software, second.plan["dp"]) == (50.0, "h200", 8)
    assert parameters(second.architecture).total == pytest.approx(405e9, rel=0.01)
    assert study.left_out == {"systems that fine-tune with LoRA": 1}
    unknown = rows + "v5,C,four,1,8,NVIDIA H200-SXM5-141GB,llama31_8b,8,8192,train_step_time,3\n"
    with pytest.raises(InputError, match="no plan is known of four, llama31_8b"):
        mlperf(write(tmp_path, MLPERF, columns + unknown))


# ---- machines ----


def test_without_constants_the_calibration_stays_as_it_is() -> None:
    calibration = shipped("h100-sxm-80gb")
    same = adapted(calibration, read_gpu("h100-sxm-80gb"), H100, {})
    assert same == calibration


def test_words_of_four_bytes_halve_bandwidth_and_cache() -> None:
    calibration = shipped("h100-sxm-80gb")
    wide = replace(H100, backend="megatron-deepspeed-fp32", precision="fp32")
    other = adapted(calibration, read_gpu("h100-sxm-80gb"), wide, {})
    for name in ("bandwidth_Bps", "l2_B", "flops_per_cycle"):
        assert other.chip[name].value == pytest.approx(calibration.chip[name].value / 2, rel=1e-4)
    rate = {fit.kind: fit.parameters["efficiency"].value for fit in calibration.operators if fit.kind is Kind.ATTENTION}
    kept = {fit.kind: fit.parameters["efficiency"].value for fit in other.operators if fit.kind is Kind.ATTENTION}
    assert kept[Kind.ATTENTION] == pytest.approx(2 * rate[Kind.ATTENTION], rel=1e-4)  # of half the peak


def test_constants_scale_what_they_name() -> None:
    calibration, gpu = shipped("h100-sxm-80gb"), read_gpu("h100-sxm-80gb")
    slow = {"products": 0.5, "attention": 0.25, "elementwise": 0.8, "host": 3.0, "context": 2e9, "cached": 0.1}
    other = adapted(calibration, gpu, H100, slow)
    for fit, changed in zip(calibration.operators, other.operators, strict=True):
        factor = {Kind.GEMM: 0.5, Kind.GROUPED_GEMM: 0.5, Kind.ATTENTION: 0.25, Kind.COPY: 0.8, Kind.ADAMW: 1.0}
        if fit.kind not in factor:
            continue
        for name in ("efficiency_256x128", "efficiency"):
            if name in fit.parameters:
                assert changed.parameters[name].value == pytest.approx(factor[fit.kind] * fit.parameters[name].value)
        if fit.kind is Kind.COPY:
            assert changed.parameters["memory_efficiency"].value == pytest.approx(
                0.8 * fit.parameters["memory_efficiency"].value
            )
    blocks, before = other.host[0].blocks, calibration.host[0].blocks
    assert blocks["dense_layer/forward"].value == pytest.approx(3 * before["dense_layer/forward"].value)
    assert (other.memory.parameters["context"].value, other.memory.parameters["fragmentation"].value) == (2e9, 0.1)
    assert machine(H100, {"internode": 0.5}).network.nic_Bps == machine(H100, {}).network.nic_Bps / 2


# ---- fits ----


def made_up(constants: dict[str, float], *, spoilt: str | None = None) -> Study:
    """Rows that the model itself made with some constants, in four groups; one group may be measured 30 % slower."""
    architecture = replace(read_architecture("opt-350m"), decoder=read_architecture("opt-350m").decoder[:4])
    free = {name: Constant(start=1.0, low=0.2, high=2.0) for name in constants}
    rows = [
        Row(
            label=f"{seq} {micro_batch}",
            architecture=architecture,
            plan={"micro_batch": micro_batch, "global_batch": 2 * micro_batch, "seq": seq},
            software="torch",
            time_s=1.0,
            memory_B=1.0,
            group=f"seq {seq}",
        )
        for seq in (512, 1024, 1536, 2048)
        for micro_batch in (8, 16, 32)
    ]
    memory = {"context": Constant(start=1.26e9, low=1e8, high=8e9)}
    study = Study(name="made up", rows=rows, software={"torch": H100}, constants=free, memory_constants=memory)
    time_s, memory_B = Predictor(study).predicted(constants | {"context": 3e9})
    slower = [1.3 if row.group == spoilt else 1.0 for row in rows]
    measured = zip(rows, time_s, memory_B, slower, strict=True)
    return replace(study, rows=[replace(row, time_s=s * float(t), memory_B=float(b)) for row, t, b, s in measured])


def test_a_fit_finds_the_constants_that_made_the_rows() -> None:
    predictor = Predictor(made_up({"products": 0.6}))
    everything = np.ones(len(predictor.time_s), dtype=bool)
    assert predictor.fit(everything)["products"] == pytest.approx(0.6, rel=0.03)
    assert predictor.left_out() == pytest.approx(1.0, abs=0.02)
    assert predictor.fit(everything, memory=True)["context"] == pytest.approx(3e9, rel=0.03)
    assert predictor.left_out(memory=True) == pytest.approx(1.0, abs=0.02)


def test_what_rows_do_not_tell_apart_does_not_matter_to_them() -> None:
    predictor = Predictor(made_up({"products": 0.7, "elementwise": 0.8}))
    assert predictor.left_out() == pytest.approx(1.0, abs=0.03)


def test_a_group_left_out_is_not_seen() -> None:
    """Its rows are measured 30 % slower than the others would say, and predicted as the others say."""
    predictor = Predictor(made_up({"products": 0.7}, spoilt="seq 2048"))
    ratio = predictor.left_out()
    spoilt = predictor.groups == "seq 2048"
    assert ratio[spoilt] == pytest.approx(1 / 1.3, rel=0.02)


def test_rows_go_together_but_each_in_its_place() -> None:
    study = made_up({"products": 1.0})
    together = Predictor(study).predicted({})[0]
    alone = [Predictor(replace(study, rows=[row])).predicted({})[0][0] for row in study.rows[:4]]
    assert together[:4] == pytest.approx(alone)
