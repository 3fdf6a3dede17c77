"""What a tokenizer.json may be made of, checked before the `tokenizers` library reads it.

Owns: the known component types and the bounds on what they make of a text. Does not know: how text
is encoded, how long a regular expression takes (regex_bounds). The file is untrusted: some values
make the library loop or abort, and a vocabulary can be millions of entries, so it is skipped and
not read.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

import msgspec

from subsecond.errors import ModelError, UnsupportedError

KNOWN_TYPES = {
    "normalizer": frozenset(
        [
            "Sequence",
            "NFC",
            "NFD",
            "NFKC",
            "NFKD",
            "Replace",
            "Prepend",
            "Lowercase",
            "Strip",
            "StripAccents",
            "ByteLevel",
            "Nmt",
            "Precompiled",
        ]
    ),
    "pre_tokenizer": frozenset(
        [
            "Sequence",
            "ByteLevel",
            "Split",
            "Digits",
            "Metaspace",
            "Punctuation",
            "Whitespace",
            "WhitespaceSplit",
            "CharDelimiterSplit",
            "UnicodeScripts",
        ]
    ),
    "post_processor": frozenset(["Sequence", "ByteLevel", "TemplateProcessing"]),
    "decoder": frozenset(
        ["Sequence", "ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"]
    ),
}
MAX_COMPONENTS = 64
"""Components of one kind, and pieces of a template of affixes."""

MAX_GROWTH = 64
"""How many times longer all replacements of a normalizer together may make a text, in bytes."""

MIN_CHARSMAP_TRIE_BYTES = 1024

Json = dict[str, Any]


class _Model(msgspec.Struct):
    dropout: Any = None
    continuing_subword_prefix: Any = None
    end_of_word_suffix: Any = None


class _Parts(msgspec.Struct):
    """A tokenizer.json without its vocabulary."""

    normalizer: Json | None = None
    pre_tokenizer: Json | None = None
    post_processor: Json | None = None
    decoder: Json | None = None
    model: _Model | None = None


def check_parts(data: bytes | str) -> Json:
    """ModelError unless every component of this tokenizer.json is known and bounded.

    Returns the entries (normalizer, pre_tokenizer) that must be replaced to be so: they do the same
    with a faster expression.
    """
    try:
        parts = msgspec.json.decode(data, type=_Parts)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"tokenizer.json can't be read: {error}") from None
    if parts.model is not None and parts.model.dropout:
        raise UnsupportedError(
            f"tokenizer.json: model.dropout is {parts.model.dropout!r}; encoding must be "
            "deterministic, so it must be null"
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        mark = getattr(parts.model, key, None)
        if mark:  # byte-level and SentencePiece models have none; the library aborts on some
            raise UnsupportedError(
                f"tokenizer.json: model.{key} is {str(mark)[:40]!r}, which isn't supported; it "
                "must be null or empty"
            )
    growth = 1.0
    replaced: Json = {}
    for kind, known in KNOWN_TYPES.items():
        components = list(_components(getattr(parts, kind), kind))
        if len(components) > MAX_COMPONENTS:
            raise ModelError(f"tokenizer.json: {kind} has more than {MAX_COMPONENTS} components")
        for component in components:
            name = component.get("type")
            if not isinstance(name, str) or name not in known:
                raise UnsupportedError(
                    f"tokenizer.json: {kind} {name!r} isn't supported; supported: "
                    f"{', '.join(sorted(known))}"
                )
            pattern = component.get("pattern")
            if isinstance(pattern, dict) and "Regex" in pattern:
                # It takes 3 ms, and few need it.
                from subsecond.text.regex_bounds import FASTER, check_pattern

                check_pattern(pattern["Regex"], f"{kind}.pattern.Regex")
                if kind != "decoder" and pattern["Regex"] in FASTER:  # decoders aren't run
                    pattern["Regex"] = FASTER[pattern["Regex"]]
                    replaced[kind] = getattr(parts, kind)
            if kind == "normalizer":
                growth *= _growth(component)
            if name == "TemplateProcessing":
                _check_affixes(component)
    if growth > MAX_GROWTH:
        raise ModelError(
            f"tokenizer.json: normalizer may make a text more than {MAX_GROWTH} times longer"
        )
    return replaced


def _components(component: Any, kind: str) -> Iterator[Json]:
    """The component and those inside it."""
    waiting = [component] if component is not None else []
    while waiting:
        entry = waiting.pop()
        if not isinstance(entry, dict):
            raise ModelError(f"tokenizer.json: {kind} must be made of objects")
        yield entry
        if entry.get("type") == "Sequence":
            for key in ("normalizers", "pretokenizers", "processors", "decoders"):
                inner = entry.get(key, [])
                waiting += inner if isinstance(inner, list) else [inner]


def _growth(component: Json) -> float:
    """How many times longer a normalizer can make a text; the others' growth is small."""
    if component["type"] == "Precompiled":
        _check_charsmap(component.get("precompiled_charsmap"))
    if component["type"] == "Prepend":
        return max(1.0, float(_size_bytes(component.get("prepend"))))
    if component["type"] != "Replace":
        return 1.0
    pattern = component.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    # A regular expression may match one byte, or nothing beside each byte.
    shortest = _size_bytes(literal) if isinstance(literal, str) else 1
    return max(1.0, _size_bytes(component.get("content")) / max(shortest, 1))


def _size_bytes(text: Any) -> int:
    return len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0


def _check_charsmap(charsmap: Any) -> None:
    """SentencePiece's table: the size of a trie (uint32), the trie, texts in UTF-8."""
    try:
        table = base64.b64decode(charsmap, validate=True)
    except (TypeError, ValueError, binascii.Error):
        table = b""
    trie_bytes = int.from_bytes(table[:4], "little")
    if not MIN_CHARSMAP_TRIE_BYTES <= trie_bytes <= len(table) - 4 or trie_bytes % 4:
        raise ModelError(
            "tokenizer.json: precompiled_charsmap is damaged; fetch the model's tokenizer anew"
        )


def _check_affixes(component: Json) -> None:
    """Every special token that a template of affixes names must be declared, and the text used."""
    pieces = component.get("single")
    declared = component.get("special_tokens")
    if not isinstance(pieces, list) or not isinstance(declared, dict):
        raise ModelError("tokenizer.json: post_processor lacks single or special_tokens")
    if len(pieces) > MAX_COMPONENTS:
        raise ModelError(f"tokenizer.json: post_processor.single exceeds {MAX_COMPONENTS} pieces")
    texts = 0
    for piece in pieces:
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        if isinstance(special, dict) and special.get("id") not in declared:
            raise ModelError(
                f"tokenizer.json: post_processor.single names {special.get('id')!r}, which its "
                "special_tokens don't declare"
            )
        texts += isinstance(piece, dict) and "Sequence" in piece
    if texts != 1:
        raise ModelError(
            f"tokenizer.json: post_processor.single holds the text {texts} times; it must be once"
        )
