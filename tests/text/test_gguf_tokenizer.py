"""Tokenizers out of GGUF metadata: against an independent BPE, and every refusal."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from gguf_metadata import byte_level_metadata, sentencepiece_metadata

from subsecond.errors import ModelError, UnsupportedError
from subsecond.text import gguf_tokenizer
from subsecond.text.tokenizer import Tokenizer


def bpe(parts: list[str], rank: dict[tuple[str, str], int]) -> list[str]:
    """The textbook algorithm: join the best pair until none is left."""
    while True:
        pairs = [
            (rank[pair], index)
            for index, pair in enumerate(itertools.pairwise(parts))
            if pair in rank
        ]
        if not pairs:
            return parts
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def test_sentencepiece_joins_by_score_and_falls_back_to_bytes() -> None:
    metadata = sentencepiece_metadata()
    tokenizer = Tokenizer(gguf_tokenizer.build(metadata))
    tokens = metadata["tokenizer.ggml.tokens"]
    score = dict(zip(tokens, metadata["tokenizer.ggml.scores"], strict=True))
    normal = {
        t
        for t, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
        if kind == 1
    }
    rank = {
        (t[:cut], t[cut:]): int(-score[t])
        for t in normal
        for cut in range(1, len(t))
        if t[:cut] in normal and t[cut:] in normal
    }
    for text in ("the sky", "sky in the sky", "hello", "a  the"):
        expected = bpe(list("\u2581" + text.replace(" ", "\u2581")), rank)
        assert [tokenizer.token(i) for i in tokenizer.encode(text, affixes=False)] == expected
    assert [tokenizer.token(i) for i in tokenizer.encode("é", affixes=False)] == [
        "\u2581",
        "<0xC3>",
        "<0xA9>",
    ]
    assert tokenizer.encode("the")[0] == 1  # beginning of text is SentencePiece's default


def test_affixes_follow_the_flags() -> None:
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = Tokenizer(gguf_tokenizer.build(byte_level_metadata(**flags)))
    ids = tokenizer.encode("the")
    assert (ids[0], ids[-1]) == (1, 0)
    assert tokenizer.encode("the", affixes=False) == ids[1:-1]
    without = Tokenizer(
        gguf_tokenizer.build(sentencepiece_metadata(**{"tokenizer.ggml.add_bos_token": False}))
    )
    assert without.encode("the") == without.encode("the", affixes=False)


def test_no_space_prefix() -> None:
    metadata = sentencepiece_metadata(**{"tokenizer.ggml.add_space_prefix": False})
    tokenizer = Tokenizer(gguf_tokenizer.build(metadata))
    assert tokenizer.decode(tokenizer.encode("sky sky")) == "sky sky"


@pytest.mark.parametrize("pre", gguf_tokenizer.PRE_TOKENIZERS)
def test_every_known_pre_tokenizer_loads(pre: str) -> None:
    tokenizer = Tokenizer(gguf_tokenizer.build(byte_level_metadata(pre)))
    text = "Hello WORLD don't 12345  \n\n你好 x"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pre_tokenizers_cut_differently() -> None:
    """Digits one by one, in threes, or whole: the rule is what its name says."""
    cuts = {}
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        metadata = byte_level_metadata(pre)
        merged = ["1 2", "12 3", "123 4"]
        metadata["tokenizer.ggml.merges"] = merged
        metadata["tokenizer.ggml.tokens"] = [
            *metadata["tokenizer.ggml.tokens"][:259],
            "12",
            "123",
            "1234",
        ]
        metadata["tokenizer.ggml.token_type"] = (
            metadata["tokenizer.ggml.token_type"][:259] + [1] * 3
        )
        tokenizer = Tokenizer(gguf_tokenizer.build(metadata))
        cuts[pre] = [tokenizer.token(i) for i in tokenizer.encode("1234")]
    assert cuts == {
        "gpt-2": ["1234"],
        "smollm": ["1", "2", "3", "4"],
        "llama-bpe": ["123", "4"],
        "qwen2": ["1", "2", "3", "4"],
    }


def test_user_defined_tokens_are_text_and_control_tokens_are_not() -> None:
    tokenizer = Tokenizer(gguf_tokenizer.build(byte_level_metadata()))
    assert set(tokenizer.control_tokens) == {"<|end|>", "<|user|>"}
    assert 2 in tokenizer.encode("a<tool>b")
    assert tokenizer.token_bytes(2) == b"<tool>"


NAN = float("nan")
PIECES = len(sentencepiece_metadata()["tokenizer.ggml.tokens"])


def changed(key: str, value: Any, base: str = "byte_level") -> dict[str, Any]:
    metadata = byte_level_metadata() if base == "byte_level" else sentencepiece_metadata()
    if value is None:
        del metadata[f"tokenizer.ggml.{key}"]
    else:
        metadata[f"tokenizer.ggml.{key}"] = value
    return metadata


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        (changed("pre", "klingon"), UnsupportedError, "klingon"),
        (changed("pre", None), UnsupportedError, "tokenizer.ggml.pre is missing"),
        (changed("model", "rwkv"), UnsupportedError, "rwkv"),
        (changed("model", 7), ModelError, "tokenizer.ggml.model"),
        (changed("model", None), ModelError, "tokenizer.ggml.model is missing"),
        (changed("tokens", None), ModelError, "tokenizer.ggml.tokens"),
        (changed("tokens", []), ModelError, "empty"),
        (changed("tokens", ["a", "a"]), ModelError, "token_type has"),
        (changed("tokens", [1, 2]), ModelError, "array of str"),
        (changed("token_type", [3]), ModelError, "token_type has 1 entries"),
        (changed("merges", ["nospace"]), ModelError, "nospace"),
        (changed("merges", ["zz yy"]), ModelError, "zz yy"),
        (changed("merges", None), ModelError, "merges is missing"),
        (changed("scores", [0.0], "sp"), ModelError, "scores has 1 entries"),
        (changed("unknown_token_id", 10**9, "sp"), ModelError, "unknown_token_id"),
        (changed("bos_token_id", -1, "sp"), ModelError, "bos_token_id"),
        (changed("bos_token_id", True, "sp"), ModelError, "bos_token_id"),
        (changed("add_space_prefix", 1, "sp"), ModelError, "add_space_prefix"),
        (changed("scores", [NAN] * PIECES, "sp"), ModelError, "the score of .* is nan"),
    ],
)  # fmt: skip
def test_refusals_name_the_key(
    metadata: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        gguf_tokenizer.build(metadata)


def test_tokens_that_appear_twice_and_missing_bytes() -> None:
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"][5] = metadata["tokenizer.ggml.tokens"][6]
    with pytest.raises(ModelError, match="twice"):
        gguf_tokenizer.build(metadata)
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.tokens"][3 + 0x41] = "nothing"
    with pytest.raises(ModelError, match="<0x41>"):
        gguf_tokenizer.build(metadata)


def test_tokens_with_lone_surrogates_are_refused() -> None:
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"][0] = "\ud800"
    with pytest.raises(ModelError, match="Unicode"):
        gguf_tokenizer.build(metadata)


def test_the_file_is_json_with_the_ids_of_the_metadata() -> None:
    metadata = byte_level_metadata()
    document = json.loads(gguf_tokenizer.build(metadata))
    assert list(document["model"]["vocab"]) == metadata["tokenizer.ggml.tokens"]
    assert list(document["model"]["vocab"].values()) == list(
        range(len(metadata["tokenizer.ggml.tokens"]))
    )
