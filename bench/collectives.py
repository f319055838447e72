"""How well collectives are predicted at sizes that were held out, from profiles of several GPUs.

    python bench/collectives.py [--json] [--profile FOLDER ...]

Every size but the smallest and the largest of each group is predicted by a fit that saw neither it nor every second
one. Without `--profile`, the profiles that ship and hold collectives are read.

    mape, worst          over all held-out sizes of all collectives
    COLLECTIVE_mape      of one
    sizes, profiles      how many there were
    skewed_error         skewed all-to-alls, by the even ones and the one share that is fitted to them
    hidden               COLLECTIVE -> share that hides behind products
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moemodel.calibration.fit.collective_overlap import hidden_shares
from moemodel.calibration.fit.collective_times import HeldOutSizes, fit_skew, fit_times, held_out_sizes, link_rows
from moemodel.calibration.fit.network import node_bandwidth
from moemodel.calibration.store.profile_reader import Profile, read_profile
from moemodel.calibration.store.profile_tables import joined
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.network.collectives import Collective

_PROFILES = Path(__file__).resolve().parent.parent / "calibrate" / "profiles"


def profiles(folders: Sequence[Path]) -> list[Profile]:
    """The profiles among folders that hold collectives."""
    read = [read_profile(folder) for folder in folders]
    return [profile for profile in read if len(profile.collectives)]


def node_Bps(profile: Profile) -> float:
    """The bandwidth that efficiencies are of."""
    return node_bandwidth(read_gpu(profile.manifest.gpu), profile.manifest.topology).value


def errors(profile: Profile) -> list[HeldOutSizes]:
    """Held-out errors of every collective of a profile."""
    return [held_out_sizes(rows, node_Bps(profile)) for rows in link_rows(profile.collectives)]


def skew_error(profile: Profile) -> float | None:
    """Log error of skewed all-to-alls; None where none were measured."""
    table = profile.collectives
    even = [rows for rows in link_rows(table) if rows.collective is Collective.ALL_TO_ALL]
    if not even:
        return None
    found = fit_skew(table, fit_times(even[0], node_Bps(profile)), node_Bps(profile))
    return found[1] if found else None


def figures(found: Sequence[Profile]) -> dict[str, Any]:
    """All figures of profiles."""
    held_out = [each for profile in found for each in errors(profile)]
    ratios = np.abs(np.expm1(np.concatenate([each.log_ratio for each in held_out])))
    result: dict[str, Any] = {"mape": float(ratios.mean()), "worst": float(ratios.max())}
    for collective in Collective:
        mine = [each.log_ratio for each in held_out if each.collective is collective]
        if mine:
            result[f"{collective}_mape"] = float(np.abs(np.expm1(np.concatenate(mine))).mean())
    result |= {"sizes": len(ratios), "profiles": len(found)}
    skewed = [error for profile in found if (error := skew_error(profile)) is not None]
    if skewed:
        result["skewed_error"] = float(np.mean(skewed))
    overlap = joined([profile.overlap for profile in found])
    if len(overlap):
        shares = hidden_shares(overlap, memory_bound=False)
        result["hidden"] = {str(collective): share.value for collective, share in shares.items()}
    return result


def table(found: Sequence[Profile]) -> str:
    """Errors by collective and group."""
    lines = [f"{'collective':16} {'ranks':>5} {'sizes':>5} {'mean':>7} {'worst':>7}   (errors in percent)"]
    for profile in found:
        lines.append(str(profile.folder))
        for each in errors(profile):
            for n in np.unique(each.ranks):
                percent = 100 * np.abs(np.expm1(each.log_ratio[each.ranks == n]))
                numbers = f"{n:5.0f} {len(percent):5} {percent.mean():7.1f} {percent.max():7.1f}"
                lines.append(f"{each.collective:16} {numbers}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--profile", type=Path, action="append", help="folder of a profile; may be given several times")
    options = parser.parse_args()
    folders = options.profile or sorted(path.parent for path in _PROFILES.glob("*/manifest.json"))
    found = profiles(folders)
    if not found:
        skipped = f"skipped: no collectives in {', '.join(str(folder) for folder in folders)}"
        print(json.dumps({"skipped": skipped}) if options.json else skipped)
        return
    result = figures(found)
    if options.json:
        print(json.dumps(result))
        return
    print(table(found))
    print("\n" + "\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
