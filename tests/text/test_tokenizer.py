"""The tokenizer: bounds, control tokens in user text, bytes of tokens."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from gguf_metadata import byte_level_metadata, sentencepiece_metadata
from hypothesis import example, given
from hypothesis import strategies as st

from subsecond.errors import ModelError, TextError, UnsupportedError
from subsecond.text import gguf_tokenizer
from subsecond.text.regex_bounds import FASTER
from subsecond.text.tokenizer import MAX_TEXT_BYTES, Tokenizer

TEXTS = [
    "the sky is blue",
    "  two  spaces\n\n\ttab ",
    "你好，世界！",
    "🎉👩‍👩‍👧‍👦 flags 🇩🇪",
    "def f(x):\n    return x ** 2\n",
    "\x00\x01\x7f\u2028\ufeff\ufffd",
    "e\u0301 vs \u00e9, ÅΩ",
    "don't can't 1234",
]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_are_the_text(
    byte_level: Tokenizer, sentencepiece: Tokenizer, text: str
) -> None:
    assert byte_level.decode(byte_level.encode(text)) == text
    assert (
        sentencepiece.decode(sentencepiece.encode(text)) == " " + text
    )  # the prefix is kept: a continuation


@given(st.text(max_size=80))
def test_any_text_survives(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text)
    assert byte_level.decode(ids) == text
    assert not set(ids) & set(byte_level.control_tokens.values())


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_control_spellings_in_text_are_ordinary(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    assert tokenizer.control_tokens
    for spelling, token_id in tokenizer.control_tokens.items():
        text = f"the {spelling}{spelling} sky"
        assert token_id not in tokenizer.encode(text, affixes=False)
        assert tokenizer.encode(text, control_tokens=True).count(token_id) >= 2
        assert token_id not in tokenizer.encode(text, affixes=False)  # the switch went back
        assert tokenizer.token_bytes(token_id) == b""


def test_affixes_that_a_text_has_itself_are_not_added_again() -> None:
    flags = {"tokenizer.ggml.add_eos_token": True}
    tokenizer = Tokenizer(gguf_tokenizer.build(sentencepiece_metadata(**flags)))
    begin, end = (tokenizer.control_tokens[name] for name in ("<s>", "</s>"))
    the = tokenizer.encode("the", affixes=False)
    for text in ("the", "<s>the", "the</s>", "<s>the</s>"):
        assert tokenizer.encode(text, control_tokens=True) == [begin, *the, end]
    twice = tokenizer.encode("<s>the</s>", affixes=False)
    assert tokenizer.encode("<s>the</s>") == [begin, *twice, end]
    assert begin not in twice
    assert tokenizer.encode("", control_tokens=True) == [begin, end]


def test_segments_equal_the_text_with_its_markers(
    byte_level: Tokenizer, sentencepiece: Tokenizer
) -> None:
    for tokenizer, marker in ((byte_level, "<|user|>"), (sentencepiece, "</s>")):
        marker_id = tokenizer.control_tokens[marker]
        whole = tokenizer.encode(
            f"the sky{marker}\nis blue{marker}the", control_tokens=True, affixes=False
        )
        cut = tokenizer.encode_segments(["the sky", marker_id, "\nis blue", marker_id, "the"])
        assert cut == whole


def test_control_tokens_that_strip_take_white_space_along() -> None:
    document = json.loads(gguf_tokenizer.build(byte_level_metadata()))
    for added in document["added_tokens"]:
        if added["content"] == "<|user|>":
            added["rstrip"] = True
    tokenizer = Tokenizer(json.dumps(document))
    text = "the <|user|> \n sky<|end|>\n is"
    user, end = (tokenizer.control_tokens[name] for name in ("<|user|>", "<|end|>"))
    assert tokenizer.split_control(text) == ["the ", user, "sky", end, "\n is"]
    whole = tokenizer.encode(text, control_tokens=True, affixes=False)
    assert tokenizer.encode_segments(tokenizer.split_control(text)) == whole


def test_metaspace_marks_only_the_first_word_of_segments() -> None:
    document = json.loads(gguf_tokenizer.build(sentencepiece_metadata()))
    document["normalizer"] = None
    document["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False
    }  # fmt: skip
    tokenizer = Tokenizer(json.dumps(document))
    end = tokenizer.control_tokens["</s>"]
    whole = tokenizer.encode("the</s>the sky", control_tokens=True, affixes=False)
    assert tokenizer.encode_segments(["the", end, "the sky"]) == whole
    assert tokenizer.encode_segments(["the"]) == tokenizer.encode("the", affixes=False)


def test_text_is_bounded_in_bytes_before_it_is_tokenized(byte_level: Tokenizer) -> None:
    with pytest.raises(TextError, match=r"10,000,000 characters.*1,048,576 bytes"):
        byte_level.encode("a" * 10_000_000)
    with pytest.raises(TextError, match=r"bytes; at most"):
        byte_level.encode("界" * (MAX_TEXT_BYTES // 3 + 1))


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff ok", "\udcff"])
def test_lone_surrogates_are_named(byte_level: Tokenizer, text: str) -> None:
    with pytest.raises(TextError, match=r"lone surrogate U\+D[0-9A-F]{3} at character \d"):
        byte_level.encode(text)


def test_unknown_ids_have_no_text(byte_level: Tokenizer) -> None:
    assert byte_level.token(10**6) is None
    assert byte_level.token_bytes(10**6) == b""
    for token_id in (byte_level.vocab_size + 5, 10**6, -1, 1 << 40):
        with pytest.raises(TextError, match=rf"token id {token_id} .*vocabulary of [\d,]+ entries"):
            byte_level.decode([0, token_id])
        assert byte_level.token(token_id) is None
        assert byte_level.token_bytes(token_id) == b""
    with pytest.raises(TextError, match="token id of more than 64 bits"):
        byte_level.decode([10**5000])


def test_ids_may_be_integers_of_any_library(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("the sky")
    assert byte_level.decode(np.array(ids)) == "the sky"  # type: ignore[arg-type]
    assert byte_level.decode([np.int32(i) for i in ids]) == "the sky"  # type: ignore[misc]
    for wrong in (None, 5, [1.0], ["a"], "ab", [[1]]):
        with pytest.raises(TextError, match="token_ids must be a list or array of integers"):
            byte_level.decode(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"model": 1}', b"[" * 5000])
def test_a_damaged_file_is_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError, match="tokenizer"):
        Tokenizer(data)


def test_an_unknown_decoder_is_refused_by_name() -> None:
    document = json.loads(gguf_tokenizer.build(byte_level_metadata()))
    document["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(UnsupportedError, match="WordPiece"):
        Tokenizer(json.dumps(document))


def test_threads_share_a_tokenizer(byte_level: Tokenizer) -> None:
    expected = {
        control: byte_level.encode("the<|user|>sky", control_tokens=control)
        for control in (False, True)
    }
    assert expected[False] != expected[True]
    wrong: list[bool] = []

    def work(control: bool) -> None:
        for _ in range(200):
            if byte_level.encode("the<|user|>sky", control_tokens=control) != expected[control]:
                wrong.append(control)

    threads = [threading.Thread(target=work, args=(index % 2 == 0,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _document(**changes: Any) -> str:
    return json.dumps({**json.loads(gguf_tokenizer.build(byte_level_metadata())), **changes})


def _template(single: list[Any]) -> dict[str, Any]:
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}


TEXT_PIECE = {"Sequence": {"id": "A", "type_id": 0}}
TOKEN_PIECE = {"SpecialToken": {"id": "<zz>", "type_id": 0}}


@pytest.mark.parametrize(
    ("key", "component", "named"),
    [
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "FixedLength"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "New"}]}, "New"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "charsmap"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////w=="}, "charsmap"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": 1}, "charsmap"),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 1000}, "longer"),
        (
            "normalizer",
            {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
                ]
                * 4,
            },
            "longer",
        ),
        ("post_processor", _template([TOKEN_PIECE, TEXT_PIECE]), "<zz>"),
        ("post_processor", _template([]), "0 times"),
        ("post_processor", _template([TEXT_PIECE] * 2), "2 times"),
        ("decoder", {"type": "CTC"}, "CTC"),
    ],
)
def test_components_that_are_unknown_or_unbounded_are_refused(
    key: str, component: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelError, match=named):
        Tokenizer(_document(**{key: component}))


def test_dropout_is_refused() -> None:
    model = json.loads(_document())["model"]
    with pytest.raises(UnsupportedError, match=r"dropout is 0\.5"):
        Tokenizer(_document(model={**model, "dropout": 0.5}))


@pytest.mark.parametrize(
    ("key", "component"),
    [
        ("pre_tokenizer", {"type": "Split", "behavior": "Isolated", "invert": False}),
        ("normalizer", {"type": "Replace", "content": "b"}),
        ("decoder", {"type": "Replace", "content": "b"}),
    ],
)
def test_an_expression_that_explodes_is_refused_before_the_library_prints_its_panic(
    key: str, component: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=rf"{key}\.pattern\.Regex '\(a\+\)\+\$' can take time"):
        Tokenizer(_document(**{key: {**component, "pattern": {"Regex": "(a+)+$"}}})).encode(
            "a" * 40 + "!"
        )
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_marks_of_words_are_refused_before_the_library_prints_its_panic(
    key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(_document())
    for harmless in (None, ""):
        document["model"][key] = harmless
        assert Tokenizer(json.dumps(document)).encode("the")
    for mark in ("####", ["x"], 5):
        document["model"][key] = mark
        with pytest.raises(UnsupportedError, match=rf"tokenizer\.json: model\.{key} is "):
            Tokenizer(json.dumps(document))
    assert capfd.readouterr().err == ""


def _split(pattern: str) -> dict[str, Any]:
    regex = {"Regex": pattern}
    return {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}


@given(st.text(alphabet=" \n\r\t\u00a0\u3000\u2028ax1中", max_size=60))
@example("\n\n  \n   x \n\r\n  1  ")
def test_the_faster_expression_has_the_same_matches(text: str) -> None:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    for slow, fast in FASTER.items():
        for behavior in ("isolated", "removed", "merged_with_previous"):
            pieces = [Split(Regex(own), behavior).pre_tokenize_str(text) for own in (slow, fast)]
            assert pieces[0] == pieces[1]


def test_a_run_of_white_space_inside_a_line_takes_linear_time() -> None:
    """A quadratic one would take half an hour."""
    pre = json.loads(_document())["pre_tokenizer"]
    steps = {"type": "Sequence", "pretokenizers": [_split(r"\s+$"), pre]}
    strip = {"type": "Replace", "pattern": {"Regex": r"\s+$"}, "content": "!"}
    tokenizer = Tokenizer(_document(pre_tokenizer=steps, normalizer=strip))
    text = " " * (MAX_TEXT_BYTES - 1) + "1"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("a  \nb  ")) == "a!\nb!"


@pytest.mark.parametrize("pattern", ["(", "[a", "a)", "*", "\\", "[]", "(?"])
def test_a_mistake_in_an_expression_is_a_model_error(pattern: str) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer(_document(pre_tokenizer=_split(pattern)))


@pytest.mark.parametrize("pattern", ["{", "a{", "a{,}"])
def test_braces_that_repeat_nothing_are_characters(pattern: str) -> None:
    byte_level = json.loads(_document())["pre_tokenizer"]
    steps = {"type": "Sequence", "pretokenizers": [_split(pattern), byte_level]}
    tokenizer = Tokenizer(_document(pre_tokenizer=steps))
    assert tokenizer.decode(tokenizer.encode("xa{,}x")) == "xa{,}x"


def test_errors_and_panics_of_the_library_are_text_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As the library's own, which can't be imported."""

    class Panics:
        encode_special_tokens = True
        pre_tokenizer = None

        def encode(self, *args: Any, **options: Any) -> Any:
            raise PanicException("called `Result::unwrap()` on an `Err` value")

    tokenizer = Tokenizer(_document())
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "_library", Panics())
        with pytest.raises(TextError, match=r"tokenizer\.json"):
            tokenizer.encode("x")
        with pytest.raises(TextError, match=r"tokenizer\.json"):
            tokenizer.encode_segments(["", 1, "x"])
    assert tokenizer.encode("a!")  # the lock went back
    unigram = {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]], "byte_fallback": False}
    with pytest.raises(TextError, match="unk_id"):
        Tokenizer(_document(model=unigram, added_tokens=[])).encode("zzz")


def test_an_interrupt_is_not_an_error_of_the_text(
    byte_level: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def encode(self, *args: Any, **options: Any) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setattr(byte_level, "_library", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        byte_level.encode("x")


def test_a_long_text_is_tokenized_while_other_threads_run(byte_level: Tokenizer) -> None:
    class Watched:
        """A tokenizer of the package, noting which of its calls were used: `encode` holds Python's
        lock.
        """

        def __init__(self, real: Any) -> None:
            self.real, self.used = real, set()

        def __getattr__(self, name: str) -> Any:
            self.used.add(name)
            return getattr(self.real, name)

    tokenizer = Tokenizer(gguf_tokenizer.build(byte_level_metadata("smollm")))
    tokenizer._library = watched = Watched(tokenizer._library)
    for text in ("1" * 50_000, "the sky is blue, " * 5000, "".join(TEXTS) * 200):
        for affixes in (False, True):
            expected = list(watched.real.encode(text, add_special_tokens=affixes).ids)
            assert tokenizer.encode(text, affixes=affixes) == expected
    assert "encode_batch" in watched.used
    assert "encode" not in watched.used


def test_a_vocabulary_entry_that_is_a_control_token_too_is_not_made_of_text() -> None:
    document = json.loads(gguf_tokenizer.build(byte_level_metadata()))
    entry = next(e for e in document["added_tokens"] if e["content"] == "<|end|>")
    vocabulary = document["model"]["vocab"]
    entry["content"], entry["id"] = "a", vocabulary["a"]
    tokenizer = Tokenizer(json.dumps(document))
    with pytest.raises(TextError, match="can't write 'a' as ordinary text"):
        tokenizer.encode("ab")
    with pytest.raises(TextError, match="can't write 'a' as ordinary text"):
        tokenizer.encode_segments(["", "za"])
