"""/v1/embeddings: requests and answers.

Owns: the forms of `input`, the length of a vector and its two encodings. Does not know: how the
states are made that vectors are made of.

A vector is the model's final state after the last token of the input, normed as the output matrix
sees it, of length 1. `dimensions` takes the first numbers, and makes their length 1: that means
something only for models that were trained for it.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from subsecond.engine.sampling import SamplingParams
from subsecond.serve.errors import BadRequest
from subsecond.serve.limits import MAX_PRIORITY, BodyLimits
from subsecond.serve.schema import shared, wire
from subsecond.serve.schema.completions import Prompt, prompts
from subsecond.serve.schema.shared import Generation, documented
from subsecond.serve.schema.strict import Identity, ModelName, Strict

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


class Embed(Generation, frozen=True, kw_only=True):
    """A checked request. dimensions: the first so many numbers of each vector are wanted."""

    inputs: list[Prompt]
    base64: bool = False
    dimensions: int | None = None


def read(body: bytes, limits: BodyLimits) -> Embed:
    """The request of a body; the errors are those of `wire.decode`."""
    request = wire.decode(EmbeddingRequest, body, limits)
    return Embed(
        model=request.model,
        params=SamplingParams(max_tokens=1),
        terms=shared.terms(request, "full"),
        embeds=True,
        inputs=prompts(request.input, "input", MAX_INPUTS),
        base64=request.encoding_format == "base64",
        dimensions=request.dimensions,
        user=request.user,
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


def normalized(state: bytes, dimensions: int | None) -> array[float]:
    """The unit vector of a state (float32), or of its first numbers. BadRequest for more of them
    than there are.
    """
    vector = array("f", state)
    if dimensions is not None:
        if dimensions > len(vector):
            raise BadRequest(
                f"dimensions is {dimensions}; this model's vectors have {len(vector)}", "dimensions"
            )
        vector = vector[:dimensions]
    length = math.hypot(*vector)
    return array("f", (value / length for value in vector)) if length else vector


def embedding(index: int, vector: Sequence[float], *, as_base64: bool) -> Embedding:
    """A vector in the encoding that was asked for."""
    if not as_base64:
        return Embedding(index=index, embedding=list(vector))
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return Embedding(index=index, embedding=base64.b64encode(values.tobytes()).decode())
