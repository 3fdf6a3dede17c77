"""Text out of a growing sequence of token ids, without ever cutting a UTF-8 character.

Owns: the bytes of an unfinished character. Does not know: stop strings, requests. Each token is
looked at once, so the cost of a text is linear in its length.
"""

from __future__ import annotations

import codecs
from typing import Protocol


class TokenBytes(Protocol):
    """What the detokenizer needs of a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text."""
        ...


class Detokenizer:
    """Turns ids into pieces of text: the pieces' sum is the text of all ids.

    A piece holds whole characters only; the bytes of an unfinished one wait for the next token. A
    text that ends inside a character ends before it: what waits then is never shown. Bytes that
    can't become a character, whatever follows, are U+FFFD.
    """

    def __init__(self, tokenizer: TokenBytes) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The piece that this token completes; empty while a character is unfinished."""
        return self._decoder.decode(self._token_bytes(token_id))
