"""Nanotron's memory, against what its own runs wrote (Hugging Face, Ultra-Scale Playbook: a Llama of 16 layers, width
2,048, 131,072 tokens in a tied vocabulary, on H100): what was given out in a step, and what was reserved, in GiB.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.schedule.pipeline_layout import stages
from moemodel.model.step.memory import Memory, MemoryModel
from moemodel.model.step.memory_fit import peak_memory, thriftiest_B
from moemodel.model.step.system import system_of

MakePlan = Callable[..., Plan]
GiB = 2.0**30
CONFIG = {
    "model_type": "llama",
    "vocab_size": 131072,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}


@pytest.fixture
def llama_plan(plan_of: MakePlan, tmp_path: Path) -> MakePlan:
    """A plan of that model, of 256 sequences a step."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")

    def make(*, micro_batch: int = 1, checks: bool = False, zero: int = 0, **degrees: int) -> Plan:
        gpus = degrees.get("dp", 1) * degrees.get("tp", 1) * degrees.get("pp", 1)
        return plan_of(
            architecture=str(config),
            backend="nanotron",
            collective_checks=checks,
            sequence_length=4096,
            global_batch=256,
            micro_batch=micro_batch,
            cluster={"gpu": "h100-sxm-80gb", "gpus": gpus, "internode": "efa-p5"},
            parallel={"zero_stage": zero, "sequence_parallel": degrees.get("tp", 1) > 1} | degrees,
        )

    return make


def first_stage(plan: Plan) -> Memory:
    architecture, system = architecture_of(plan), system_of(plan, shipped("h100-sxm-80gb"))
    model = MemoryModel(
        architecture,
        batch_of(plan),
        framework=system.framework,
        precision=system.precision,
        calibration=system.calibration,
    )
    return model.stage(stages(architecture, plan.parallel.pp, 1)[0])


@pytest.mark.parametrize(
    ("degrees", "zero", "micro_batch", "given_out_GiB"),
    [
        ({"dp": 8}, 0, 1, 25.07),
        ({"dp": 8}, 1, 1, 14.76),
        ({"dp": 256}, 1, 1, 12.64),
        ({"dp": 16, "tp": 4}, 0, 1, 6.35),
        ({"dp": 16, "tp": 8}, 1, 16, 2.27),
        ({"tp": 8}, 0, 16, 3.39),
    ],
)
def test_a_step_holds_what_its_runs_were_given(
    degrees: dict[str, int], zero: int, micro_batch: int, given_out_GiB: float, llama_plan: MakePlan
) -> None:
    """Parameters, sums of gradients, states, copies to gather, and two buffers of whole hidden states."""
    terms = first_stage(llama_plan(zero=zero, micro_batch=micro_batch, **degrees)).terms_B
    held = ("parameters", "gradients", "optimizer_states", "optimizer_transient", "tensor_parallel_buffers")
    assert sum(float(terms[name][0]) for name in held) / GiB == pytest.approx(given_out_GiB, rel=0.035)


@pytest.mark.parametrize(("pp", "layers"), [(2, 10), (4, 5), (8, 3)])
def test_a_stage_that_has_just_its_share_takes_no_more(pp: int, layers: int, llama_plan: MakePlan) -> None:
    """A head of four layers makes 20 to share: 10 and 5 are even shares. Two stages over 8 and 64 data-parallel ranks
    were given 10.35 and 9.01 GiB, whose difference is 14 (1/8 - 1/64) bytes of 0.94e9 parameters: an embedding and ten
    layers of 67e6."""
    architecture = architecture_of(llama_plan(pp=pp, dp=8, zero=1))
    assert sum(stages(architecture, pp, 1)[0].layers) == layers
    assert (10.35 - 9.01) * GiB / (14 * (1 / 8 - 1 / 64)) == pytest.approx(268.4e6 + 10 * 67.1e6, rel=0.01)


@pytest.mark.parametrize(
    ("degrees", "reserved_GiB"),
    [({"tp": 16, "pp": 2}, 19.37), ({"tp": 16, "pp": 8}, 42.76), ({"tp": 8, "pp": 8}, 63.87)],
)
def test_long_pipelines_free_late_though_hosts_wait(
    degrees: dict[str, int], reserved_GiB: float, llama_plan: MakePlan
) -> None:
    """Shards alone would be half of the second."""
    found = first_stage(llama_plan(micro_batch=32, checks=True, **degrees))
    reserved_B = found.peak_B - found.terms_B["context"]
    assert float(reserved_B[0]) / GiB == pytest.approx(reserved_GiB, rel=0.2)


@pytest.mark.parametrize(
    ("checks", "zero", "micro_batch", "degrees", "reserved_GiB"),
    [
        (True, 1, 8, {"dp": 8, "tp": 2, "pp": 2}, 46.34),
        (True, 1, 8, {"dp": 2, "tp": 2, "pp": 4}, 45.88),
        (True, 1, 16, {"dp": 2, "tp": 4, "pp": 8}, 53.42),
        (True, 1, 32, {"dp": 2, "tp": 8, "pp": 2}, 58.31),
        (True, 1, 16, {"dp": 4, "tp": 8, "pp": 4}, 23.34),  # the hosts are the later
        (False, 0, 16, {"dp": 16, "tp": 8}, 34.16),
        (False, 0, 16, {"dp": 2, "tp": 8}, 40.23),  # eight micro-batches a step
    ],
)
def test_what_collectives_hold_where_the_device_is_the_later(
    checks: bool, zero: int, micro_batch: int, degrees: dict[str, int], reserved_GiB: float, llama_plan: MakePlan
) -> None:
    """Whatever the pipeline, since it has as many layers in flight; checks or not."""
    found = first_stage(llama_plan(micro_batch=micro_batch, checks=checks, zero=zero, **degrees))
    reserved_B = found.peak_B - found.terms_B["context"]
    assert float(reserved_B[0]) / GiB == pytest.approx(reserved_GiB, rel=0.15)


def test_what_is_only_cached_is_given_back(llama_plan: MakePlan) -> None:
    """Copies of a step, 4 bytes of each parameter and 2 of a rank's, and with them their share of fragments."""
    plan = llama_plan(dp=8, zero=1)
    architecture, system, plans = architecture_of(plan), system_of(plan, shipped("h100-sxm-80gb")), batch_of(plan)
    kept_B = peak_memory(architecture, plans, system).peak_B - thriftiest_B(architecture, plans, system)
    parameters = (14.76 - 12.64) * GiB / (14 * (1 / 8 - 1 / 256))
    assert float(kept_B[0]) == pytest.approx(1.03 * (4 + 2 / 8) * parameters, rel=0.02)
