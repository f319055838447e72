"""Guesses at what a user meant: never another thing that is spelled alike."""

from __future__ import annotations

import pytest

from moemodel.model.core.suggest import unknown

GPUS = ("a100-sxm-80gb", "a40-48gb", "gh200-96gb", "h100-sxm-80gb", "h200-sxm-141gb", "v100-sxm-32gb")
ALIASES = ("a100", "h100", "h200", "gh200", "v100")
MODELS = ("deepseek-v3", "llama-3-8b", "llama-3-70b", "mixtral-8x7b", "olmoe-1b-7b", "qwen3-30b-a3b")


def _guess(found: str, *names: str) -> str:
    _, _, guess = str(unknown("name", found, names)).partition("; did you mean ")
    return guess.rstrip("?")


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ("H100 SXM 80GB", "'h100-sxm-80gb'"),
        ("h100-sxm-80", "'h100-sxm-80gb'"),
        ("h100-", "'h100'"),
        ("h100-smx-80gb", "'h100-sxm-80gb'"),
        ("LLaMA_3_8B", "'llama-3-8b'"),
        ("olmeo-1b-7b", "'olmoe-1b-7b'"),
        ("mixtral", "'mixtral-8x7b'"),
    ],
)
def test_a_name_almost_written_so_is_guessed(found: str, meant: str) -> None:
    assert _guess(found, *GPUS, *ALIASES, *MODELS).split(" or ")[0] == meant


@pytest.mark.parametrize(
    "found",
    [
        "b200",
        "gb200",
        "h20",
        "h1000",
        "a10",
        "l40",
        "deepseek-v2",
        "llama-3.1-8b",
        "mixtral-8x22b",
        "qwen3-next",
        "olmo",
        "x",
    ],
)
def test_another_number_is_another_thing(found: str) -> None:
    assert not _guess(found, *GPUS, *ALIASES, *MODELS)


def test_few_names_are_listed_and_many_counted() -> None:
    assert str(unknown("gpu", "x", GPUS)) == f"gpu: found 'x'; allowed: {', '.join(GPUS)}"
    assert "one of 50 names" in str(unknown("gpu", "x", map(str, range(50))))
