"""YAML text to plain data, by people's rules and within bounds.

Of YAML this reads mappings, lists, text, numbers, true, false, null, and aliases of these; a tag, a date, or a number
that YAML 1.1 would read in another base (010 is 8, 1:30 is 90) is refused at its line. No document takes more than
seconds or megabytes, whatever is in it: its size, depth and number of values are bounded, and what is behind an alias
counts as often as it is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shortened, shown

Path = tuple[str, ...]  # keys and places in lists, from the outermost in

# Bounds, assumed: a hundred times what any plan or search needs.
_MOST_CHARACTERS = 8 * 2**20
_MOST_VALUES = 20_000
_DEEPEST = 64
_MOST_DIGITS = 40

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]*[0-9a-fA-F]|0b[01_]*[01])")
_OTHER_BASE = re.compile(r"[-+]?(?:0[0-9_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)")
_COMMENT = re.compile(r"[^\0\r\n\x85\u2028\u2029]*")
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "false": False}


class _RefusedError(Exception):
    """What a document may not hold, and its line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Resolver(Resolver):
    """Which plain scalars are numbers, true, false or null; `no` is a name (of Norway), and 1e12 a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the class of PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}bool"]
        for first, resolvers in Resolver.yaml_implicit_resolvers.items()
    }


_Resolver.add_implicit_resolver(f"{_TAG}bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
_Resolver.add_implicit_resolver(
    f"{_TAG}float",
    # YAML 1.1 wants a dot in the mantissa and a sign in the exponent; people write 1e12.
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class _Loader(Reader, Scanner, Parser, Composer, _Resolver):
    """PyYAML up to the tree of nodes, within bounds. No constructor: no class is ever made from a document."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Resolver.__init__(self)
        self._values = 0
        self._depth = 0
        self._sizes: dict[str, int] = {}  # values behind each anchor that is whole

    def scan_to_next_token(self) -> None:
        """As PyYAML's, which takes a second for a megabyte of comments."""
        if self.index == 0 and self.peek() == "\ufeff":
            self.forward()
        while True:
            while self.peek() == " ":
                self.forward()
            if self.peek() == "#":
                found = _COMMENT.match(self.buffer, self.pointer)
                length = found.end() - self.pointer if found else 0
                self.pointer += length
                self.index += length
                self.column += length
            if not self.scan_line_break():
                return
            if not self.flow_level:
                self.allow_simple_key = True

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node, counted."""
        event = self.peek_event()
        line = event.start_mark.line + 1
        anchor, before = event.anchor, self._values
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self._sizes:
                raise _RefusedError(line, f"the alias *{shortened(anchor)} stands inside of what it means")
            self._values += self._sizes.get(anchor, 0)
        else:
            self._values += 1
        if self._values > _MOST_VALUES:
            raise _RefusedError(line, f"more than {_MOST_VALUES:,} values, those behind aliases counted")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _RefusedError(line, f"nested too deeply; allowed: {_DEEPEST} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[anchor] = self._values - before
        return node


@dataclass
class _Reader:
    """Nodes to plain data; the line of every key and item, by its path."""

    lines: dict[Path, int] = field(default_factory=dict)

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, (*path, str(index))) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        raise _tagged(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        read: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        merges = False
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _RefusedError(line, "a key must be a plain name")
            _check_characters(key)
            merging = key.tag == f"{_TAG}merge"
            if key.value in read or (merging and merges):
                raise _RefusedError(line, f"the key {shown(key.value)} stands twice; keep one of them")
            if merging:
                merges = True
                merged = self._merged(value, path)
            else:
                place = (*path, key.value)
                self.lines[place] = line
                read[key.value] = self.value(value, place)
        return merged | read

    def _merged(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        """What `<<` takes over: a mapping, or several of which the first that has a key counts."""
        several = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for one in several:
            if not isinstance(one, yaml.MappingNode):
                raise _RefusedError(one.start_mark.line + 1, "<< takes a mapping, or a list of mappings")
            merged = self._mapping(one, path) | merged
        return merged


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    text, line = node.value, node.start_mark.line + 1
    kind = node.tag.removeprefix(_TAG)
    if kind in ("str", "value", "merge"):
        _check_characters(node)
        return str(text)
    if kind == "null" and text in _NULLS:
        return None
    if kind == "bool" and text.casefold() in _BOOLS:
        return _BOOLS[text.casefold()]
    if kind == "timestamp":
        raise _RefusedError(line, f"found {shown(text)}, to YAML a date; put it in quotes where it is a name")
    if kind in ("int", "float") and _OTHER_BASE.fullmatch(text) and _is_of_other_base(text):
        raise _RefusedError(
            line, f"found {shortened(text)}, to YAML a number of base 8 or 60; allowed: decimals, or quotes"
        )
    if kind == "int" and _INT.fullmatch(text):
        if len(text) > _MOST_DIGITS:
            raise _RefusedError(line, f"found a number of {len(text):,} digits; allowed: {_MOST_DIGITS}")
        return int(text.replace("_", ""), 0)
    if kind == "float":
        try:
            return float(_python_float(text))
        except ValueError:
            pass
    raise _tagged(node)


def _check_characters(node: yaml.ScalarNode) -> None:
    try:
        node.value.encode()
    except UnicodeEncodeError:
        raise _RefusedError(node.start_mark.line + 1, "half of a character (a lone surrogate)") from None


def _is_of_other_base(text: str) -> bool:
    return ":" in text or not any(mark in text for mark in ".eE")


def _python_float(text: str) -> str:
    plain = text.replace("_", "").casefold()
    return plain.replace(".inf", "inf").replace(".nan", "nan")


def _tagged(node: yaml.Node) -> _RefusedError:
    """A tag, or a value that is not what its tag says."""
    tag = node.tag.replace(_TAG, "!!")
    found = f" with {shown(node.value)}" if isinstance(node, yaml.ScalarNode) else ""
    return _RefusedError(
        node.start_mark.line + 1, f"found the tag {shown(tag)}{found}; allowed: plain values, without tags"
    )


def yaml_data(text: str, source: str) -> tuple[Any, dict[Path, int]]:
    """Plain data from YAML text, and the line of every key and item by its path; None of an empty document.

    Args:
        text: one document.
        source: what errors call it.

    Raises:
        InputError: not YAML, or beyond what is read of it; with the line.
    """
    if len(text) > _MOST_CHARACTERS:
        raise InputError(f"{source}: found {len(text):,} characters; allowed: {_MOST_CHARACTERS:,}")
    reader = _Reader()
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else reader.value(node, ()), reader.lines
    except _RefusedError as error:
        raise InputError(f"{source}:{error.line}: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{source}:{line}: not YAML: {shortened(str(error.problem))}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{source}:{line}: not YAML: the character {chr(error.character)!a}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML's own, of an escape or a directive
        line = loader.line + 1 if loader else 1
        raise InputError(f"{source}:{line}: not YAML: {shortened(' '.join(str(error).split()))}") from None
