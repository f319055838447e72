"""Make the calibrations of Blackwell GPUs that ship, from public kernel readings. None was measured by this project.

Calibrations that rest on profiles get products of fewer bits from readings, and keep all else. Of a type that a GPU has
no readings of, the nearest GPU of its architecture lends its kernels.

    python -m moemodel.calibration.published.kernels DATA [--output FOLDER]

DATA is a folder laid out as `../shared/data`: its `kernels/` holds gemm, moe and attention_forward as Parquet. Each is
put over what the measured H200 gives when it is derived for that GPU (`overlay`, `derive.transfer`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from moemodel.calibration.derive.nearest import nearest
from moemodel.calibration.derive.record import deriving_record
from moemodel.calibration.published.kernels.narrow import kernel_fits, lent
from moemodel.calibration.published.kernels.overlay import base_of, narrow_tables, overlay_readings
from moemodel.calibration.published.kernels.readings import TABLES, read_readings
from moemodel.calibration.store.catalogue import PARTLY_DERIVED, shipped, write_calibration
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.operators.work import Pass
from moemodel.model.records.calibration import Calibration, KernelFit

_MEASURED = ("h100-sxm-80gb", "h200-sxm-141gb")  # whose calibrations rest on profiles, in 16 bits
_SHIPPED = Path(__file__).parents[2] / "shipped"


def main(arguments: list[str] | None = None) -> None:
    """Fit and write the calibrations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of published data")
    parser.add_argument("--output", type=Path, default=_SHIPPED, help="default: where calibrations ship from")
    options = parser.parse_args(arguments)
    tables = read_readings([options.data / "kernels" / name for name in TABLES])
    made: dict[str, Calibration] = {}
    for name in PARTLY_DERIVED:
        gpu = read_gpu(name)
        own = [table for table in tables if table.gpu == gpu.name]
        base = base_of(gpu).model_copy(update={"kernels": []})  # of another architecture
        made[name], errors = overlay_readings(base, gpu, own)
        for error in errors:
            print(f"{name} {error.name}: {error.rows} left out, median {error.median:.1%}, mean {error.mean:.1%}")
    for name in _MEASURED:
        gpu = read_gpu(name)
        known = shipped(name)
        fits = kernel_fits(known, gpu, narrow_tables([table for table in tables if table.gpu == gpu.name]))
        made[name] = known.model_copy(update={"kernels": fits})
    for name, calibration in made.items():
        whole = calibration.model_copy(update={"kernels": [*calibration.kernels, *_borrowed(name, made)]})
        path = options.output / f"{name}.json"
        write_calibration(whole, path)
        print(path)
        for fit in whole.kernels:
            if fit.direction is Pass.FORWARD:
                print(f"  {fit.dtype} {fit.kind}: log error {fit.log_error:.3f}, {fit.parameters['p'].source}")


def _borrowed(name: str, made: Mapping[str, Calibration]) -> Iterator[KernelFit]:
    """Kernels of types that a GPU has no readings of, from the nearest of its architecture that has."""
    gpu, own = read_gpu(name), {_product(fit) for fit in made[name].kernels}
    error = deriving_record(same_architecture=True).time_log_error
    others = {other: read_gpu(other) for other in made if other != name}
    alike = {other: known for other, known in others.items() if known.architecture == gpu.architecture}
    for product in sorted({_product(fit) for other in alike for fit in made[other].kernels} - own):
        having = [known for other, known in alike.items() if product in map(_product, made[other].kernels)]
        lender = nearest(gpu, having)
        if lender is not None and product[0] in (*gpu.peaks, "fp8_block"):
            yield from (lent(fit, lender, error) for fit in made[lender.name].kernels if _product(fit) == product)


def _product(fit: KernelFit) -> tuple[str, str]:
    return fit.dtype, str(fit.kind)


if __name__ == "__main__":
    main()
