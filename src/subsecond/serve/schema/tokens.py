"""/tokenize and /detokenize, with vLLM's fields: requests and answers.

Owns: their shape. Does not know: tokenizers, templates.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from subsecond.engine.values import INT_MAX
from subsecond.serve.errors import BadRequest
from subsecond.serve.limits import BodyLimits
from subsecond.serve.schema import chat, shared, wire
from subsecond.serve.schema.completions import MAX_PROMPT_TOKENS
from subsecond.serve.schema.shared import Tool
from subsecond.serve.schema.strict import ModelName, Strict

TokenId = Annotated[int, Meta(ge=0, le=INT_MAX)]


class TokenizeRequest(Strict):
    """A text, or messages for the model's chat template."""

    model: ModelName
    prompt: str | None = None
    messages: Annotated[list[chat.Message], Meta(min_length=1)] | None = None
    tools: Annotated[list[chat.ToolDefinition], Meta(max_length=shared.MAX_TOOLS)] = msgspec.field(
        default_factory=list
    )
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class Tokenize(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request: `prompt` is a text, or None and there are messages.

    add_special_tokens: the tokenizer's own beginning and end of a text, for a prompt.
    add_generation_prompt: the beginning of the assistant's turn, for messages.
    """

    model: str
    prompt: str | None
    messages: list[dict[str, Any]]
    tools: list[Tool]
    add_special_tokens: bool
    add_generation_prompt: bool
    return_token_strs: bool


def read_tokenize(body: bytes, limits: BodyLimits) -> Tokenize:
    """The request of a body; the errors are those of `wire.decode`."""
    request = wire.decode(TokenizeRequest, body, limits)
    if (request.prompt is None) == (request.messages is None):
        raise BadRequest("give either prompt or messages", "prompt", "missing_required_parameter")
    if request.messages is None:
        for name in ("tools", "add_generation_prompt"):
            if getattr(request, name):
                raise BadRequest(f"{name} is only allowed with messages", name)
    elif request.add_special_tokens is not None:
        raise BadRequest(
            "add_special_tokens is only allowed with prompt; a chat template writes its own",
            "add_special_tokens",
        )
    return Tokenize(
        model=request.model,
        prompt=request.prompt,
        messages=chat.messages(request.messages or []),
        tools=[shared.tool(own.function) for own in request.tools],
        add_special_tokens=request.add_special_tokens is not False,
        add_generation_prompt=request.add_generation_prompt is not False,
        return_token_strs=bool(request.return_token_strs),
    )


class Tokenized(msgspec.Struct, frozen=True):
    """The tokens. max_model_len: most tokens of prompt and answer."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Strict):
    """Token ids to make a text of; their upper bound is the model's."""

    model: ModelName
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_PROMPT_TOKENS)]


def read_detokenize(body: bytes, limits: BodyLimits) -> DetokenizeRequest:
    """The request of a body; the errors are those of `wire.decode`."""
    return wire.decode(DetokenizeRequest, body, limits)


class Detokenized(msgspec.Struct, frozen=True):
    """The text."""

    prompt: str
