"""How answers of `/v1/embeddings` are written. They are never streamed.

Owns: the vectors so far, each encoded when it comes, so that no answer holds the loop up for long.
Does not know: the engine, deadlines, sending.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from subsecond.serve.choice_text import Piece
from subsecond.serve.errors import ServeError
from subsecond.serve.form import Summary
from subsecond.serve.schema import wire
from subsecond.serve.schema.embeddings import (
    Embed,
    Embeddings,
    EmbeddingUsage,
    embedding,
    normalized,
)


class EmbeddingForm:
    """The vectors of a request's inputs."""

    def __init__(self, request: Embed) -> None:
        self._request = request
        self._vectors: dict[int, msgspec.Raw] = {}

    def piece(self, piece: Piece) -> bytes:
        """Of Form."""
        if piece.state:
            vector = normalized(piece.state, self._request.dimensions)
            own = embedding(piece.index, vector, as_base64=self._request.base64)
            self._vectors[piece.index] = msgspec.Raw(wire.encode(own))
        return b""

    def finished(self, index: int, reason: str, summary: Summary | None) -> bytes:
        """Of Form."""
        return b""

    def last(self, summary: Summary) -> bytes:
        """Of Form."""
        return b""

    def failed(self, error: ServeError) -> bytes:
        """Of Form."""
        return wire.error_event(error)

    def whole(self, reasons: Sequence[str], summary: Summary) -> bytes:
        """Of Form."""
        data: Any = [self._vectors[index] for index in range(len(reasons))]  # written already
        usage = EmbeddingUsage(summary.prompt_tokens, summary.prompt_tokens)
        return wire.encode(Embeddings(data=data, model=self._request.model, usage=usage))
