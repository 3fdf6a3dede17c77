"""How the answer of a route is written, as whoever generates it sees that.

Owns: the protocol alone, and what the end of an answer says. `forms` and `responses_form` fulfil
it. Does not know: routes, the engine, sending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from subsecond.serve.choice_text import Piece
from subsecond.serve.errors import ServeError
from subsecond.serve.schema.shared import Promise


@dataclass(frozen=True)
class Summary:
    """What the end of an answer says. prompt_tokens and cached_tokens: of all prompts together."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    promise: Promise


class Form(Protocol):
    """How an answer of one route is written. Nothing of it is asynchronous."""

    def piece(self, piece: Piece) -> bytes:
        """The events for a piece of text; b"" where it adds nothing."""
        ...

    def finished(self, index: int, reason: str, summary: Summary | None) -> bytes:
        """The events for the end of a text; summary: with the last one."""
        ...

    def last(self, summary: Summary) -> bytes:
        """The events after all texts."""
        ...

    def failed(self, error: ServeError) -> bytes:
        """The event that ends a stream with an error."""
        ...

    def whole(self, reasons: Sequence[str], summary: Summary) -> bytes:
        """The body of an answer that isn't streamed; its pieces were given to `piece`."""
        ...
