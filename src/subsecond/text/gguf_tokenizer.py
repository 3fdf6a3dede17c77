"""tokenizer.json from the metadata of a GGUF file.

Owns: the table of known pre-tokenizers and the two tokenizer models that decoders use: byte-level
BPE ("gpt2") and SentencePiece BPE with scores and byte fallback ("llama"). Does not know: files,
tensors. Everything else is refused by name, because a wrong pre-tokenizer costs quality without any
error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subsecond.errors import ModelError, UnsupportedError
from subsecond.text.tokenizer import SPACE_MARK

Json = dict[str, Any]

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # of tokenizer.ggml.token_type

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _CASED % ("", "", r"\p{N}")
_GPT4O = _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?", r"\p{N}{1,3}")


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before BPE. regex: None means GPT-2's own rule. digits: each digit on its
    own, first.
    """

    regex: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False

    def steps(self) -> Json:
        """The `pre_tokenizer` entry of tokenizer.json."""
        steps: list[Json] = []
        if self.digits:
            steps.append({"type": "Digits", "individual_digits": True})
        if self.regex is not None:
            split = {"type": "Split", "pattern": {"Regex": self.regex}, "behavior": "Isolated"}
            steps.append({**split, "invert": False})
        steps.append(_byte_level(use_regex=self.regex is None))
        return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


_GPT2_RULE = PreTokenizer()
_LLAMA3_RULE = PreTokenizer(_LLAMA3, ignore_merges=True)
_QWEN2_RULE = PreTokenizer(_QWEN2, nfc=True)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": _GPT2_RULE,
    "phi-2": _GPT2_RULE,
    "olmo": PreTokenizer(nfc=True),
    "mpt": PreTokenizer(nfc=True),
    "smollm": PreTokenizer(digits=True),
    "starcoder": PreTokenizer(digits=True),
    "refact": PreTokenizer(digits=True),
    "codeshell": PreTokenizer(digits=True),
    "command-r": PreTokenizer(digits=True, nfc=True),
    "llama-bpe": _LLAMA3_RULE,
    "llama3": _LLAMA3_RULE,
    "llama-v3": _LLAMA3_RULE,
    "smaug-bpe": _LLAMA3_RULE,
    "dbrx": PreTokenizer(_LLAMA3),
    "qwen2": _QWEN2_RULE,
    "deepseek-r1-qwen": _QWEN2_RULE,
    "stablelm2": PreTokenizer(_QWEN2),
    "tekken": PreTokenizer(_TEKKEN, ignore_merges=True),
    "gpt-4o": PreTokenizer(_GPT4O),
}


def build(metadata: Mapping[str, Any]) -> bytes:
    """tokenizer.json (UTF-8) for the `tokenizer.ggml.*` keys of `metadata`.

    Raises UnsupportedError for a tokenizer model or a pre-tokenizer that is not known, ModelError
    for keys that are missing, of the wrong type or contradict each other.
    """
    vocabulary = _Vocabulary.read(metadata)
    kind = _text(metadata, "tokenizer.ggml.model")
    if kind == "gpt2":
        parts = _byte_level_bpe(metadata, vocabulary)
    elif kind == "llama":
        parts = _sentencepiece(metadata, vocabulary)
    else:
        raise UnsupportedError(
            f"tokenizer.ggml.model {kind!r} isn't supported; supported: 'gpt2' (byte-level BPE), "
            "'llama' (SentencePiece)"
        )
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added(),
        **parts,
        "post_processor": _affixes(metadata, vocabulary, default_bos=kind == "llama"),
    }
    try:
        return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise ModelError("tokenizer.ggml.tokens holds text that is not valid Unicode") from None


@dataclass(frozen=True)
class _Vocabulary:
    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]

    @staticmethod
    def read(metadata: Mapping[str, Any]) -> _Vocabulary:
        tokens = _sequence(metadata, "tokenizer.ggml.tokens", str)
        if not tokens:
            raise ModelError("tokenizer.ggml.tokens is empty")
        if "tokenizer.ggml.token_type" in metadata:
            types = _sequence(metadata, "tokenizer.ggml.token_type", int)
        else:
            types = [NORMAL] * len(tokens)
        if len(types) != len(tokens):
            raise ModelError(
                f"tokenizer.ggml.token_type has {len(types)} entries, tokenizer.ggml.tokens "
                f"{len(tokens)}"
            )
        ids = {token: index for index, token in enumerate(tokens)}
        if len(ids) != len(tokens):
            twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
            raise ModelError(f"tokenizer.ggml.tokens holds {twice!r} twice")
        return _Vocabulary(tokens, types, ids)

    def added(self) -> list[Json]:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": index, "content": token, **flags, "special": kind == CONTROL}
            for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ]

    def token_at(self, metadata: Mapping[str, Any], key: str) -> str:
        """The token whose id is the value of `key`."""
        index = metadata.get(key)
        if (
            isinstance(index, bool)
            or not isinstance(index, int)
            or not 0 <= index < len(self.tokens)
        ):
            raise ModelError(f"{key} is {index!r}; it must be a token id below {len(self.tokens)}")
        return self.tokens[index]


def _byte_level_bpe(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> Json:
    if "tokenizer.ggml.pre" not in metadata:
        raise UnsupportedError(
            "tokenizer.ggml.pre is missing, so the pre-tokenizer is unknown; convert the GGUF anew "
            "with a current "
            "converter, or use the model's Hugging Face folder"
        )
    name = _text(metadata, "tokenizer.ggml.pre")
    rule = PRE_TOKENIZERS.get(name)
    if rule is None:
        known = ", ".join(PRE_TOKENIZERS)
        raise UnsupportedError(f"tokenizer.ggml.pre {name!r} isn't supported; supported: {known}")
    merges = []
    for entry in _sequence(metadata, "tokenizer.ggml.merges", str):
        cut = entry.find(" ", 1)  # a token may itself begin with a space
        left, right = entry[:cut], entry[cut + 1 :]
        if (
            cut < 0
            or left not in vocabulary.ids
            or right not in vocabulary.ids
            or left + right not in vocabulary.ids
        ):
            raise ModelError(
                f"tokenizer.ggml.merges: {entry!r} doesn't join two tokens into a token"
            )
        merges.append((left, right))
    return {
        "normalizer": {"type": "NFC"} if rule.nfc else None,
        "pre_tokenizer": rule.steps(),
        "decoder": _byte_level(use_regex=True),
        "model": _bpe(vocabulary, merges, ignore_merges=rule.ignore_merges),
    }


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> Json:
    """SentencePiece's BPE: the pair whose union has the best score is merged first, unknown bytes
    are byte tokens.
    """
    scores = _sequence(metadata, "tokenizer.ggml.scores", float)
    if len(scores) != len(vocabulary.tokens):
        raise ModelError(
            f"tokenizer.ggml.scores has {len(scores)} entries, tokenizer.ggml.tokens "
            f"{len(vocabulary.tokens)}"
        )
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary.ids]
    if missing:
        raise ModelError(f"tokenizer.ggml.tokens lacks the byte token <0x{missing[0]:02X}>")
    unknown = vocabulary.tokens[0]
    if "tokenizer.ggml.unknown_token_id" in metadata:
        unknown = vocabulary.token_at(metadata, "tokenizer.ggml.unknown_token_id")
    prefix = _flag(metadata, "tokenizer.ggml.add_space_prefix", default=True)
    normalizers: list[Json] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    ]
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE_MARK})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = _bpe(vocabulary, _merges_of_scores(vocabulary, scores), ignore_merges=False)
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {**model, "unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def _merges_of_scores(vocabulary: _Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, best score of the third first."""
    ids, types = vocabulary.ids, vocabulary.types
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, index in ids.items():
        if types[index] != NORMAL or len(token) < 2:
            continue
        score = scores[index]
        if not math.isfinite(score):
            raise ModelError(f"tokenizer.ggml.scores: the score of {token!r} is {score}")
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None and types[left] == types[right] == NORMAL:
                ranked.append((-score, left, right, token[:cut], token[cut:]))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _bpe(vocabulary: _Vocabulary, merges: list[tuple[str, str]], *, ignore_merges: bool) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


def _byte_level(*, use_regex: bool) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _affixes(
    metadata: Mapping[str, Any], vocabulary: _Vocabulary, *, default_bos: bool
) -> Json | None:
    """The `post_processor`: the tokens that the model expects at the beginning and the end of a
    text.
    """
    wanted = []
    for name, default in (("bos", default_bos), ("eos", False)):
        if _flag(metadata, f"tokenizer.ggml.add_{name}_token", default=default):
            wanted.append((name, vocabulary.token_at(metadata, f"tokenizer.ggml.{name}_token_id")))
    if not wanted:
        return None
    special = {
        token: {"id": token, "ids": [vocabulary.ids[token]], "tokens": [token]}
        for _, token in wanted
    }
    before = [
        {"SpecialToken": {"id": token, "type_id": 0}} for name, token in wanted if name == "bos"
    ]
    after = [
        {"SpecialToken": {"id": token, "type_id": 0}} for name, token in wanted if name == "eos"
    ]
    text, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [*before, text, *after],
        "pair": [*before, text, *after, *before, second, *after],
        "special_tokens": special,
    }


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    if not isinstance(value, str):
        raise ModelError(
            f"{key} is {'missing' if value is None else 'not a string'}: the GGUF has no usable "
            "tokenizer"
        )
    return value


def _flag(metadata: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise ModelError(f"{key} must be a boolean, not {value!r}")
    return value


def _sequence(metadata: Mapping[str, Any], key: str, kind: type[Any]) -> Sequence[Any]:
    value = metadata.get(key)
    if value is None:
        raise ModelError(f"{key} is missing: the GGUF has no usable tokenizer")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list) or not all(type(entry) is kind for entry in value):
        raise ModelError(f"{key} must be an array of {kind.__name__}")
    return value
