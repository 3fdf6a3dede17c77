"""/v1/responses: requests.

Owns: which items and fields of OpenAI's newest interface are served (text and function calls), and
their way into the messages that chat templates read. The answers are in `responses_events`. Does
not know: templates, tokens.

Accepted where they ask for nothing: background, context_management, conversation, include (log
probabilities only), max_tool_calls, metadata (repeated), moderation, previous_response_id, prompt,
prompt_cache_key, prompt_cache_retention, reasoning (effort "none"), safety_identifier (recorded),
service_tier, store, text.verbosity, truncation ("disabled": too long a prompt is an error).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from subsecond.engine.sampling import SamplingParams
from subsecond.serve.errors import BadRequest, UnsupportedValue
from subsecond.serve.limits import BodyLimits
from subsecond.serve.schema import formats, shared, wire
from subsecond.serve.schema.chat import Name, tool_call
from subsecond.serve.schema.formats import ResponsesFormat, Shape, TextFormat
from subsecond.serve.schema.shared import (
    FunctionDefinition,
    Generating,
    Generation,
    StreamOptions,
    Tool,
    ToolChoice,
    documented,
)
from subsecond.serve.schema.strict import Identity, Strict, ToolName

UNSUPPORTED = {
    "access_programs": "leave it out",
    "background_options": "answers come at once; leave it out",
    "image": "answers are text; leave it out",
    "prompt_cache_options": "the prefix cache works by itself; leave it out",
}
LOGPROBS = "message.output_text.logprobs"

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Strict, tag="input_text", tag_field="type"):
    """A part of a message."""

    text: str


class OutputText(Strict, tag="output_text", tag_field="type"):
    """A part of an earlier answer, as it was sent."""

    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class OutputRefusal(Strict, tag="refusal", tag_field="type"):
    """An earlier refusal; it is read as its text."""

    refusal: str


Part = InputText | OutputText | OutputRefusal


class MessageItem(Strict):
    """A message; `id` and `status` are those of an earlier answer and change nothing."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    type: Literal["message"] = "message"
    id: Name | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Strict):
    """A call that the model has asked for before."""

    call_id: Name
    name: Name
    arguments: str
    type: Literal["function_call"]
    id: Name | None = None
    status: Status | None = None


class CallOutputItem(Strict):
    """The result of a call."""

    call_id: Name
    output: str | list[InputText]
    type: Literal["function_call_output"]
    id: Name | None = None
    status: Status | None = None


_ITEMS: dict[str, type[MessageItem | CallItem | CallOutputItem]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "function_call_output": CallOutputItem,
}


class TextConfig(Strict):
    """What the text must look like."""

    format: ResponsesFormat = msgspec.field(default_factory=TextFormat)
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    """The model doesn't reason apart from its answer."""

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class FunctionTool(FunctionDefinition, tag="function", tag_field="type"):
    """A function; OpenAI's own tools are not served."""


class NamedTool(Strict):
    """The one function that must be called."""

    name: ToolName
    type: Literal["function"]


class ResponseRequest(Generating, kw_only=True):
    """The body, field by field; `read` checks what types can't say."""

    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, documented(1, 2**31 - 1)] = None
    top_logprobs: Annotated[int | None, documented(0, 20)] = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    stream_options: StreamOptions | None = None
    text: TextConfig = msgspec.field(default_factory=TextConfig)
    tools: Annotated[list[FunctionTool], Meta(max_length=shared.MAX_TOOLS)] = msgspec.field(
        default_factory=list
    )
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: Identity | None = None
    prompt_cache_key: Identity | None = None
    # One value only.
    background: bool | None = None
    context_management: None = None
    conversation: None = None
    max_tool_calls: None = None
    moderation: None = None
    previous_response_id: None = None
    prompt: None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    reasoning: Reasoning | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: bool | None = None
    truncation: Literal["disabled"] | None = None


class Respond(Generation, frozen=True, kw_only=True):
    """A checked request; `asked` is what the answer repeats of it."""

    messages: list[dict[str, Any]]
    asked: ResponseRequest
    tools: list[Tool] = msgspec.field(default_factory=list)
    tool_choice: ToolChoice = ToolChoice()


def read(body: bytes, limits: BodyLimits) -> Respond:
    """The request of a body; the errors are those of `wire.decode`."""
    request = wire.decode(ResponseRequest, body, limits, UNSUPPORTED)
    shared.neutral(not request.store, "store", "nothing is stored; leave it out or send false")
    shared.neutral(
        not request.background, "background", "answers come at once; leave it out or send false"
    )
    if shared.stream_usage(request.stream, request.stream_options):
        raise UnsupportedValue(
            "stream_options.include_usage is not a field here: the last event always has it",
            "stream_options.include_usage",
        )
    request.metadata = shared.check_metadata(request.metadata)
    tools = [shared.tool(own) for own in request.tools]
    choice = request.tool_choice
    shape = formats.shape(request.text.format, "text.format", request.structured_outputs)
    return Respond(
        model=request.model,
        params=_params(request, shape),
        terms=shared.terms(request, request.on_deadline),
        stream=bool(request.stream),
        user=request.safety_identifier or request.user,
        messages=_messages(request),
        asked=request,
        constraint_param=None if shape is None else shape.param,
        tools=tools,
        tool_choice=shared.tool_choice(
            tools,
            choice if isinstance(choice, str) else None,
            choice.name if isinstance(choice, NamedTool) else None,
            request.parallel_tool_calls,
            "tool_choice.name",
        ),
    )


def _params(request: ResponseRequest, shape: Shape | None) -> SamplingParams:
    wanted = LOGPROBS in (request.include or ())
    if request.top_logprobs and not wanted:
        raise BadRequest(
            f"top_logprobs is only allowed with include: [{LOGPROBS!r}]", "top_logprobs"
        )
    return shared.sampling(
        request,
        max_tokens=request.max_output_tokens,
        logprobs=request.top_logprobs if not wanted else request.top_logprobs or 0,
        shape=shape,
        names={"max_tokens": "max_output_tokens", "logprobs": "top_logprobs"},
    )


def _messages(request: ResponseRequest) -> list[dict[str, Any]]:
    own: list[dict[str, Any]] = []
    if request.instructions is not None:
        own.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*own, {"role": "user", "content": request.input}]
    for index, given in enumerate(request.input):
        place = f"input[{index}]"
        item = _item(given, place)
        if isinstance(item, MessageItem):
            role = "system" if item.role == "developer" else item.role
            own.append({"role": role, "content": _content(item.content)})
        elif isinstance(item, CallItem):
            call = tool_call(item.call_id, item.name, item.arguments)
            if own and own[-1].get("tool_calls"):  # calls of one turn are one message
                own[-1]["tool_calls"].append(call)
            else:
                own.append({"role": "assistant", "content": None, "tool_calls": [call]})
        else:
            own.append(
                {
                    "role": "tool",
                    "content": _content(item.output),
                    "tool_call_id": item.call_id,
                }
            )
    return own


def _item(given: dict[str, Any], place: str) -> MessageItem | CallItem | CallOutputItem:
    kind = given.get("type", "message")
    if not isinstance(kind, str):
        raise BadRequest(f"{place}.type must be a string", f"{place}.type", "invalid_type")
    if kind not in _ITEMS:
        raise UnsupportedValue(
            f"{place}.type is {kind!r:.60}, which is not supported; it may be "
            f"{' or '.join(map(repr, _ITEMS))}",
            f"{place}.type",
        )
    return wire.convert(_ITEMS[kind], given, place)


def _content(content: str | list[Part] | list[InputText]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": part.refusal if isinstance(part, OutputRefusal) else part.text}
        for part in content
    ]
