"""What is at its default in a plan, and moves a printed figure by more than 2 %: each is named beside the figures.

A default is named with its key and its value, so that a reader knows what to write to change it; whether a plan leaves
it out or says it makes no difference, since a plan that is stored says all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moemodel.model.architecture.spec import Architecture
from moemodel.model.plan.skew import experts_of
from moemodel.model.plan.spec import EIGHT_BITS, Plan
from moemodel.model.results.energy import GPU_ENERGY, IT_ENERGY, METER_ENERGY
from moemodel.model.results.inlet_sensitivity import InletSensitivity
from moemodel.model.results.regions import find_region
from moemodel.model.step.system import System


def choices_by_default(plan: Plan, architecture: Architecture, machine: System) -> str | None:
    """The choices of a plan that are at their defaults, where they matter to it."""
    left = [f"{key} {value}" for key, value in _choices(plan, architecture, machine) if _is_default(plan, key)]
    return f"At their defaults: {', '.join(left)}." if left else None


def _choices(plan: Plan, architecture: Architecture, machine: System) -> Iterator[tuple[str, Any]]:
    """Keys of a plan that have a default, and what it is where it matters."""
    p, network = plan.parallel, machine.network
    yield "precision", plan.precision
    yield "backend", plan.backend
    yield "micro_batch", plan.micro_batch
    if plan.mode == "training":
        yield "recompute", plan.recompute
        yield "attention", f"as {plan.backend} runs it"
        if machine.framework.compiles:
            yield "compile", "false"
        yield "cuda_graphs", "false"
        yield "collective_checks", "false"
        yield "loss_chunks", "none"
        yield "cross_entropy", f"as {plan.backend} computes it"
        yield "deterministic", "false"
        yield "gradient_dtype", f"as {plan.backend} keeps it"
        yield "activation_input_dtype", f"as {plan.backend} keeps it"
        if plan.precision in EIGHT_BITS:
            if plan.precision == "fp8":
                yield "fp8_recipe", f"as {plan.backend} scales"
            yield "parameter_dtype", f"as {plan.backend} keeps it"
            if machine.framework.casts_weights == "step":
                yield "transpose_cache", "true"
        if p.tp > 1:
            yield "tp_comm_overlap", f"as {plan.backend} does"
        if machine.framework.fills_gradients and p.dp * p.cp > 1:
            yield "bucket_parameters", "those of a layer"
            yield "gradient_checks", "false"
            yield "weight_checks", "false"
        yield "dropout", f"as {plan.backend} has it"
        yield "optimizer", f"states as {plan.backend} keeps them"
        yield "offload", "none"
        if plan.cluster.gpus > 1:
            yield "collective_checks", "false"
    if plan.mode == "training" and (plan.micro_batches > 1 or p.pp > 1):
        yield "schedule", plan.schedule
    if p.pp > 1:
        yield "parallel.virtual_stages", p.virtual_stages
        yield "micro_batches_per_schedule", plan.micro_batches
        if p.virtual_stages > 1 and plan.schedule == "1f1b":
            yield "micro_batches_per_round", p.pp
        yield "stage_layers", "as evenly as they go"
    if p.cp > 1:
        yield "cp_comm", f"as {plan.backend} reaches keys and values"
    if p.dp * p.cp > 1:
        yield "parallel.zero_stage", p.zero_stage
        if p.zero_stage:
            yield "parallel.replicas", p.replicas
        if architecture.has_experts:
            yield "parallel.ep", p.ep
            yield from _of_experts(plan)
    if any(moe.capacity_factor is not None for moe in experts_of(architecture)):
        yield "routing.pad", f"as {plan.backend} does"
    if p.tp > 1:
        yield "parallel.sequence_parallel", str(p.sequence_parallel).lower()
    if plan.cluster.gpus > 1:
        yield "cluster.gpus_per_node", network.gpus_per_node
    if plan.cluster.gpus > network.gpus_per_node:
        yield "cluster.internode", plan.cluster.internode
    if machine.calibration.has_times:
        yield "clock_MHz", "as the governor chooses"
        yield "power_cap_W", f"{machine.power_limit_W:g} (the GPU's own)"


def _of_experts(plan: Plan) -> Iterator[tuple[str, Any]]:
    """How experts are cut and reached."""
    routing = plan.routing
    yield "parallel.etp", f"as {plan.backend} cuts experts"
    yield "routing.products", f"as {plan.backend} makes them"
    if plan.parallel.ep * (plan.parallel.etp or 1) > 1:
        yield "routing.dispatch", routing.dispatch
        yield "routing.dispatch_overlap", f"as {plan.backend} does"
        if routing.dispatch == "deepep":
            yield "routing.node_limit", "the architecture's"
        if plan.precision in EIGHT_BITS:
            yield "routing.dispatch_dtype", "that of activations"


def _is_default(plan: Plan, key: str) -> bool:
    """Whether a plan holds the default of a key, such as `cluster.internode`: it may not say it, or mean it."""
    part: Any = plan
    *path, last = key.split(".")
    for name in path:
        part = getattr(part, name)
    return bool(getattr(part, last) == type(part).model_fields[last].default)


def site_by_default(plan: Plan, machine: System) -> Iterator[str]:
    """What the site adds to the energy of the GPUs, what it emits and what it costs."""
    site = plan.site
    if machine.calibration.has_times and machine.calibration.power.points > 0:
        assumed = ", the default" if _is_default(plan, "site.pue") else ""
        pue = f"PUE {site.pue:g}{assumed} (site.pue)"
        if site.host_power_W:
            hosts, of = f"{site.host_power_W:g} W of host for every GPU (site.host_power_W)", IT_ENERGY
        else:
            hosts, of = "hosts not counted (site.host_power_W 0)", GPU_ENERGY
        yield f"{pue}; {hosts}: {METER_ENERGY} is {site.pue:g} times {of}."
    if plan.tokens is None:
        return
    grid = find_region(site.region, key="site.region")
    given = " by default (site.region)" if _is_default(plan, "site.region") else ""
    place = "the world" if grid.code == "world" else f"{grid.name} ({grid.code})"
    alone = "; of CO2 alone" if "CO2 alone" in grid.table else ""
    part = f"; nothing is known of {site.region} alone" if grid.mean_of_more else ""
    yield (
        f"Emissions use the yearly mean of the grid of {place}, {grid.kgCO2e_per_kWh:.3f} kgCO2e/kWh "
        f"in {grid.year}{given}{alone}{part}; a given hour can be several times off."
    )
    prices = {"site.price_per_kWh": site.price_per_kWh, "site.gpu_hour_price": site.gpu_hour_price}
    missing = [name for name, price in prices.items() if price is None]
    if len(missing) == 1:
        without = "electricity" if missing[0] == "site.price_per_kWh" else "the hours of the GPUs"
        yield f"The cost is without {without}: {missing[0]} is not given."


def inlet_by_default(plan: Plan, warmer: InletSensitivity | None) -> str | None:
    """The temperature of the air, and what warmer air would change."""
    if warmer is None:
        return None
    source = "site.inlet_C" if plan.site.inlet_C is not None else "site.inlet_C is not given: as at calibration"
    return (
        f"The GPUs are taken to draw in air of {warmer.inlet_C:.0f} C ({source}). Air that is {warmer.by_C:.0f} C "
        f"warmer would change the step time by {warmer.time_share:+.1%} and the {GPU_ENERGY} by "
        f"{warmer.energy_share:+.1%}."
    )
