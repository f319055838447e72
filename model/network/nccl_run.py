"""What one run of an nccl-test said, as text or as JSON: `nccl_text`, `nccl_json` read it, `nccl_tests` judges it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from moemodel.model.core.errors import InputError

NOT_MEASURED = "N/A"
FIGURE = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|nan|inf)")  # as C prints numbers
_LONGEST_SHOWN = 40  # characters of a value that is found


@dataclass(kw_only=True)
class NcclRun:
    """What was read of one run.

    Attributes:
        source: the file.
        place: the file, and the line where the run begins, for errors about the whole of it.
        programs: names by which it called itself.
        hosts: of each rank.
        gpus: what the devices call themselves.
        times_us: size in bytes -> times out of place and in place, once for each time that it was measured.
    """

    source: str
    place: str
    programs: list[str] = field(default_factory=list)
    hosts: dict[int, str] = field(default_factory=dict)
    gpus: set[str] = field(default_factory=set)
    times_us: dict[float, list[tuple[float | None, float | None]]] = field(default_factory=dict)

    def add_rank(self, rank: int, host: str, gpu: str, place: str) -> None:
        """A rank that took part.

        Raises:
            InputError: it is there already.
        """
        if rank in self.hosts:
            raise InputError(
                f"{place}: rank {rank} stands twice: every process measured itself alone; build nccl-tests with MPI=1, "
                "and keep every test in a file of its own"
            )
        self.hosts[rank] = host
        self.gpus.add(gpu)

    def add_times(self, size_B: float, out_of_place_us: float | None, in_place_us: float | None) -> None:
        """A row of results; one of no bytes, as a size that does not divide among the ranks ends, says nothing."""
        if size_B > 0:
            self.times_us.setdefault(size_B, []).append((out_of_place_us, in_place_us))


def reading(word: str | float, name: str, place: str) -> float | None:
    """A value, in the unit that it is printed in; None for one that was not measured.

    Raises:
        InputError: it is no number, or none from 0 on.
    """
    if word == NOT_MEASURED:
        return None
    if isinstance(word, str) and not FIGURE.fullmatch(word):
        raise InputError(f"{place}: {name}: found {word[:_LONGEST_SHOWN]!r}; a number is expected")
    value = float(word)
    if not 0 <= value < math.inf:
        raise InputError(f"{place}: {name}: found {str(word)[:_LONGEST_SHOWN]}; a number from 0 on is expected")
    return value


def check_right(wrong: str | float, place: str) -> None:
    """Refuse a row whose collective gave wrong values.

    Raises:
        InputError: it did; its times say nothing.
    """
    if reading(wrong, "#wrong", place):
        raise InputError(f"{place}: found {wrong} wrong values: the times say nothing; repair it first")
