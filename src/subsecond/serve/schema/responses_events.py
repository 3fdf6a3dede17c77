"""/v1/responses: answers and the events of streams.

Owns: their shape, and the numbering of a stream's events. Does not know: requests' bodies, text.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from subsecond.serve.schema import wire
from subsecond.serve.schema.chat import TokenLogprob
from subsecond.serve.schema.responses import Respond, Status
from subsecond.serve.schema.shared import Promise


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a message. logprobs: empty unless they were asked for."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[None] = []
    logprobs: list[TokenLogprob] = []


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag="message", tag_field="type"):
    """What the model says."""

    id: str
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[OutputText]


class OutputCall(msgspec.Struct, frozen=True, kw_only=True, tag="function_call", tag_field="type"):
    """A call that the model asks for."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


Item = OutputMessage | OutputCall


class InputDetails(msgspec.Struct, frozen=True):
    """cached_tokens: of the prompt, not computed again."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    """The model doesn't reason apart from its answer."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int

    @staticmethod
    def of(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
        """Usage with its sum."""
        return Usage(
            prompt_tokens,
            InputDetails(cached_tokens),
            completion_tokens,
            OutputDetails(),
            prompt_tokens + completion_tokens,
        )


class IncompleteDetails(msgspec.Struct, frozen=True):
    """reason: "max_output_tokens" or "deadline"."""

    reason: str


class ResponseError(msgspec.Struct, frozen=True):
    """Why a response failed."""

    code: str
    message: str


class ReasoningOff(msgspec.Struct, frozen=True):
    """The model doesn't reason apart from its answer."""

    effort: None = None
    summary: None = None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer, or its state so far in the events of a stream."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[Item]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: ReasoningOff = ReasoningOff()
    service_tier: str = "default"
    store: bool = False
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, str]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: str = "disabled"
    usage: Usage | None = None
    user: str | None = None
    subsecond: Promise | UnsetType = UNSET


def response(
    request: Respond, response_id: str, created_at: int, status: Literal["in_progress", "failed"]
) -> Response:
    """A response without output, with all that it repeats of its request; `msgspec.structs.replace`
    fills in the rest.
    """
    asked = request.asked
    choice = request.tool_choice
    named = {"type": "function", "name": choice.name} if choice.name is not None else None
    tools = [
        {
            "type": "function",
            "name": own.name,
            "description": own.description,
            "parameters": own.parameters,
            "strict": own.strict,
        }
        for own in request.tools
    ]
    return Response(
        id=response_id,
        created_at=created_at,
        status=status,
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        metadata=asked.metadata or {},
        model=request.model,
        output=[],
        parallel_tool_calls=choice.parallel,
        temperature=asked.temperature,
        text=msgspec.to_builtins(asked.text),
        tool_choice=named or (choice.mode if tools else "auto"),
        tools=tools,
        top_logprobs=asked.top_logprobs or 0,
        top_p=asked.top_p,
        user=asked.user,
    )


class ResponseEvent(msgspec.Struct, frozen=True, kw_only=True):
    """response.created, .in_progress, .completed, .incomplete and .failed."""

    type: str
    sequence_number: int
    response: Response


class ItemEvent(msgspec.Struct, frozen=True, kw_only=True):
    """response.output_item.added and .done."""

    type: str
    sequence_number: int
    output_index: int
    item: Item


class PartEvent(msgspec.Struct, frozen=True, kw_only=True):
    """response.content_part.added and .done."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: OutputText


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """response.output_text.delta."""

    type: str = "response.output_text.delta"
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob] = []


class TextDone(msgspec.Struct, frozen=True, kw_only=True):
    """response.output_text.done."""

    type: str = "response.output_text.done"
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob] = []


class ArgumentsDelta(msgspec.Struct, frozen=True, kw_only=True):
    """response.function_call_arguments.delta."""

    type: str = "response.function_call_arguments.delta"
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(msgspec.Struct, frozen=True, kw_only=True):
    """response.function_call_arguments.done."""

    type: str = "response.function_call_arguments.done"
    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


class ErrorEvent(msgspec.Struct, frozen=True, kw_only=True):
    """error: the stream ends after it."""

    type: Literal["error"] = "error"
    sequence_number: int
    code: str | None
    message: str
    param: str | None


class Numbered:
    """The events of one stream as bytes, numbered from 0."""

    def __init__(self) -> None:
        self._next = 0

    def event(self, kind: type[msgspec.Struct], name: str | None = None, /, **fields: Any) -> bytes:
        """The next event, of a struct above. name: its type, where the struct has several."""
        if name is not None:
            fields["type"] = name
        made = kind(sequence_number=self._next, **fields)
        self._next += 1
        return wire.named_event(made.type, made)  # type: ignore[attr-defined]
