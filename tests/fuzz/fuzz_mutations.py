"""Documents that are nearly right: a valid one with one to three things changed, as data or as text."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

Place = tuple[str | int, ...]

PLAN: dict[str, Any] = {
    "name": "small",
    "architecture": "opt-350m",
    "layers": 4,
    "sequence_length": 2048,
    "global_batch": 64,
    "micro_batch": 4,
    "precision": "bf16-mixed",
    "recompute": "none",
    "schedule": "1f1b",
    "backend": "torch",
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8, "gpus_per_node": 4, "internode": "infiniband-ndr"},
    "parallel": {"dp": 4, "tp": 2, "pp": 1, "ep": 1, "cp": 1, "zero_stage": 1, "sequence_parallel": True},
    "routing": {"skew": "balanced"},
    "clock_MHz": None,
    "power_cap_W": 500,
    "site": {"region": "world", "pue": 1.2, "price_per_kWh": 0.1, "gpu_hour_price": 2, "currency": "USD"},
    "tokens": 1e10,
}

# What may stand where a value stood, in JSON and in Python.
VALUES: list[Any] = [
    *(-3, 0, -0.0, 1, 2.5, -1, 7919, True, False, None, "", "abc", "64", [], {}, [1], {"a": 1}, [[]], [None] * 3),
    *(10**9, 2**31, 2**63 - 1, 2**63, 10**18, 10**30, 10**39, 1e308, -1e308, 1e-320, 5e-324, 1e30, 1e15, 1e-9),
    *(math.nan, math.inf, -math.inf, 64.0, 0.1, -10_700.0, 1e5),
    *("\x1b[31mred\x1b]0;x\x07", "\u202eabc", "\x9b31m", "a\nb", "\ud800", "a\0b", "x" * 5000, "[red]x[/red]", "é😀"),
    *(".", "..", "/", "/dev/null", "~", "nope.json", "sub/nope.json", "a/b", "olmoe-1b-7b", "h100", " ", "a # b"),
]
# What may stand there in YAML, as it is written.
WRITTEN = [
    *("2024-01-01", "2024-02-30", "2024-01-01T99:00:00Z", "!!int abc", "!!int", "!!float x", "!!bool maybe"),
    *(
        "!!timestamp x",
        "!!map [a]",
        "!!seq x",
        "!!binary abc=",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!null x",
        "!foo bar",
    ),
    *("!!python/object/apply:os.system [ls]", "!!str 64", "010", "0o10", "0x40", "0b1", "0b", "0x", "1_000", "0_"),
    *("1:30", "1:30.5", "9" * 5000, "1e400", ".inf", "-.inf", ".nan", "inf", "yes", "no", "on", "~", "=", "<<"),
    *("&a 64", "*nope", "&a [*a]", "&a {x: *a}", "{<<: {a: 1}}", "{<<: 5}", "[[[[[[]]]]]]", "{a: {a: {a: 1}}}", "٤٢"),
    *(
        '"\\e[31m"',
        '"\\ud800"',
        '"\\UFFFFFFFF"',
        '"a\\0b"',
        "'",
        '"',
        "[",
        "{",
        "|",
        ">",
        "%",
        "@x",
        "`x`",
        "- a",
        "? a",
    ),
    *("{" * 200, "[" * 3000, "1+2j", "50%", "6 4", "1e", ".", "-", "+.inf", "²", "６４", "'🙂'", "!!merge x"),
]
# What may be put into a text anywhere.
TOKENS = [
    *(
        "-",
        ":",
        "[",
        "]",
        "{",
        "}",
        ",",
        "&a ",
        "*a",
        "<<: *a",
        "!!",
        "|",
        ">",
        "'",
        '"',
        "#",
        "%",
        "?",
        "~",
        "\t",
        "\n",
    ),
    *("null", "true", ".inf", "NaN", "Infinity", "-Infinity", "1e999", "-1", "9" * 25, "9" * 5000, "\r", " ", "\0"),
    *("\x85", "\u2028", "\ufeff", "\\u0000", "\\ud800", "---\n", "...\n", "=", "<<", "N/A", "1e-320", "\x1b[31m", "²"),
]

_BYTES = [b"\xff", b"\x00", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x80", b"\x1b", b"\xf4\x90\x80\x80"]
_CHANGES = (1, 1, 1, 1, 2, 3)


def places(document: Any, at: Place = ()) -> Iterator[Place]:
    """Every key and item of a document, its containers included."""
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document[:4])
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


@st.composite
def json_documents(draw: st.DrawFn, bases: list[Any]) -> bytes:
    """JSON near one of some documents."""
    document = copy.deepcopy(draw(st.sampled_from(bases)))
    if draw(st.integers(0, 9)) < 2:
        return draw(texts([json.dumps(document, indent=draw(st.sampled_from([None, 1])))]))
    for _ in range(draw(st.sampled_from(_CHANGES))):
        document = _changed(draw, document)
    text = json.dumps(document)
    if draw(st.integers(0, 19)) == 0 and isinstance(document, dict) and document:  # a key twice
        key = draw(st.sampled_from(sorted(map(str, document))))
        text = text[:-1] + f", {json.dumps(key)}: 1}}"
    return text.encode(errors="surrogatepass")


@st.composite
def yaml_documents(draw: st.DrawFn, bases: list[Any]) -> bytes:
    """YAML near one of some documents."""
    document = copy.deepcopy(draw(st.sampled_from(bases)))
    kind = draw(st.integers(0, 9))
    if kind < 2:
        return draw(texts([_yaml(document)]))
    if kind < 6:
        document, written = _marked(draw, document)
        return _yaml(document).replace("__HERE__", written).encode(errors="surrogatepass")
    for _ in range(draw(st.sampled_from(_CHANGES))):
        document = _changed(draw, document)
    return _yaml(document).encode(errors="surrogatepass")


@st.composite
def texts(draw: st.DrawFn, bases: list[str]) -> bytes:
    """Bytes near one of some texts: lines swapped, doubled, lost; tokens and bytes put in; cut short; or any bytes."""
    content = draw(st.sampled_from(bases)).encode()
    for _ in range(draw(st.sampled_from(_CHANGES))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.integers(0, 7))
        lines = content.split(b"\n")
        row, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        if kind <= 1:
            content = content[:at] + draw(st.sampled_from(TOKENS)).encode() + content[at:]
        elif kind == 2:
            content = content[:at] + content[at + draw(st.integers(1, 40)) :]
        elif kind == 3:
            content = content[:at] + draw(st.sampled_from(_BYTES)) + content[at:]
        elif kind == 4:
            lines[row], lines[other] = lines[other], lines[row]
            content = b"\n".join(lines)
        elif kind == 5:
            content = b"\n".join([*lines[: row + 1], lines[other], *lines[row + 1 :]])
        elif kind == 6:
            content = content[:at]
        else:
            content = draw(st.binary(max_size=200))
    return content


def _yaml(document: Any) -> str:
    try:
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError):
        return json.dumps(document)


def _changed(draw: st.DrawFn, document: Any) -> Any:
    known = list(places(document))
    if not known:
        return copy.deepcopy(draw(st.sampled_from(VALUES)))
    *outer, last = draw(st.sampled_from(known))
    inner = document
    for key in outer:
        inner = inner[key]
    value = inner[last]
    kind = draw(st.integers(0, 9))
    if isinstance(value, int | float) and not isinstance(value, bool) and kind <= 4:
        factor = draw(st.sampled_from([-1, 0, 0.5, 2, 3, 10, 100, 1000, 10**6, 10**9, 0.1, 1e-3, 1e-6, 1e-9, 1e15]))
        scaled = value * factor
        inner[last] = int(scaled) if isinstance(value, int) and scaled == int(scaled) else scaled
    elif kind <= 5:
        inner[last] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    elif kind == 6:
        del inner[last]
    elif kind == 7 and isinstance(inner, dict):
        inner[draw(st.sampled_from(["", "extra", "\x1b[31m", "a.b", "0", "<<", "é", f"{last}s"]))] = value
    elif kind == 8:
        inner[last] = [value] if draw(st.booleans()) else {"value": value}
    else:
        inner[last] = copy.deepcopy(_at(document, draw(st.sampled_from(known))))
    return document


def _at(document: Any, place: Place) -> Any:
    for key in place:
        document = document[key]
    return document


def _marked(draw: st.DrawFn, document: Any) -> tuple[Any, str]:
    """A document with a mark in place of a value, and what is to be written there."""
    known = list(places(document))
    *outer, last = draw(st.sampled_from(known))
    _at(document, tuple(outer))[last] = "__HERE__"
    return document, draw(st.sampled_from(WRITTEN))


@st.composite
def scaled(draw: st.DrawFn, bases: list[Any]) -> Any:
    """One of some documents in which one to six numbers are others, up to twelve powers of ten away."""
    document = copy.deepcopy(draw(st.sampled_from(bases)))
    numbers = [place for place in places(document) if _is_number(_at(document, place))]
    for _ in range(draw(st.integers(1, 6))):
        *outer, last = draw(st.sampled_from(numbers))
        inner = _at(document, tuple(outer))
        value = inner[last] * 10 ** draw(st.floats(-12, 12) | st.floats(-1, 1))
        inner[last] = max(round(value), 1) if isinstance(inner[last], int) else value
    return document


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _upto(most: int) -> st.SearchStrategy[int]:
    """Whole numbers of all sizes."""
    return st.floats(0, math.log(most)).map(lambda log: min(round(math.exp(log)), most))


@st.composite
def legal_plans(draw: st.DrawFn, base: dict[str, Any], architectures: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Plans whose degrees go together, of all sizes that are allowed, absurd ones among them.

    Args:
        base: other keys.
        architectures: heads and experts of each.
    """
    name = draw(st.sampled_from(sorted(architectures)))
    heads, experts = architectures[name]
    dp, tp, pp = draw(_upto(2000)), math.gcd(heads, 2 ** draw(st.integers(0, 4))), draw(_upto(12))
    cp = 2 ** draw(st.integers(0, 3))
    micro_batch, virtual = draw(_upto(1000)), draw(st.sampled_from([1, 1, 2])) if pp > 1 else 1
    micro_batches = pp * draw(_upto(300)) if virtual > 1 else draw(_upto(1000))
    return {
        **{key: value for key, value in base.items() if key != "layers"},
        "architecture": name,
        "sequence_length": 2 * cp * tp * draw(_upto(10**6) | _upto(64)),
        "micro_batch": micro_batch,
        "global_batch": micro_batch * dp * micro_batches,
        "recompute": draw(st.sampled_from(["none", "selective", "full"])),
        "schedule": draw(st.sampled_from(["1f1b", "zero-bubble"] if virtual > 1 else ["1f1b", "gpipe", "zero-bubble"])),
        "backend": draw(st.sampled_from(["torch", "megatron", "megatron-core"])),
        "cluster": {
            "gpu": "h100-sxm-80gb",
            "gpus": dp * tp * pp * cp,
            "gpus_per_node": draw(_upto(10**6) | st.sampled_from([1, 4, 8])),
            "internode": {
                "bandwidth_GBps": 10 ** draw(st.floats(-6, 6)),
                "latency_us": 10 ** draw(st.floats(-300, 9)),
            },
        },
        "parallel": {
            "dp": dp,
            "tp": tp,
            "pp": pp,
            "cp": cp,
            "ep": draw(st.sampled_from([1, math.gcd(dp * cp, experts)])) if experts else 1,
            "zero_stage": draw(st.integers(0, 1 if pp > 1 else 3)),
            "sequence_parallel": tp > 1 and draw(st.booleans()),
            "virtual_stages": virtual,
        },
        "routing": {"skew": draw(st.sampled_from([1.0, 1.0, 1.3, 2.0]))},
        "clock_MHz": draw(st.none() | st.sampled_from([345, 705, 1980])),
        "power_cap_W": draw(st.none() | st.floats(200, 700)),
        "site": {
            "region": "world",
            "pue": draw(st.floats(1, 10)),
            "price_per_kWh": draw(st.floats(0, 1e9)),
            "gpu_hour_price": draw(st.floats(0, 1e9)),
            "inlet_C": draw(st.none() | st.floats(-40, 80)),
            "host_power_W": draw(st.floats(0, 1e5)),
        },
        "tokens": draw(st.none() | st.floats(17, 20).map(lambda log: 10**log)),
    }
