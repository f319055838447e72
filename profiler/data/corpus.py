"""A small real text that is on every machine: the documentation that the running Python carries of itself.

The help topics of `pydoc` and the triple-quoted strings of the standard library's sources, which are its documentation
strings but for a few: two million characters of technical English. It differs between versions of Python; a run's
manifest has the hash of what was read.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests"}  # other people's, and code that tests code
_QUOTED = re.compile(r'"""(.*?)"""', re.DOTALL)


def corpus_texts() -> Iterator[str]:
    """The texts, in an order that depends on nothing but the version of Python."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    for topic in sorted(topics):
        yield topics[topic]
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        if not _LEFT_OUT.intersection(file.relative_to(root).parts):
            yield from _QUOTED.findall(file.read_text(encoding="utf-8", errors="ignore"))
