"""Products of 8 and 4 bits: what they keep, what they take, and which GPUs have them."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.core.errors import InputError
from moemodel.model.device.precision import KERNELS, kernel_of
from moemodel.model.device.roofline import chip_of_calibration, operator_time, roofline_terms
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import KernelFit, OperatorFit
from moemodel.model.results.outcome import Outcome, outcome

PRECISIONS = ("bf16-mixed", "fp8", "mxfp8", "nvfp4")


def document(precision: str, gpu: str) -> dict[str, object]:
    return {
        "architecture": "llama-3-70b",
        "layers": 2,
        "sequence_length": 8192,
        "global_batch": 2,
        "micro_batch": 2,
        "backend": "megatron-core",
        "precision": precision,
        "cluster": {"gpu": gpu},
    }


def predicted(precision: str, gpu: str = "b200-sxm-180gb") -> Outcome:
    plan = document(precision, gpu)
    return outcome(Plan.model_validate(plan), load_calibration(None, gpu), even_if_it_does_not_fit=True)


def test_narrower_products_take_less_time_and_keep_less() -> None:
    """Large products: half as wide, at most twice as fast; blocks of 32 cost a thirty-second of memory more. Kernels in
    4 bits are further from their peak than those in 8."""
    found = {precision: predicted(precision) for precision in PRECISIONS}
    times_s = [found[precision].step_time_s.value for precision in PRECISIONS]
    assert times_s[1] == pytest.approx(times_s[2], rel=0.02)
    assert times_s[0] / 2 < times_s[1] < 0.8 * times_s[0]
    assert times_s[2] / 2 < times_s[3] < 0.9 * times_s[2]
    kept_B = {precision: answer.memory_terms_B["activations"] for precision, answer in found.items()}
    assert kept_B["nvfp4"] < kept_B["fp8"] < kept_B["mxfp8"] < kept_B["bf16-mixed"]


def test_what_a_cast_element_takes() -> None:
    """A scale of 8 bits for every 32 elements of 8 bits, and for every 16 of 4."""
    recipes = framework_of("megatron-core").precisions
    found = {precision: recipes[precision].product_input_B for precision in PRECISIONS}
    assert found == {"bf16-mixed": 2.0, "fp8": 1.0, "mxfp8": (32 * 8 + 8) / 32 / 8, "nvfp4": (16 * 4 + 8) / 16 / 8}


@pytest.mark.parametrize("precision", ["mxfp8", "nvfp4"])
def test_hopper_has_none_of_them(precision: str) -> None:
    with pytest.raises(InputError, match=rf"{precision}.*h100-sxm-80gb has peaks for .*fp8"):
        predicted(precision, "h100-sxm-80gb")


def test_without_readings_products_are_scaled_by_peaks_and_it_is_said() -> None:
    """RTX PRO 6000 is derived from a GPU that multiplies no 4-bit operands."""
    plan = Plan.model_validate(document("nvfp4", "rtx-pro-6000"))
    calibration = load_calibration(None, plan.cluster.gpu)
    assert kernel_of(calibration, "nvfp4", Kind.GEMM, Pass.FORWARD) is None
    notes = outcome(plan, calibration, even_if_it_does_not_fit=True).notes
    assert any("No kernels in nvfp4 were ever fitted for rtx-pro-6000" in note for note in notes)


def test_with_readings_it_is_said_whose_kernels_they_are() -> None:
    found = [note for note in predicted("nvfp4").notes if note.startswith("Products in nvfp4")]
    assert len(found) == 1
    assert "readings of nvfp4 with vllm" in found[0]
    assert not any(note.startswith("Products in") for note in predicted("bf16-mixed").notes)


def test_mxfp8_takes_the_8_bit_kernels_nearest_to_the_peak() -> None:
    calibration = load_calibration(None, "b300-sxm-288gb")
    fit = kernel_of(calibration, "mxfp8", Kind.GEMM, Pass.FORWARD)
    others = [calibration.kernel(dtype, Kind.GEMM, Pass.FORWARD) for dtype in KERNELS["mxfp8"]]
    assert fit is not None
    assert best(fit) == max(best(other) for other in others if other is not None)


def best(fit: KernelFit) -> float:
    return max(p.value for name, p in fit.parameters.items() if name.startswith("efficiency"))


def test_a_product_reads_cast_operands_and_writes_16_bits() -> None:
    """By hand: of m x k by n x k, each pass reads two of the three matrices and writes the third."""
    m, n, k, operand_B = 300.0, 500.0, 700.0, 0.5625
    sides = {Pass.FORWARD: m * n, Pass.BACKWARD_INPUT: m * k, Pass.BACKWARD_WEIGHT: n * k}
    calibration = load_calibration(None, "b200-sxm-180gb")
    for direction, result in sides.items():
        fit = calibration.kernel("nvfp4", Kind.GEMM, direction)
        assert fit is not None
        priced = roofline_terms(fit, chip_of_calibration(calibration), Shape(m=m, n=n, k=k))
        wanted_B = operand_B * (m * k + n * k + m * n - result) + 2 * result
        assert priced.work.bytes_B == pytest.approx(wanted_B)


@pytest.mark.parametrize("gpu", ["b200-sxm-180gb", "gb200-186gb", "b300-sxm-288gb", "gb300-288gb"])
def test_larger_products_never_take_less_time(gpu: str) -> None:
    """The form at any size; with its residual where a side doubles and launches don't bind: of products of a few
    microseconds the readings themselves take less time where a library changes its kernel. No efficiency is above 1."""
    calibration = load_calibration(None, gpu)
    chip, clock = chip_of_calibration(calibration), np.array([1.9e9])
    forward = calibration.operator(Kind.GEMM, Pass.FORWARD)
    assert forward is not None
    fits: list[OperatorFit] = [forward, *(fit for fit in calibration.kernels if fit.kind is Kind.GEMM)]
    sizes = 2.0 ** np.arange(7, 16)
    m, n, k = (side.ravel() for side in np.meshgrid(sizes, sizes, sizes))
    for fit in fits:
        shares = [p.value for name, p in fit.parameters.items() if name.startswith(("efficiency", "memory"))]
        assert 0 < min(shares) <= max(shares) <= 1
        form = fit.model_copy(update={"residual": None})
        time_s = operator_time(form, chip, Shape(m=m, n=n, k=k), clock).time_s_UK
        for longer in ({"m": m + 64, "n": n, "k": k}, {"m": m, "n": n + 64, "k": k}, {"m": m, "n": n, "k": k + 64}):
            assert (operator_time(form, chip, Shape(**longer), clock).time_s_UK >= time_s * (1 - 1e-9)).all()
        whole_s = operator_time(fit, chip, Shape(m=m, n=n, k=k), clock).time_s_UK
        for twice in ({"m": 2 * m, "n": n, "k": k}, {"m": m, "n": 2 * n, "k": k}, {"m": m, "n": n, "k": 2 * k}):
            twice_s = operator_time(fit, chip, Shape(**twice), clock).time_s_UK
            assert (twice_s >= 0.98 * whole_s)[whole_s > 20e-6].all()
