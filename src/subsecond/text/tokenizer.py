"""Token ids from text and bytes from token ids, over the `tokenizers` library.

Owns: the bound on text (in bytes, checked before tokenizing), the rule that a control token's
spelling inside user text is ordinary text, and the bytes of each token. Does not know: chat
templates, models, sequences.
"""

from __future__ import annotations

import operator
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec

from subsecond.errors import InputError, ModelError, TextError, UnsupportedError
from subsecond.text.tokenizer_parts import check_parts

# Read by the library before it makes a thread pool: one prompt never pays for a pool of its own.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MAX_TEXT_BYTES = 1 << 20
"""Longest text that is tokenized: the library needs about 100 bytes of memory a byte of text."""

LONG_TEXT_CHARACTERS = 4096
"""From here on a text is tokenized such that other threads run meanwhile."""

_ZEROS = re.compile(rb"\x00+")
_SPACES = re.compile(r"\s*")

SPACE_MARK = "\u2581"  # SentencePiece's visible space


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: each of the 256 bytes has one printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in table)
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


def check_text(text: object, what: str = "text", limit_bytes: int = MAX_TEXT_BYTES) -> str:
    """`text` as it is, if it is a string of valid Unicode of at most `limit_bytes` bytes of UTF-8.

    Raises TextError that names `what`, the size or the place, and the limit.
    """
    if not isinstance(text, str):
        raise TextError(f"{what} must be a string, not {type(text).__name__}")
    # A character is at least one byte, so a huge text is refused without being copied.
    if len(text) > limit_bytes:
        raise TextError(
            f"{what} has {len(text):,} characters; at most {limit_bytes:,} bytes are accepted"
        )
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise TextError(
            f"{what} is not valid Unicode: lone surrogate U+{code:04X} at character {error.start}; "
            "remove it or decode the source with errors='replace'"
        ) from None
    if size_bytes > limit_bytes:
        raise TextError(
            f"{what} has {size_bytes:,} bytes; at most {limit_bytes:,} bytes are accepted"
        )
    return text


@contextmanager
def _library_errors(kind: type[InputError], message: str) -> Iterator[None]:
    """Turns whatever the library raises into `kind`.

    It raises bare Exception for its own errors. A panic of its Rust code is a class derived from
    BaseException that can't be imported, so it is known by what it is not.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise kind(message % str(error)[:200]) from None


def _encoding_errors() -> AbstractContextManager[None]:
    return _library_errors(
        TextError, "the model's tokenizer.json fails on this text: %s; repair or replace that file"
    )


class Tokenizer:
    """A tokenizer.json. Calls are thread-safe.

    `control_tokens` maps the spelling of every control token (special added token) to its id.
    """

    def __init__(self, data: bytes | str) -> None:
        from tokenizers import Tokenizer as Library

        replaced = check_parts(data)
        with _library_errors(ModelError, "tokenizer.json can't be read: %s"):
            self._library: Any = (
                Library.from_str(data) if isinstance(data, str) else Library.from_buffer(data)
            )
            if replaced:
                model = {"type": "BPE", "vocab": {}, "merges": []}
                parts = Library.from_buffer(msgspec.json.encode({"model": model, **replaced}))
                for kind in replaced:
                    setattr(self._library, kind, getattr(parts, kind))
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = True
        self._lock = threading.Lock()
        self._added = {
            int(token_id): token
            for token_id, token in self._library.get_added_tokens_decoder().items()
        }
        self.control_tokens: dict[str, int] = {
            token.content: token_id for token_id, token in self._added.items() if token.special
        }
        self._control_ids = frozenset(self.control_tokens.values())
        self._byte_level = self._is_byte_level()
        self._byte_of_character = _byte_of_character()
        self._bytes_of_token: dict[int, bytes] = {}
        self._control_pattern: re.Pattern[str] | None = None

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return int(self._library.get_vocab_size(with_added_tokens=True))

    @property
    def longest_token_bytes(self) -> int:
        """No token stands for more bytes of text; counted anew at each call."""
        longest = 0
        for spelling in sorted(self._library.get_vocab(), key=len, reverse=True):
            if 4 * len(spelling) <= longest:  # a character has at most 4 bytes
                break
            longest = max(longest, len(spelling.encode()))
        return longest

    def encode(self, text: str, *, control_tokens: bool = False, affixes: bool = True) -> list[int]:
        """Token ids of `text`.

        text: at most MAX_TEXT_BYTES bytes of UTF-8, else TextError. control_tokens: whether
        spellings of control tokens become control tokens; never for text of which a part comes from
        others. affixes: whether the tokenizer's own prefix and suffix (beginning of sequence) are
        added; where `control_tokens` reads them in the text itself they aren't added again.
        """
        check_text(text)
        if control_tokens:
            return self._encode_formatted(text, affixes=affixes)
        with self._lock, _encoding_errors():
            encoding = self._encoding(text, affixes=affixes)
        ids = list(encoding.ids)
        if self._control_ids.intersection(ids):
            added = encoding.special_tokens_mask
            self._ordinary([i for i, affix in zip(ids, added, strict=True) if not affix])
        return ids

    def _encode_formatted(self, text: str, *, affixes: bool) -> list[int]:
        with self._lock, _encoding_errors():
            self._library.encode_special_tokens = False
            try:
                encoding = self._encoding(text, affixes=affixes)
            finally:
                self._library.encode_special_tokens = True
        ids, added = list(encoding.ids), list(encoding.special_tokens_mask)
        if 0 not in added:  # nothing but affixes
            return ids
        begin, end = added.index(0), len(added) - added[::-1].index(0)
        prefix, own, suffix = ids[:begin], ids[begin:end], ids[end:]
        if own[:begin] == prefix:
            prefix = []
        if own[len(own) - len(suffix) :] == suffix:
            suffix = []
        return [*prefix, *own, *suffix]

    def split_control(self, text: str, mask: bytes | None = None) -> list[str | int]:
        """Cuts a text at the spellings of control tokens: ordinary texts, and the control tokens'
        ids.

        mask: one byte a character; where it isn't 0 the character belongs to no control token. A
        control token takes the white space beside it along if it is declared so.
        """
        if self._control_pattern is None:
            spellings = sorted(self.control_tokens, key=len, reverse=True)
            self._control_pattern = re.compile("|".join(map(re.escape, spellings)))
        segments: list[str | int] = []
        place = 0
        runs = [(0, len(text))] if mask is None else [m.span() for m in _ZEROS.finditer(mask)]
        for begin, end in runs if self.control_tokens else ():
            for match in self._control_pattern.finditer(text, begin, end):
                token_id = self.control_tokens[match[0]]
                before, after = text[place : match.start()], match.end()
                if self._added[token_id].lstrip:
                    before = before.rstrip()
                if self._added[token_id].rstrip:
                    after = _SPACES.match(text, after).end()  # type: ignore[union-attr]
                segments += [before, token_id]
                place = max(place, after)
        return [*segments, text[place:]]

    def encode_segments(self, segments: Sequence[str | int]) -> list[int]:
        """Token ids of ordinary texts (str) between control tokens (int), as if they were one
        text. TextError if this tokenizer makes a control token of an ordinary text.
        """
        ids: list[int] = []
        for index, segment in enumerate(segments):
            if isinstance(segment, int):
                ids.append(segment)
            elif index == 0:
                ids.extend(self.encode(segment, affixes=False))
            elif segment:
                check_text(segment)
                with self._lock, self._inside_text(), _encoding_errors():
                    inner = self._encoding(segment, affixes=False)
                ids.extend(self._ordinary(list(inner.ids)))
        return ids

    def _encoding(self, text: str, *, affixes: bool) -> Any:
        if len(text) < LONG_TEXT_CHARACTERS:
            return self._library.encode(text, add_special_tokens=affixes)
        # Unlike `encode`, this lets other threads of Python run meanwhile.
        return self._library.encode_batch([text], add_special_tokens=affixes)[0]

    def _ordinary(self, ids: list[int]) -> list[int]:
        """`ids`, if none of them is a control token: a vocabulary may hold one as a plain entry."""
        found = self._control_ids.intersection(ids)
        if found:
            raise TextError(
                f"the model's tokenizer can't write {self.token(min(found))!r} as ordinary text: "
                "its vocabulary holds only the control token; remove it from the text"
            )
        return ids

    @contextmanager
    def _inside_text(self) -> Iterator[None]:
        """Metaspace tokenizers may mark only the first word of a text; a later segment isn't
        first.
        """
        from tokenizers.pre_tokenizers import Metaspace

        pre = self._library.pre_tokenizer
        if not isinstance(pre, Metaspace) or pre.prepend_scheme != "first":
            yield
            return
        pre.prepend_scheme = "never"
        try:
            yield
        finally:
            pre.prepend_scheme = "first"

    def token(self, token_id: int) -> str | None:
        """The token's spelling in the vocabulary; None for an id that the tokenizer doesn't
        have.
        """
        if not 0 <= token_id < 1 << 32:  # what the library's own integers hold
            return None
        spelling: str | None = self._library.id_to_token(token_id)
        return spelling

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text; empty for control tokens and unknown ids.

        Models pad their vocabulary, so an id without an entry is not an error.
        """
        known = self._bytes_of_token.get(token_id)
        if known is None:
            known = self._bytes_of_token[token_id] = self._make_bytes(token_id)
        return known

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, as a continuation: a leading space is kept. Bad UTF-8 becomes
        U+FFFD, an unfinished character at the end too (a generated text ends before it). TextError
        for what is no integer, and for an id without an entry in the vocabulary.
        """
        try:
            ids = list(map(operator.index, token_ids))  # NumPy's and PyTorch's integers too
        except TypeError as error:
            raise TextError(f"token_ids must be a list or array of integers: {error}") from None
        for token_id in ids:
            if not self._bytes_of_token.get(token_id) and self.token(token_id) is None:
                shown = token_id if abs(token_id) < 1 << 64 else "of more than 64 bits"
                raise TextError(
                    f"token id {shown} isn't in the tokenizer's vocabulary of "
                    f"{self.vocab_size:,} entries"
                )
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def _make_bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return b"" if added.special else added.content.encode("utf-8")
        spelling = self.token(token_id)
        if spelling is None:
            return b""
        if self._byte_level:
            try:
                return bytes(self._byte_of_character[character] for character in spelling)
            except KeyError:  # an entry outside the byte alphabet stands for itself
                return spelling.encode("utf-8")
        if len(spelling) == 6 and spelling.startswith("<0x") and spelling.endswith(">"):
            try:
                return bytes([int(spelling[3:5], 16)])
            except ValueError:
                pass
        return spelling.replace(SPACE_MARK, " ").encode("utf-8")

    def _is_byte_level(self) -> bool:
        """From the decoder: byte-level BPE (GPT-2) or SentencePiece; TextError-free, refusal by
        name.
        """
        decoder = self._library.decoder
        state = "" if decoder is None else decoder.__getstate__().decode("utf-8")
        if '"ByteLevel"' in state:
            return True
        if '"Metaspace"' in state or '"ByteFallback"' in state or SPACE_MARK in state:
            return False
        name = "none" if decoder is None else type(decoder).__name__
        raise UnsupportedError(
            f"tokenizer.json: decoder {name} isn't supported; supported: ByteLevel, and "
            "SentencePiece "
            "(Metaspace, or Replace with ByteFallback)"
        )
