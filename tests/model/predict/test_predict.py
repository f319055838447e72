"""What must hold of every prediction, whatever the calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import list_architectures, read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.network.collectives import Collective
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.recompute import Recompute
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.schedule.registry import number
from moemodel.model.step.system import System

Batch = Callable[..., PlanBatch]

TIMES = ("forward_s", "backward_s", "optimizer_s", "exposed_communication_s", "bubble_s", "host_wait_s")
ENERGIES = ("forward_J", "backward_J", "optimizer_J", "communication_J", "idle_J")

# Legal plans of OLMoE-1B-7B that differ in everything, on 8 to 64 GPUs.
MIXED = {
    "dp": [8, 2, 4, 16, 1, 8, 4, 2],
    "tp": [1, 4, 2, 1, 8, 1, 1, 2],
    "pp": [1, 2, 4, 4, 1, 8, 2, 2],
    "ep": [1, 2, 4, 16, 1, 8, 1, 2],
    "cp": [1, 1, 1, 1, 1, 1, 1, 2],
    "zero_stage": [3, 1, 0, 1, 0, 1, 1, 0],
    "sequence_parallel": [0, 1, 1, 0, 1, 0, 0, 1],
    "virtual_stages": [1, 1, 1, 1, 1, 2, 2, 1],
    "micro_batch": [1, 2, 1, 1, 4, 2, 1, 1],
    "recompute": [0, 1, 2, 0, 1, 2, 0, 0],
    "schedule": [0, 0, 1, 2, 0, 0, 2, 1],
    "skew": [1.0, 1.5, 1.0, 2.0, 1.0, 1.2, 1.0, 1.0],
    "clock_Hz": [np.inf, 1.2e9, np.inf, 1.5e9, np.inf, np.inf, 8e8, np.inf],
    "power_cap_W": [np.inf, np.inf, 400.0, np.inf, 500.0, np.inf, np.inf, 300.0],
}


@pytest.fixture(scope="module")
def olmoe() -> Architecture:
    return read_architecture("olmoe-1b-7b")


@pytest.fixture(scope="module")
def opt() -> Architecture:
    return read_architecture("opt-350m")


def columns(prediction: Prediction) -> dict[str, np.ndarray]:
    """Every array of a prediction by name, memory terms included."""
    flat = {f.name: getattr(prediction, f.name) for f in fields(prediction) if f.name != "memory_terms_B"}
    return flat | prediction.memory_terms_B


@pytest.mark.parametrize("name", list_architectures())
def test_every_architecture_has_finite_and_positive_costs(name: str, batch: Batch, machine: System) -> None:
    prediction = predict(read_architecture(name), batch(dp=8, zero_stage=1), machine)
    for column, values in columns(prediction).items():
        assert np.isfinite(values).all(), column
        assert (values >= 0).all(), column
    assert prediction.step_time_s[0] > 0
    assert 0 < prediction.mfu[0] < 1


def test_phases_add_up(olmoe: Architecture, batch: Batch, machine: System) -> None:
    prediction = predict(olmoe, batch(**MIXED), machine)
    assert sum(getattr(prediction, name) for name in TIMES) == pytest.approx(prediction.step_time_s, rel=1e-9)
    assert sum(getattr(prediction, name) for name in ENERGIES) == pytest.approx(prediction.energy_J, rel=1e-9)
    assert sum(prediction.memory_terms_B.values()) == pytest.approx(prediction.memory_B, rel=1e-9)


def test_many_plans_are_one_plan_many_times(olmoe: Architecture, batch: Batch, machine: System) -> None:
    plans = batch(**MIXED)
    together = columns(predict(olmoe, plans, machine))
    for row in range(len(plans)):
        alone = columns(predict(olmoe, plans.take(np.array([row])), machine))
        for name, values in together.items():
            assert alone[name][0] == pytest.approx(values[row], rel=1e-9), (name, row)


@pytest.mark.parametrize("name", ["opt-350m", "olmoe-1b-7b", "switch-base-128", "llama-3-8b"])
def test_more_clock_is_never_slower(name: str, batch: Batch, machine: System) -> None:
    clocks = np.arange(345e6, 1980.1e6, 15e6)
    prediction = predict(read_architecture(name), batch(dp=8, micro_batch=4, clock_Hz=clocks), machine)
    assert (np.diff(prediction.step_time_s) <= 1e-12).all()
    assert (np.diff(prediction.clock_Hz) >= -1e-3).all()


def test_no_clock_is_the_highest_one(olmoe: Architecture, batch: Batch, machine: System) -> None:
    free, highest = (predict(olmoe, batch(dp=8, clock_Hz=c), machine) for c in (np.inf, 1980e6))
    assert free.step_time_s == pytest.approx(highest.step_time_s)


def test_mean_power_stays_under_the_cap(olmoe: Architecture, batch: Batch, machine: System) -> None:
    caps = np.array([300.0, 400.0, 500.0, 600.0, 700.0])
    prediction = predict(olmoe, batch(dp=8, micro_batch=4, power_cap_W=caps), machine)
    assert (prediction.power_W <= caps * 1.01).all()
    assert (np.diff(prediction.step_time_s) <= 0).all()


def test_one_gpu_says_nothing(olmoe: Architecture, batch: Batch, machine: System) -> None:
    prediction = predict(olmoe, batch(), machine)
    assert prediction.exposed_communication_s[0] == 0
    assert prediction.hidden_communication_s[0] == 0
    assert prediction.communication_J[0] == 0
    assert prediction.bubble_s[0] == 0


def test_one_replica_is_no_data_parallelism(olmoe: Architecture, batch: Batch, machine: System) -> None:
    """With dp 1 there is nothing to exchange or to shard, whatever the ZeRO stage."""
    prediction = predict(olmoe, batch(zero_stage=[0, 1, 2, 3]), machine)
    for name, values in columns(prediction).items():
        assert values == pytest.approx(np.full(4, values[0])), name


def test_two_replicas_take_half_the_micro_batches_and_exchange_gradients(
    opt: Architecture, batch: Batch, machine: System
) -> None:
    one, two = (predict(opt, batch(dp=d, global_batch=16 * d), machine) for d in (1, 2))
    assert two.forward_s == pytest.approx(one.forward_s, rel=1e-6)
    assert two.exposed_communication_s[0] > 0
    assert two.tokens[0] == 2 * one.tokens[0]


def test_one_stage_has_no_bubble_and_more_stages_have_the_textbook_one(
    olmoe: Architecture, batch: Batch, machine: System
) -> None:
    m = 64
    prediction = predict(olmoe, batch(pp=[1, 2, 4, 8], global_batch=m), machine)
    bubble = prediction.bubble_s / prediction.step_time_s
    assert bubble[0] == 0
    for pp, share in zip((2, 4, 8), bubble[1:], strict=True):
        textbook = (pp - 1) / (m + pp - 1)
        assert textbook * 0.8 <= share <= textbook + 0.25  # stages with an end hold more work than the others


def test_gpipe_needs_the_memory_of_all_micro_batches(batch: Batch, machine: System) -> None:
    llama = read_architecture("llama-3-8b")  # its layers, not its ends, fill the first stage
    plans = batch(pp=4, global_batch=16, schedule=[number("1f1b"), number("gpipe")])
    eager, gpipe = predict(llama, plans, machine).memory_terms_B["activations"]
    assert gpipe == pytest.approx(eager * 16 / 4)


def test_an_infinite_network_takes_no_time(olmoe: Architecture, batch: Batch, machine: System) -> None:
    """In one node: between nodes NCCL's protocols need time of their own."""
    network = replace(
        machine.network,
        gpus_per_node=64,
        node_Bps=1e30,
        nic_Bps=1e30,
        node_latency_s=0.0,
        nic_latency_s=0.0,
        start_s=0.0,
        efficiency=dict.fromkeys(Collective, 1.0),
    )
    prediction = predict(olmoe, batch(**MIXED), replace(machine, network=network))
    assert prediction.exposed_communication_s == pytest.approx(np.zeros(8), abs=1e-12)


def test_memory_falls_with_sharding(olmoe: Architecture, batch: Batch, machine: System) -> None:
    zero = predict(olmoe, batch(dp=8, zero_stage=[0, 1, 2, 3]), machine).memory_B
    tensor = predict(olmoe, batch(dp=8, tp=[1, 2, 4, 8]), machine).memory_B
    expert = predict(olmoe, batch(dp=8, ep=[1, 2, 4, 8]), machine).memory_B
    pipeline = predict(olmoe, batch(dp=8, pp=[1, 2, 4, 8]), machine).memory_B
    for falling in (zero, tensor, expert, pipeline):
        assert (np.diff(falling) < 0).all()


def test_recomputing_saves_memory_and_costs_time(olmoe: Architecture, batch: Batch, machine: System) -> None:
    prediction = predict(olmoe, batch(dp=8, micro_batch=8, zero_stage=1, recompute=list(Recompute)), machine)
    assert (np.diff(prediction.memory_B) <= 0).all()
    assert prediction.memory_B[-1] < prediction.memory_B[0]
    assert (np.diff(prediction.backward_s) > 0).all()
    assert prediction.mfu[-1] < prediction.mfu[0]


def test_uneven_routing_costs_time(olmoe: Architecture, batch: Batch, machine: System) -> None:
    prediction = predict(olmoe, batch(dp=8, ep=8, skew=[1.0, 1.5, 2.0, 4.0]), machine)
    assert (np.diff(prediction.step_time_s) > 0).all()


def test_a_known_temperature_is_kept(opt: Architecture, batch: Batch, machine: System) -> None:
    cool, warm = (predict(opt, batch(), machine, temperature_C=t) for t in (40.0, 70.0))
    assert cool.temperature_C[0] == 40.0
    assert warm.temperature_C[0] == 70.0
    assert cool.energy_J[0] < warm.energy_J[0]


def test_a_slow_host_makes_small_work_wait(opt: Architecture, batch: Batch, machine: System) -> None:
    """The same work in smaller pieces takes longer, and power falls, once the host can't keep up."""
    prediction = predict(opt, batch(seq=256, global_batch=64, micro_batch=[1, 64]), machine)
    assert prediction.host_wait_s[0] > prediction.host_wait_s[1]
    assert prediction.step_time_s[0] > 2 * prediction.step_time_s[1]
    assert prediction.power_W[0] < prediction.power_W[1]


@pytest.mark.parametrize("limit_W", [700.0, np.inf])
def test_where_power_is_not_modelled_nothing_holds_the_clock_back(
    olmoe: Architecture, batch: Batch, machine: System, limit_W: float
) -> None:
    """A processor, or a GPU whose power could not be read: all its powers are zero, and the clock the highest."""
    power = machine.calibration.power.parameters
    none = {name: p.model_copy(update={"value": 0.0}) for name, p in power.items() if name != "knee_Hz"}
    network = machine.calibration.network.parameters
    unpowered = network | {"link_power": network["link_power"].model_copy(update={"value": 0.0})}
    calibration = machine.calibration.model_copy(
        update={
            "power": machine.calibration.power.model_copy(update={"parameters": power | none}),
            "network": machine.calibration.network.model_copy(update={"parameters": unpowered}),
        }
    )
    bare = replace(machine, calibration=calibration, power_limit_W=limit_W)
    found, asked = (predict(olmoe, batch(dp=8, clock_Hz=c), bare) for c in (np.inf, 1980e6))
    assert found.step_time_s == pytest.approx(asked.step_time_s)
    free = predict(olmoe, batch(dp=8), replace(machine, power_limit_W=1e9))
    assert found.step_time_s == pytest.approx(free.step_time_s, rel=1e-3)
    assert found.power_W[0] == 0


# ---- parallel as profiler/backends/torch_native runs it ----


def test_where_the_host_learns_of_counts_it_cannot_run_ahead(
    olmoe: Architecture, batch: Batch, machine: System
) -> None:
    """With experts on other ranks the device stands idle at every MoE layer, however slow it is itself."""
    plans = batch(dp=8, ep=[1, 8], micro_batch=8)
    apart = predict(olmoe, plans, machine)
    m = plans.micro_batches[1]
    assert apart.host_wait_s[0] == 0
    layer_s = machine.calibration.host[0].blocks["moe_layer_qk_norm/forward"].value
    assert 0.03 * m * 16 * layer_s < apart.host_wait_s[1] < 0.3 * m * 16 * layer_s
    other = replace(machine, framework=framework_of("megatron"))  # waits for its router, wherever experts are
    assert (predict(olmoe, plans, other).host_wait_s > 0).all()


def test_zero_bubble_takes_bubbles_alone(batch: Batch, machine: System) -> None:
    llama = read_architecture("llama-3-8b")
    schedules = [number("1f1b"), number("zero-bubble")]
    prediction = predict(llama, batch(pp=4, global_batch=8, seq=4096, schedule=schedules, clock_Hz=1.2e9), machine)
    plain, zero = prediction.bubble_s
    assert 0.2 * plain < zero < 0.8 * plain
    assert prediction.forward_s[0] == pytest.approx(prediction.forward_s[1])
    assert prediction.backward_s[0] == pytest.approx(prediction.backward_s[1])
    assert prediction.energy_J[1] < prediction.energy_J[0]


@pytest.mark.parametrize("pp", [3, 5, 7])
def test_stages_need_not_be_even(opt: Architecture, batch: Batch, machine: System, pp: int) -> None:
    """All layers are there, and the longest stage holds one more at most."""
    one, cut = (predict(opt, batch(pp=n, global_batch=64, micro_batch=4, clock_Hz=1.2e9), machine) for n in (1, pp))
    assert cut.forward_s * pp == pytest.approx(one.forward_s, rel=0.01)
    assert cut.step_time_s > one.step_time_s / pp


def test_hidden_communication_slows_what_hides_it(olmoe: Architecture, batch: Batch, machine: System) -> None:
    """The more of it costs no time, the shorter the step; what begins and ends a pass shows in any case."""
    plans = batch(dp=8, zero_stage=[0, 1, 2, 3], micro_batch=4, clock_Hz=1.2e9)
    steps = [
        predict(olmoe, plans, replace(machine, network=replace(machine.network, overlap=share)))
        for share in (0.0, 0.5, 1.0)
    ]
    for less, more in pairwise(steps):
        assert (more.step_time_s < less.step_time_s).all()
        assert (more.hidden_communication_s > less.hidden_communication_s).all()
    assert (steps[-1].exposed_communication_s > 0).all()
    assert (steps[0].hidden_communication_s <= 1e-9).all()


def test_copies_of_shards_take_the_device(opt: Architecture, batch: Batch, machine: System) -> None:
    """As often as parameters are gathered forward and gradients scattered backward."""
    plans = batch(dp=8, micro_batch=1, global_batch=32, zero_stage=[0, 1, 2, 3], clock_Hz=1.2e9)
    prediction = predict(opt, plans, machine)
    forward = prediction.forward_s - prediction.forward_s[0]
    copy = forward[1]
    assert forward == pytest.approx([0, copy, copy, 4 * copy])
    assert copy > 0
    assert prediction.backward_s[3] > prediction.backward_s[2]
