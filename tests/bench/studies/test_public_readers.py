"""Tables of public runs, made up in their sources' form: what is read, what is named, and what crashes nobody."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.plan.stage_layers import EndSlots
from studies.public.b200 import B200, b200
from studies.public.bridge import bridge
from studies.public.golden import GOLDEN, golden
from studies.public.mlperf import mlperf, mlperf_v4_v5
from studies.public.nanotron import NANOTRON, nanotron
from studies.public.plan_files import group
from studies.public.run import PublicRun
from studies.public.tables import SAILOR, foundry_a100, fsdp, sailor
from studies.runs import BRIDGE, FSDP, MLPERF

MEASURED = Path(__file__).parents[3] / "bench" / "measured"
BRIDGE_TABLE = """\
release,mode,model,gpus,precision,gbs,mbs,seq,fsdp,tp,pp,cp,vp,ep,tok_s_gpu
26.06 NeMo Container,Pre-Training Performance,LLAMA3_70B,64,FP8,128,1,8192,,4,8,1,5,n/a,1600
26.06 NeMo Container,Pre-Training Performance,Kimi-K2,1024,FP8-MX,4096,1,4096,,2,16,1,1,64,300
25.09 NeMo Container,Pre-Training Performance,Qwen3_30B_a3B (tokendrop),16,,1024,1,4096,,1,1,1,n/a,16,12000
26.06 NeMo Container,Pre-Training Performance,Nemotron_9,16,FP8,1024,1,8192,,1,1,1,n/a,8,14000
26.06 NeMo Container,LoRA Performance,LLAMA3_70B,8,FP8,32,1,4096,,2,4,1,20,n/a,2600
"""
NANOTRON_TABLE = """\
seq_len,mbs,batch_accum,tok/s/gpu,AG Intra-node (GB/s),Mem Res (GB),dp,pp,tp,hidden_size,num_layers,num_heads,\
num_kv_heads,vocab_size,tie_word_embeddings,zero_stage,interm_dim,status,after_pp_fix
4096,2,16.0,40000,263,50,8,1,1,2048,16,32,8.0,131072,True,0,8192.0,Success,False
4096,64,1.0,,,,4,1,2,2048,16,32,,131072,,0,8192.0,OOM,False
4096,2,16.0,40000,242,50,4,2,1,2048,16,32,8.0,131072,True,0,8192.0,Success,False
4096,2,16.0,30000,242,50,4,1,2,2048,16,32,8.0,131072,True,1,8192.0,Success,True
4096,2,16.0,9000,42,50,4,1,2,2048,16,32,8.0,131072,True,0,8192.0,Success,True
"""
FSDP_TABLE = """\
Model,SeqLen (T),# GPUs,GPU,MicroBatchSize,GlobalBatchSize,Throughput (T/s/GPU),Precision,\
Sharding Strategy,Activation Checkpointing
7b,2048,8,h100_80gb,4,64,10000,amp_bf16,FULL_SHARD,True
9b,2048,8,a100_80gb,4,64,10000,amp_bf16,SHARD_GRAD_OP,False
"""
MLPERF_TABLE = """\
round,submitter,system,nodes,acc_per_node,accelerator,benchmark,gbs,seq,stat_key,median
v3.1,NVIDIA,eos_n64_ngc23.09_nemo,64,8,NVIDIA H100,gpt3,128,2048,train_step_time,5.0
v3.1,NVIDIA,eos_n64_ngc23.09_nemo,64,8,NVIDIA H100,gpt3,128,2048,train_step_time,7.0
v3.1,NVIDIA,eos_n64_ngc23.09_nemo,64,8,NVIDIA H100,flux1,128,2048,train_step_timing,5.0
v5.1,Cisco,hpf_n8,8,8,NVIDIA H100,llama2_70b_lora,8,,throughput,16.0
v5.1,Cisco,hpf_n8,8,8,NVIDIA H100,llama2_70b_lora,8,,throughput,20.0
v5.2,Cisco,hpf_n8,8,8,NVIDIA H100,llama2_70b_lora,8,,throughput,20.0
"""
SAILOR_TABLE = """\
dp,tp,pp,micro_batch,global_batch,sequence_length,iteration_s,peak_memory_B
1,4,2,1,8,2048,0.5,8000000000
"""


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def plan_of(run: PublicRun) -> Plan:
    plan = run.plans[0]
    assert isinstance(plan, Plan), plan
    return plan


def test_megatron_bridge(tmp_path: Path) -> None:
    written(tmp_path, BRIDGE, BRIDGE_TABLE)
    dense, lora = bridge(tmp_path, experts=False)
    kimi, dropped, unknown = bridge(tmp_path, experts=True)
    assert dense.time_s == (pytest.approx(128 * 8192 / (64 * 1600)),)
    assert (plan_of(dense).parallel.dp, plan_of(dense).parallel.virtual_stages) == (2, 5)
    assert (plan_of(kimi).precision, plan_of(dropped).precision) == ("mxfp8", "fp8")
    adapted = plan_of(lora)
    assert adapted.lora is not None
    assert (adapted.lora.rank, adapted.lora.targets, adapted.transpose_cache) == (32, ("qkv",), False)
    assert not unknown.is_read
    assert "Nemotron_9" in str(unknown.plans[0])


def test_nanotron_takes_what_a_failed_run_does_not_say_from_those_of_its_model(tmp_path: Path) -> None:
    # the third is of before the mend
    ran, failed, checked, broken = nanotron(written(tmp_path, NANOTRON, NANOTRON_TABLE))
    assert (ran.ran, failed.ran) == (True, False)
    assert failed.time_s == ()
    assert plan_of(ran).architecture == plan_of(failed).architecture
    assert ran.time_s == (pytest.approx(2 * 16 * 8 * 4096 / (8 * 40000)),)
    assert [bool(plan_of(run).collective_checks) for run in (ran, failed, checked, broken)] == [
        False,
        False,
        True,
        False,
    ]
    assert checked.time_s != ()
    assert broken.time_s == ()  # its links inside the node were not NVLink


def test_other_tables(tmp_path: Path) -> None:
    known, unknown = fsdp(written(tmp_path, FSDP, FSDP_TABLE), "amp_bf16")
    assert (plan_of(known).parallel.zero_stage, plan_of(known).recompute) == (3, "full")
    assert not unknown.is_read
    (run,) = sailor(written(tmp_path, f"{SAILOR}/gpt_neo_2_7b.csv", SAILOR_TABLE))
    assert (plan_of(run).cluster.gpus, run.of_memory) == (8, "device")


def test_mlperf_runs_are_read_by_their_own_settings(tmp_path: Path) -> None:
    submitted, other, tuned, later = mlperf(written(tmp_path, MLPERF, MLPERF_TABLE))
    assert submitted.time_s == (6.0,)
    assert (plan_of(submitted).parallel.virtual_stages, plan_of(submitted).fp8_recipe) == (12, "delayed")
    assert not other.is_read  # of another model
    assert not later.is_read  # of a round without settings
    assert tuned.time_s == pytest.approx((8 / 18,))
    adapters, degrees = plan_of(tuned).lora, plan_of(tuned).parallel
    assert adapters is not None
    assert (adapters.rank, adapters.targets, degrees.tp, degrees.cp, degrees.dp) == (16, ("qkv", "proj"), 4, 2, 8)
    assert (plan_of(tuned).sequence_length, plan_of(tuned).cluster.internode) == (8192, "ethernet-400g")
    assert plan_of(tuned).cuda_graphs


def test_mlperf_runs_of_unknown_accelerators_are_not_read(tmp_path: Path) -> None:
    table = MLPERF_TABLE.replace("64,8,NVIDIA H100,gpt3", "64,8,AMD Instinct MI300X,gpt3")
    run, *_ = mlperf(written(tmp_path, MLPERF, table))
    assert not run.is_read
    assert "AMD Instinct MI300X: none that is known here (GB200, " in str(run.plans[0])


def test_mlperf_s_adapters_are_ordered_where_ranks_share_a_sequence() -> None:
    runs = [plan_of(run) for run in mlperf_v4_v5() if run.is_read]
    tuned = [plan for plan in runs if plan.lora is not None]
    assert {bool(plan.lora.dropout) for plan in tuned if plan.lora is not None} == {True}
    for plan in tuned:
        assert plan.lora is not None
        assert plan.lora.all_to_all is (plan.parallel.tp > 1 and plan.parallel.sequence_parallel)
    assert len({plan.lora.all_to_all for plan in tuned if plan.lora is not None}) == 2


def test_mlperf_runs_that_are_kept_here() -> None:
    """Each once, with the batch that its log states out of the micro-batches of its configuration."""
    runs = mlperf_v4_v5()
    assert len({run.label for run in runs}) == len(runs) == 116
    kept = [run for run in runs if run.is_read]
    assert len(kept) == 103
    logged = {run.label: accumulated for run, accumulated in zip(runs, _accumulated(), strict=True)}
    for run in kept:
        plan = plan_of(run)
        assert plan.parallel.dp * plan.micro_batch * logged[run.label] == plan.global_batch, run.label
        assert run.time_s[0] > 0
    gb200 = next(plan_of(run) for run in kept if "tyche_ngpu512_ngc25.04_nemo" in run.label)
    assert (gb200.cluster.gpu, gb200.cluster.gpus_per_node) == ("gb200-186gb", 64)


def _accumulated() -> list[int]:
    """Gradient accumulation steps of each system, as its logs state them."""
    text = (MEASURED / "mlperf-v4-v5.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    names = ("round", "submitter", "system", "benchmark")
    return list({tuple(row[name] for name in names): int(row["grad_accum"]) for row in rows}.values())


def test_of_llm_foundrys_a100_tables_the_runs_of_2023_are_read() -> None:
    """Parameters, positions among them, are as many as the source counts (its column NumParams)."""
    found = {run.label: run for run in foundry_a100(2023)}
    assert {plan_of(run).cluster.gpu for run in found.values()} == {"a100-sxm-80gb"}
    assert not any(label.startswith("70b") for label in found)
    small, large = found["125m seq512 x8 mb128"], found["30b seq8192 x8 mb1"]
    assert small.time_s == pytest.approx((2048 * 512 / 8 / 165681,))
    assert (plan_of(small).recompute, plan_of(large).recompute) == ("none", "full")
    counted = {run.label: parameters(architecture_of(plan_of(run))).total for run in (small, large)}
    assert counted == {small.label: 124131840, large.label: 30019254272}


def test_of_llm_foundrys_a100_tables_the_runs_of_2022_are_read_apart() -> None:
    runs = foundry_a100(2022)
    clusters = [plan_of(run).cluster for run in runs]
    assert len(runs) == 80
    assert sorted({(cluster.gpu, cluster.gpus) for cluster in clusters if cluster.gpu.endswith("80gb")}) == [
        ("a100-sxm-80gb", 32),
        ("a100-sxm-80gb", 64),
    ]
    (whole,) = [run for run in runs if run.label == "70b seq2048 x64 mb8" and plan_of(run).cluster.gpu.endswith("80gb")]
    assert whole.time_s == pytest.approx((2048 * 2048 / 64 / 410,))
    network = plan_of(whole).cluster.internode
    assert not isinstance(network, str)
    assert network.bandwidth_GBps * 8 * 8 == 1600  # Gbit/s of a node of eight


def test_stages_of_a_case(tmp_path: Path) -> None:
    ranks = {str(rank): {"max_allocated_mb": 1000.0 + rank} for rank in range(8)}
    case = {"model": "llama3-70b", "case": "llama3_70b_l12_tp1_pp2_dp4_mbc4_cef", "real_ms": 843.0}
    cases = [case | {"peak_memory_by_rank_mb": ranks}, case | {"model": "new", "peak_memory_by_rank_mb": ranks}]
    first, last, unknown = b200(written(tmp_path, B200, json.dumps(cases)))
    assert (first.memory_B / 2**20, last.memory_B / 2**20, last.stage) == (1003, 1007, 1)
    assert (first.time_s, last.time_s) == ((0.843,), ())
    assert not unknown.is_read


def test_functional_tests(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"--num-layers": 12, "--hidden-size": 512, "--num-attention-heads": 8, "--bf16": True}
    arguments |= {"--seq-length": 1024, "--max-position-embeddings": 1024, "--micro-batch-size": 4}
    arguments |= {"--pipeline-model-parallel-size": 2}
    case = {"case": "gpt/one", "file": "golden_values_dev_dgx.json", "gpu": "a100", "args": arguments}
    case |= {"iteration_time_s": 0.2, "max_allocated_B": 1e9}
    second = case | {"file": "golden_values_dev_dgx_2nd.json", "iteration_time_s": 0.05}
    images = case | {"args": arguments | {"--img-h": 336}}
    release = case | {"case": "gpt/one_release"}
    older = case | {"file": "golden_values_lts_dgx.json"}
    copied = case | {"case": "hybrid/hybrid_mr_mcore_te_tp1_pp4_cp1_dgx_a100_1N8G"}
    copied |= {"file": "golden_values_lts_dgx_a100.json"}
    text = "\n".join(json.dumps(each) for each in (case, second, images, release, older, copied))
    first, again, unread, unsaid = golden(written(tmp_path, GOLDEN, text))
    assert (first.time_s, first.memory_B, first.stage) == ((0.2,), 1e9, 1)
    assert again.time_s == ()
    assert again.memory_B != again.memory_B  # a checkpoint was loaded
    assert not unread.is_read
    assert unsaid.memory_B != unsaid.memory_B  # nor is it said how attention ran


BRIDGE_PLAN = """\
# published: tok_s_gpu=5000
architecture: {model}
sequence_length: 4096
global_batch: 1024
micro_batch: 1
precision: {precision}
recompute: none
backend: megatron-core
cluster: {{gpu: h100-sxm-80gb, gpus: {gpus}}}
parallel: {{dp: {dp}, pp: {pp}, ep: 8, virtual_stages: {virtual}, zero_stage: 1}}
"""


def test_plan_files_of_megatron_bridge_are_read_as_its_tables(tmp_path: Path) -> None:
    """GPT-OSS for the model that stands for it; weights in 8 bits beside such products; the ends of Qwen3 235B count as
    layers (recipes/qwen/qwen3_moe.py), and Qwen3 30B of 26.02.01 has no pipeline."""
    folder = tmp_path / "rows" / "bridge"
    folder.mkdir(parents=True)
    for name, said in {
        "07-GPTOSS120B-26.04.01": {"model": "qwen3-30b-a3b", "precision": "bf16-mixed", "gpus": 64, "dp": 16, "pp": 4},
        "09-Qwen3_235B_a22B-26.04": {"model": "qwen3-235b-a22b", "precision": "fp8", "gpus": 256, "dp": 32, "pp": 8},
        "18-Qwen3_30B_a3B-26.02.01": {"model": "qwen3-30b-a3b", "precision": "fp8", "gpus": 16, "dp": 8, "pp": 2},
    }.items():
        text = BRIDGE_PLAN.format(**said, virtual=4 if name.startswith("09") else 1)
        (folder / f"{name}-none.yaml").write_text(text, encoding="utf-8")
    gpt, large, small = map(plan_of, group(tmp_path, "bridge"))
    assert architecture_of(gpt).layers[0].attentions[0].sinks
    assert [plan.parameter_dtype for plan in (gpt, large, small)] == [None, "fp8", "fp8"]
    assert (large.stage_layers, small.stage_layers) == (EndSlots(embedding=1, head=1), None)
    assert (small.parallel.dp, small.parallel.pp, small.parallel.ep) == (16, 1, 16)
