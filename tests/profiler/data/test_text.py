"""Texts from where they lie to numbers, and what is said of a source that is not what it should be."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp
from moemodel.model.core.errors import InputError, MissingExtraError
from moemodel.profiler.data.c4 import c4_texts
from moemodel.profiler.data.corpus import corpus_texts
from moemodel.profiler.data.huggingface import dataset_texts, load_tokenizer
from moemodel.profiler.data.spec import DataSpec
from moemodel.profiler.data.text import describe, load
from moemodel.profiler.data.tokenizers import number

_LAYER = Layer(
    attentions=(Attention(heads=2, kv_heads=2, head_dim=8),),
    feed_forward=Mlp(width=16, activation="relu", gated=False),
    norm="rms",
)


def _architecture(vocab: int, *, encoder: bool = False) -> Architecture:
    return Architecture(
        name="tiny",
        hidden=16,
        vocab=vocab,
        embedding_width=16,
        tied=True,
        decoder=(_LAYER,),
        encoder=(_LAYER,) * encoder,
    )


def _shard(path: Path, rows: Sequence[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
    return path


# --- the corpus ------------------------------------------------------------------------------------------------------


def test_the_corpus_is_a_megabyte_of_english() -> None:
    texts = list(corpus_texts())
    assert sum(map(len, texts)) > 1_000_000
    assert any("A compound statement" in text or "compound statements" in text for text in texts)
    assert list(corpus_texts()) == texts


def test_the_corpus_in_numbers_is_as_uneven_as_words_are() -> None:
    stream = load(DataSpec(), _architecture(50_000))
    counts = np.bincount(stream.tokens)
    assert stream.unknown == 0
    assert counts[2] > 50 * np.median(counts[counts > 0])
    assert len(np.unique(stream.tokens)) > 10_000


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_words_are_numbered_by_how_often_they_occur() -> None:
    found = number(["the cat, the dog", "the end"], "words", 6, 100)
    # " the" and "the" are two pieces; each of two occurs twice, of which "the" is second by its letters
    assert found.tokens.tolist()[-1] == 0
    assert found.tokens.tolist().count(0) == 2
    pieces = ["the", " cat", ",", " the", " dog", None, "the", " end", None]
    by_rank = {"the": 2, " cat": 3, " dog": 4, " end": 5, None: 0}
    assert found.tokens.tolist() == [by_rank.get(piece, 1) for piece in pieces]
    assert found.unknown == 2


def test_bytes_are_utf8() -> None:
    assert number(["aé"], "bytes", 257, 100).tokens.tolist() == [97, 0xC3, 0xA9, 256]


@pytest.mark.parametrize("tokenizer", ["words", "bytes"])
def test_no_more_is_read_than_asked_for(tokenizer: str) -> None:
    def texts() -> Any:
        yield "one two three four"
        raise AssertionError("read on")

    assert len(number(texts(), tokenizer, 300, 5).tokens) == 5


@pytest.mark.parametrize(("tokenizer", "vocab", "needed"), [("words", 2, 3), ("bytes", 256, 257)])
def test_a_vocabulary_that_is_too_small_is_refused(tokenizer: str, vocab: int, needed: int) -> None:
    said = f"data.tokenizer: found {tokenizer}, which takes {needed} numbers, and a model with {vocab} for text"
    with pytest.raises(InputError, match=said):
        load(DataSpec(tokenizer=tokenizer), _architecture(vocab))


def test_an_encoder_decoder_keeps_numbers_for_spans() -> None:
    stream = load(DataSpec(), _architecture(1000, encoder=True))
    assert stream.tokens.max() == 1000 - 250 - 1


# --- C4 --------------------------------------------------------------------------------------------------------------


def test_shards_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    _shard(tmp_path / "c4-train.00001.json.gz", [{"text": "two", "url": "u"}])
    _shard(tmp_path / "c4-train.00000.json.gz", [{"text": "one", "url": "u"}, {"text": "and", "url": "u"}])
    assert list(c4_texts(tmp_path)) == ["one", "and", "two"]


def test_a_shard_is_numbered_like_any_text(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.json.gz", [{"text": "the cat"}, {"text": "the dog"}])
    stream = load(DataSpec(source="c4", path=shard), _architecture(64))
    assert stream.tokens.tolist() == [2, 3, 0, 2, 4, 0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a"}, "{no json"], r"a\.json\.gz, line 2: found '{no json', no JSON; allowed: a JSON object"),
        ([{"text": "a"}, {"body": "b"}], r"a\.json\.gz, line 2: found the keys body; allowed: .*`text`, a string"),
        ([{"text": 3}], r"a\.json\.gz, line 1: found a text of type int; allowed: .*`text`, a string"),
        (["[1]"], r"a\.json\.gz, line 1: found list; allowed: a JSON object with `text`"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(c4_texts(_shard(tmp_path / "a.json.gz", rows)))


def test_a_shard_that_was_cut_short_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shard = _shard(tmp_path / "a.json.gz", [{"text": rng.bytes(200).hex()} for _ in range(50)])
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(InputError, match=r"a\.json\.gz, line \d+: found the end of a file that was cut short; allowed"):
        list(c4_texts(shard))


def test_a_file_that_is_no_gzip_is_named(tmp_path: Path) -> None:
    plain = tmp_path / "a.json.gz"
    plain.write_text('{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.json\.gz, line 1: found no gzip .*; allowed: a whole gzip file"):
        list(c4_texts(plain))


def test_a_path_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.path: found no \*\.json\.gz in "):
        list(c4_texts(tmp_path))
    with pytest.raises(InputError, match=r"data\.path: found nothing at .*none\.json\.gz; allowed"):
        list(c4_texts(tmp_path / "none.json.gz"))
    with pytest.raises(InputError, match=r"data\.path: found null with source c4"):
        load(DataSpec(source="c4"), _architecture(64))


# --- Hugging Face's libraries, which tests do without ----------------------------------------------------------------


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"data.source dataset needs datasets.*the extra data"):
        list(dataset_texts("wikitext", "train", "text"))
    with pytest.raises(MissingExtraError, match=r"data.tokenizer gpt2 needs tokenizers.*the extra data"):
        load_tokenizer("gpt2")


def _fake_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset: Any) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_a_data_set_is_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> Any:
        asked.append((name, split, streaming))
        return iter([{"body": "the cat"}, {"body": "the dog"}])

    _fake_datasets(monkeypatch, load_dataset)
    spec = DataSpec(source="dataset", name="pets", split="test", column="body")
    assert load(spec, _architecture(64)).tokens.tolist() == [2, 3, 0, 2, 4, 0]
    assert asked == [("pets", "test", True)]


def test_a_column_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_datasets(monkeypatch, lambda *_, **__: iter([{"body": "a", "id": 1}]))
    with pytest.raises(InputError, match=r"data\.column: found 'text', no text in row 0 of pets; .* among body, id"):
        list(dataset_texts("pets", "train", "text"))


def test_a_data_set_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("no such data set\nand much more")

    _fake_datasets(monkeypatch, load_dataset)
    with pytest.raises(
        InputError, match=r"data\.name: found 'pets', split 'train'.*FileNotFoundError: no such data set\)"
    ):
        list(dataset_texts("pets", "train", "text"))
    with pytest.raises(InputError, match=r"data\.name: found null with source dataset"):
        load(DataSpec(source="dataset"), _architecture(64))


def test_a_tokenizer_of_the_library_numbers_the_text(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    assert number(["the cat", "the dog"], str(file), 10, 100).tokens.tolist() == [1, 2, 3, 1, 0, 3]
    with pytest.raises(InputError, match="which takes 4 numbers, and a model with 3"):
        number(["the cat"], str(file), 3, 100)


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_a_manifest_says_what_was_read(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.json.gz", [{"text": "the cat"}, {"text": "the dog"}])
    found = describe(DataSpec(source="c4", path=shard), _architecture(64))
    assert found["source"] == "c4"
    assert found["path"] == str(shard)
    assert (found["tokenizer"], found["tokens"], found["distinct_tokens"], found["unknown_tokens"]) == (
        "words",
        6,
        4,
        0,
    )
    assert found["vocabulary"] == 64
    _shard(shard, [{"text": "the cat"}, {"text": "a dog"}])
    other = describe(DataSpec(source="c4", path=shard, tokens=1000), _architecture(64))
    assert other["sha256"] != found["sha256"]
    assert json.loads(json.dumps(found)) == found


def test_a_manifest_says_what_was_made_up() -> None:
    assert describe(None, _architecture(64)) == {"source": "synthetic", "zipf_exponent": 1.0, "vocabulary": 64}
    assert describe(DataSpec(source="synthetic", zipf_exponent=0.0), _architecture(64))["zipf_exponent"] == 0
