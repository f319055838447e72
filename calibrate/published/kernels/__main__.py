"""Make the calibrations of Blackwell GPUs that ship, from public kernel readings. None was measured by this project.

    python -m moemodel.calibration.published.kernels DATA [--output FOLDER]

DATA is a folder laid out as `../shared/data`: its `kernels/` holds gemm, moe and attention_forward as Parquet. Each is
put over what the measured H200 gives when it is derived for that GPU (`overlay`, `derive.transfer`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moemodel.calibration.published.kernels.overlay import base_of, overlay_readings
from moemodel.calibration.published.kernels.readings import TABLES, read_readings
from moemodel.calibration.store.catalogue import PARTLY_DERIVED, write_calibration
from moemodel.model.hardware.gpu import read_gpu

_SHIPPED = Path(__file__).parents[2] / "shipped"


def main(arguments: list[str] | None = None) -> None:
    """Fit and write the calibrations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of published data")
    parser.add_argument("--output", type=Path, default=_SHIPPED, help="default: where calibrations ship from")
    options = parser.parse_args(arguments)
    tables = read_readings([options.data / "kernels" / name for name in TABLES])
    for name in PARTLY_DERIVED:
        gpu = read_gpu(name)
        calibration, errors = overlay_readings(base_of(gpu), gpu, [t for t in tables if t.gpu == gpu.name])
        for error in errors:
            print(f"{name} {error.name}: {error.rows} left out, median {error.median:.1%}, mean {error.mean:.1%}")
        path = options.output / f"{name}.json"
        write_calibration(calibration, path)
        print(path)


if __name__ == "__main__":
    main()
