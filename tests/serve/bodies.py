"""Bodies of requests, and what reading them says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from subsecond.serve.errors import BadRequest, ServeError
from subsecond.serve.limits import BodyLimits
from subsecond.serve.schema import chat, completions, embeddings, responses, tokens

LIMITS = BodyLimits()
Read = Callable[[bytes, BodyLimits], Any]

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, tuple[Read, dict[str, Any]]] = {
    "chat": (chat.read, {"model": "m", "messages": MESSAGES}),
    "completions": (completions.read, {"model": "m", "prompt": "hi"}),
    "responses": (responses.read, {"model": "m", "input": "hi"}),
    "embeddings": (embeddings.read, {"model": "m", "input": "hi"}),
    "tokenize": (tokens.read_tokenize, {"model": "m", "prompt": "hi"}),
    "detokenize": (tokens.read_detokenize, {"model": "m", "tokens": [1]}),
}
GENERATING = ("chat", "completions", "responses")


def read(route: str, /, **fields: Any) -> Any:
    """The request of a route's smallest body with these fields."""
    reader, smallest = BODIES[route]
    return reader(json.dumps({**smallest, **fields}).encode(), LIMITS)


def refusal(route: str, /, body: bytes | None = None, **fields: Any) -> ServeError:
    """The error that a body, or the smallest one with these fields, is refused with."""
    try:
        taken = BODIES[route][0](body, LIMITS) if body is not None else read(route, **fields)
    except BadRequest as error:
        assert error.status == 400
        return error
    except ServeError as error:
        return error
    raise AssertionError(f"accepted: {taken!r:.300}")
