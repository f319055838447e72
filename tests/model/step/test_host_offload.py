"""What the host keeps: bytes over links and memory against closed forms, and what stays on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.system import system_of

MakePlan = Callable[..., Plan]
PARAMETERS = parameters(read_architecture("llama-3-8b")).total
RATES = {"link_GBps": 50.0, "host_memory_GBps": 100.0}


@pytest.fixture
def found(plan_of: MakePlan, calibration: Calibration) -> Callable[..., Prediction]:
    def make(offload: dict[str, Any] | None, *, backend: str = "megatron", dp: int = 8, **others: Any) -> Prediction:
        plan = plan_of(
            architecture="llama-3-8b",
            backend=backend,
            global_batch=2 * dp,
            offload=offload,
            parallel={"dp": dp, "zero_stage": 1},
            cluster={"gpus": dp},
            **others,
        )
        return predict(architecture_of(plan), batch_of(plan), system_of(plan, calibration))

    return make


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_states_are_on_the_host(share: float, found: Callable[..., Prediction]) -> None:
    """12 bytes a parameter over dp ranks; weights and gradients stay (Ren et al. 2021, section 3)."""
    plain, offloaded = found(None), found({"optimizer": share, **RATES})
    states = [one.memory_terms_B["optimizer_states"][0] for one in (plain, offloaded)]
    assert states[0] == pytest.approx(12 * PARAMETERS / 8)
    assert states[1] == pytest.approx((1 - share) * 12 * PARAMETERS / 8)
    for kept in ("parameters", "gradients"):
        assert offloaded.memory_terms_B[kept][0] == plain.memory_terms_B[kept][0]


@pytest.mark.parametrize(("backend", "moved_B"), [("megatron", 86), ("megatron-deepspeed", 30)])
def test_copies_and_the_hosts_update(backend: str, moved_B: float, found: Callable[..., Prediction]) -> None:
    """4 bytes to the host and an element's back at 50 GB/s, the update at 100 GB/s of memory."""
    element_B = 4 if backend == "megatron-deepspeed" else 2
    precision = {"precision": "fp32"} if backend == "megatron-deepspeed" else {}
    owned = PARAMETERS / 8
    there_s, host_s, back_s = owned * 4 / 50e9, owned * moved_B / 100e9, owned * element_B / 50e9
    waits = [
        found(
            None if overlap is None else {"optimizer": 1.0, "overlap": overlap, **RATES}, backend=backend, **precision
        )
        for overlap in (None, False, True)
    ]
    plain, one_by_one, beside = (one.host_wait_s[0] for one in waits)
    assert one_by_one - plain == pytest.approx(there_s + host_s + back_s)
    assert beside - plain == pytest.approx(max(there_s, host_s, back_s))
    # the GPU has no update of its own any more
    assert waits[1].optimizer_s[0] < waits[0].optimizer_s[0]


def test_a_shorter_link_shows(found: Callable[..., Prediction]) -> None:
    """PCI Express 5 at 0.88 of 63.0 GB/s, where nothing is said."""
    waits = [
        found(None if link is None else {"optimizer": 1.0, "overlap": False, "host_memory_GBps": 1e6} | link)
        for link in (None, {}, {"link_GBps": 1.0})
    ]
    plain, pcie, slow = (one.host_wait_s[0] for one in waits)
    tiny_s = PARAMETERS / 8 * 86 / 1e15
    assert pcie - plain == pytest.approx(6 * PARAMETERS / 8 / (0.88 * 63015384615) + tiny_s)
    assert slow - plain == pytest.approx(6 * PARAMETERS / 8 / 1e9 + tiny_s)


def test_waiting_takes_static_power_alone(found: Callable[..., Prediction]) -> None:
    plain, offloaded = found(None), found({"optimizer": 1.0, **RATES})
    waits_s = offloaded.step_time_s[0] - plain.step_time_s[0]
    assert waits_s > 0.5
    more_W = (offloaded.energy_J[0] - plain.energy_J[0]) / 8 / waits_s
    assert 0 < more_W < 0.4 * plain.power_W[0]


def test_activations_on_the_host(found: Callable[..., Prediction]) -> None:
    """Of 32 layers two stay, and what goes is hidden where passes last long enough."""
    plain = found(None, micro_batch=2)
    offloaded = found({"activations": 1.0, "link_GBps": 900.0}, micro_batch=2)
    slow = found({"activations": 1.0, "link_GBps": 10.0}, micro_batch=2)
    kept = [one.memory_terms_B["activations"][0] for one in (plain, offloaded)]
    assert kept[1] == pytest.approx(2 / 32 * kept[0], rel=0.35)  # a layer that is made again is beside them
    assert offloaded.step_time_s[0] == pytest.approx(plain.step_time_s[0], rel=1e-6)
    assert slow.exposed_communication_s[0] > 0.5 * plain.step_time_s[0]
    half = found({"activations": 0.5}, micro_batch=2).memory_terms_B["activations"][0]
    assert kept[1] < half < kept[0]


@pytest.mark.parametrize(
    ("offload", "says"),
    [
        ({}, "a share of optimizer or activations above 0"),
        ({"optimizer": 1.5}, "offload.optimizer"),
        ({"optimizer": 1.0, "link_GBps": 0.0}, "offload.link_GBps"),
        ({"optimiser": 1.0}, "optimiser"),
    ],
)
def test_what_is_refused(offload: dict[str, Any], says: str, plan_of: MakePlan) -> None:
    with pytest.raises(InputError, match="offload") as caught:
        plan_of(offload=offload)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "offload"),
    [
        ({"optimizer-cpu-offload": True}, {"optimizer": 1.0, "overlap": False}),
        (
            {
                "optimizer-cpu-offload": True,
                "optimizer-offload-fraction": "0.5",
                "overlap-cpu-optimizer-d2h-h2d": True,
            },
            {"optimizer": 0.5, "overlap": True},
        ),
        ({"cpu-offloading-num-layers": 1}, {"activations": 0.5}),
        ({}, None),
    ],
)
def test_megatrons_words(arguments: dict[str, Any], offload: dict[str, Any] | None) -> None:
    least = {"num-layers": 2, "hidden-size": 64, "num-attention-heads": 8, "micro-batch-size": 1, "seq-length": 64}
    least |= {"global-batch-size": 8, "vocab-size": 1000, "max-position-embeddings": 64}
    found = megatron_run(least | arguments, gpu="h100-sxm-80gb", gpus=8)
    assert found.plan["offload"] == offload
    assert not found.left_out
    assert not found.unknown
