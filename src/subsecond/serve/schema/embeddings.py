"""/v1/embeddings: requests and answers.

Owns: the forms of `input` and the two encodings of a vector. Does not know: how vectors are made.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from subsecond.serve.errors import UnsupportedValue
from subsecond.serve.limits import MAX_PRIORITY, BodyLimits
from subsecond.serve.schema import shared, wire
from subsecond.serve.schema.completions import Prompt, prompts
from subsecond.serve.schema.shared import Identity, ModelName, Strict, Terms, documented

MAX_INPUTS = 2048


class EmbeddingRequest(Strict):
    """The body, field by field."""

    model: ModelName
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    user: Identity | None = None
    deadline_ms: Annotated[float | None, documented(1, shared.MAX_DEADLINE_MS)] = None
    priority: Annotated[int | None, documented(-MAX_PRIORITY, MAX_PRIORITY)] = None


class Embed(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request. dimensions: see `check_dimensions`."""

    model: str
    inputs: list[Prompt]
    terms: Terms
    base64: bool = False
    dimensions: int | None = None
    user: str | None = None


def read(body: bytes, limits: BodyLimits) -> Embed:
    """The request of a body; the errors are those of `wire.decode`."""
    request = wire.decode(EmbeddingRequest, body, limits)
    return Embed(
        model=request.model,
        inputs=prompts(request.input, "input", MAX_INPUTS),
        terms=shared.terms(request),
        base64=request.encoding_format == "base64",
        dimensions=request.dimensions,
        user=request.user,
    )


def check_dimensions(request: Embed, width: int) -> None:
    """UnsupportedValue if the request wants vectors of another width than the model's."""
    if request.dimensions not in (None, width):
        raise UnsupportedValue(
            f"dimensions is {request.dimensions}; this model's vectors have {width}, and are not "
            "cut",
            "dimensions",
        )


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One vector: numbers, or the base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def embedding(index: int, vector: Sequence[float], *, as_base64: bool) -> Embedding:
    """A vector in the encoding that was asked for."""
    if not as_base64:
        return Embedding(index=index, embedding=list(vector))
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return Embedding(index=index, embedding=base64.b64encode(values.tobytes()).decode())
