"""The parallelism study: energy and time of training over degrees of parallelism and SM clocks, predicted.

Zhang, Strati and Klimovic measured OPT-350M and OLMoE-1B-7B under Megatron-DeepSpeed on GH200 and A100 (2026). What is
predicted here, as far as it is known of it:

    degrees   OPT-350M on 32 GH200, batch 1024: dp, tp, pp and micro-batch
    experts   OLMoE-1B-7B, batch 1024, sequences of 2048 and 4096 tokens: ep
    clocks    OPT-350M on one A100, batch 256, micro-batch 1: SM clocks of 240 to 1410 MHz
    joint     OPT-350M on two nodes of four A100 40 GB, batch 1024: four plans (`JOINT`), their stages slowed one after
              another, those with more bubble first; at full clock dp4-pp1-tp2-mbs1 was measured as the fastest

Assumed, since it isn't known here: sequences of 2048 tokens, which OPT has; float32 with products in TF32 and nodes of
four GH200 on Slingshot, as Sailor, of the same group, trains OPT-350M under Megatron-DeepSpeed (its
ae_scripts/clariden_scripts/run_opt.slurm); between nodes of A100 100 Gb/s a GPU; OLMoE on as many GH200, dp 32 with
ZeRO 1 so that every ep fits, in bf16, under DeepSpeed's expert layer, which Megatron-DeepSpeed calls too
(megatron/model/transformer.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moemodel.model.plan.batch import joined
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.system import system_of

GH200, A100 = "gh200-96gb", "a100-sxm-40gb"
GPUS = (GH200, A100)
MEASURED_FASTEST = "dp4-pp1-tp2-mbs1"  # of JOINT, at full clock
FULL_CLOCK_MHZ = 1410.0
_NOTCH_MHZ = 60.0  # of the joint sweep; assumed
_LOWEST_MHZ = 510.0  # of the joint sweep: below, no reading of an A100's rates is in its calibration
_SWEEP_MHZ = (240.0, 30.0)  # from, and in steps of


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """Degrees of parallelism and the micro-batch."""

    dp: int
    pp: int
    tp: int
    micro_batch: int

    @property
    def name(self) -> str:
        """As the study names plans."""
        return f"dp{self.dp}-pp{self.pp}-tp{self.tp}-mbs{self.micro_batch}"


JOINT = (
    Degrees(dp=4, pp=1, tp=2, micro_batch=1),
    Degrees(dp=2, pp=2, tp=2, micro_batch=1),
    Degrees(dp=2, pp=2, tp=2, micro_batch=2),
    Degrees(dp=1, pp=4, tp=2, micro_batch=4),
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plan at one setting of its clocks.

    Attributes:
        name: of the plan.
        clocks_MHz: asked for, of each stage; None: the governor decides.
        step_s, energy_J, power_W: of a step: of all GPUs, and the mean of one.
        communication_s, bubble_s, host_s: of the step, exposed and idle.
        fits: into memory.
    """

    name: str
    clocks_MHz: tuple[float, ...] | None = None
    step_s: float
    energy_J: float
    power_W: float
    communication_s: float = 0.0
    bubble_s: float = 0.0
    host_s: float = 0.0
    fits: bool = True


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, and by what, as keys of a plan."""

    name: str
    document: dict[str, Any] = field(hash=False)

    def plan(self, degrees: Degrees, **others: Any) -> Plan:
        """With these degrees, and other keys of `parallel` or of the plan.

        Raises:
            InputError: they make no plan.
        """
        parallel = {"dp": degrees.dp, "tp": degrees.tp, "pp": degrees.pp}
        parallel |= {key: others.pop(key) for key in ("ep", "zero_stage") if key in others}
        own = {"name": degrees.name, "micro_batch": degrees.micro_batch, "parallel": parallel}
        return Plan.model_validate(self.document | own | others)


def _opt(name: str, gpu: str, gpus: int, batch: int, **cluster: Any) -> Job:
    return Job(
        name=name,
        document={
            "architecture": "opt-350m",
            "sequence_length": 2048,
            "global_batch": batch,
            "precision": "fp32",
            "backend": "megatron-deepspeed",
            "cluster": {"gpu": gpu, "gpus": gpus, **cluster},
        },
    )


OPT_GH200 = _opt("OPT-350M on 32 GH200", GH200, 32, 1024, gpus_per_node=4, internode="slingshot-11")
OPT_A100 = _opt("OPT-350M on an A100", A100, 1, 256)
OPT_2X4 = _opt("OPT-350M on 2 x 4 A100", A100, 8, 1024, gpus_per_node=4, internode="ethernet-100g")


def olmoe(sequence_length: int) -> Job:
    """OLMoE on 32 GH200."""
    return Job(
        name=f"OLMoE on 32 GH200, {sequence_length} tokens",
        document={
            "architecture": "olmoe-1b-7b",
            "sequence_length": sequence_length,
            "global_batch": 1024,
            "precision": "bf16-mixed",
            "backend": "deepspeed",
            "cluster": {"gpu": GH200, "gpus": 32, "gpus_per_node": 4, "internode": "slingshot-11"},
        },
    )


def points(plans: Sequence[Plan], calibration: Calibration) -> list[Point]:
    """What each plan costs at its clocks; plans of one architecture on one cluster.

    Raises:
        CalibrationError: the calibration lacks an operator.
    """
    found = predict(architecture_of(plans[0]), joined(plans), system_of(plans[0], calibration))
    return [
        Point(
            name=plan.name,
            clocks_MHz=clocks_of(plan),
            step_s=float(found.step_time_s[i]),
            energy_J=float(found.energy_J[i]),
            power_W=float(found.power_W[i]),
            communication_s=float(found.exposed_communication_s[i]),
            bubble_s=float(found.bubble_s[i]),
            host_s=float(found.host_wait_s[i]),
            fits=bool(found.fits[i]),
        )
        for i, plan in enumerate(plans)
    ]


def clocks_of(plan: Plan) -> tuple[float, ...] | None:
    """Asked for, of each stage, MHz; None: the governor decides."""
    if plan.clock_MHz is None:
        return None
    if isinstance(plan.clock_MHz, int | float):
        return (float(plan.clock_MHz),) * plan.parallel.pp
    stages = plan.clock_MHz.of_stages(plan.parallel.pp)
    return tuple(stage["forward"] for stage in stages)


# ---- degrees, experts -----------------------------------------------------------------------------------------------


def degrees_of(gpus: int, gpus_per_node: int, micro_batches: Iterable[int] = (1, 2, 4, 8)) -> list[Degrees]:
    """All powers of two: tensor parallelism inside a node, up to eight stages."""
    return [
        Degrees(dp=gpus // (tp * pp), pp=pp, tp=tp, micro_batch=micro_batch)
        for tp in (1, 2, 4, 8)
        if tp <= gpus_per_node
        for pp in (1, 2, 4, 8)
        for micro_batch in micro_batches
    ]


def over_degrees(calibration: Calibration) -> list[Point]:
    """OPT-350M over dp, tp, pp and micro-batch, the fastest first."""
    plans = [OPT_GH200.plan(degrees) for degrees in degrees_of(32, 4)]
    return sorted(points(plans, calibration), key=lambda point: point.step_s)


def over_experts(sequence_length: int, calibration: Calibration) -> list[Point]:
    """OLMoE over ep, in rising order."""
    degrees, job = Degrees(dp=32, pp=1, tp=1, micro_batch=1), olmoe(sequence_length)
    plans = [job.plan(degrees, ep=ep, zero_stage=1, name=f"ep{ep}") for ep in (1, 2, 4, 8, 16, 32)]
    return points(plans, calibration)


# ---- clocks ---------------------------------------------------------------------------------------------------------


def over_clocks(calibration: Calibration) -> list[Point]:
    """OPT-350M on one A100 at locked clocks, in rising order."""
    low, step = _SWEEP_MHZ
    clocks = [low + step * i for i in range(int((FULL_CLOCK_MHZ - low) / step) + 1)]
    one = Degrees(dp=1, pp=1, tp=1, micro_batch=1)
    return points([OPT_A100.plan(one, clock_MHz=clock) for clock in clocks], calibration)


# ---- both together --------------------------------------------------------------------------------------------------


def joint_sweep(degrees: Degrees, calibration: Calibration, job: Job = OPT_2X4) -> list[Point]:
    """A plan from full clock on with ever slower stages, those that have most to wait slowed first.

    From one notch of clocks to the next a stage after the other is slowed, until all run at it.
    """
    order = slack_order(degrees, calibration, job)
    clocks = [FULL_CLOCK_MHZ] * degrees.pp
    settings = [tuple(clocks)]
    notch = FULL_CLOCK_MHZ - _NOTCH_MHZ
    while notch >= _LOWEST_MHZ:
        for stage in order:
            clocks[stage] = notch
            settings.append(tuple(clocks))
        notch -= _NOTCH_MHZ
    return points([job.plan(degrees, clock_MHz=_asked(setting)) for setting in settings], calibration)


def slack_order(degrees: Degrees, calibration: Calibration, job: Job = OPT_2X4) -> list[int]:
    """Stages of a plan, the one first whose slowing by a notch lengthens the step least: it waits most."""
    full = [FULL_CLOCK_MHZ] * degrees.pp
    settings = [[*full[:s], FULL_CLOCK_MHZ - _NOTCH_MHZ, *full[s + 1 :]] for s in range(degrees.pp)]
    found = points([job.plan(degrees, clock_MHz=_asked(setting)) for setting in settings], calibration)
    return sorted(range(degrees.pp), key=lambda stage: found[stage].step_s)


def _asked(clocks: Sequence[float]) -> Any:
    return clocks[0] if len(set(clocks)) == 1 else {"stages": list(clocks)}


def at_full_clock(job: Job, calibration: Calibration) -> list[Point]:
    """The plans of the joint sweep, as fast as they go, the fastest first."""
    found = points([job.plan(degrees) for degrees in JOINT], calibration)
    return sorted(found, key=lambda point: point.step_s)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The plans at full clock on other assumptions, the fastest first."""

    name: str
    points: list[Point]


def variants(calibration: Calibration) -> list[Variant]:
    """What the order at full clock rests on: the network, and what the kernels of a layer take."""
    bf16 = {"precision": "bf16-mixed", "backend": "megatron"}
    return [
        Variant(name="as assumed: float32, 100 Gb/s a GPU", points=at_full_clock(OPT_2X4, calibration)),
        Variant(name="200 Gb/s a GPU", points=at_full_clock(_over("infiniband-hdr"), calibration)),
        Variant(name="50 Gb/s a node", points=at_full_clock(_over(_SHARED), calibration)),
        Variant(
            name="bf16, FlashAttention (Megatron-LM)",
            points=at_full_clock(replace(OPT_2X4, document=OPT_2X4.document | bf16), calibration),
        ),
    ]


# One NIC of 50 Gb/s for four GPUs, assumed as the slow end; latency as of the Ethernet links of `networks.json`
_SHARED = {"bandwidth_GBps": 50 / 8 / 4, "latency_us": 10.0}


def _over(internode: Any) -> Job:
    cluster = OPT_2X4.document["cluster"] | {"internode": internode}
    return replace(OPT_2X4, document=OPT_2X4.document | {"cluster": cluster})
