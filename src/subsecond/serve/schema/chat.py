"""/v1/chat/completions: requests, answers and the events of streams.

Owns: which of OpenAI's fields are served, and the messages as templates read them. Does not know:
templates, tokens.

Accepted where they ask for nothing: audio, function_call, metadata (repeated), modalities,
moderation, prediction, prompt_cache_key (the prefix cache needs none), prompt_cache_retention,
reasoning_effort, safety_identifier (recorded as `user` is), service_tier, store, verbosity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from subsecond.engine.sampling import SamplingParams
from subsecond.serve.errors import BadRequest
from subsecond.serve.limits import BodyLimits
from subsecond.serve.schema import formats, shared, wire
from subsecond.serve.schema.formats import ChatFormat, Shape, TextFormat
from subsecond.serve.schema.shared import (
    FunctionDefinition,
    Generating,
    Generation,
    Promise,
    StreamOptions,
    Tool,
    ToolChoice,
    Usage,
    documented,
)
from subsecond.serve.schema.strict import Identity, Strict, ToolName

UNSUPPORTED = {
    "functions": "use tools",
    "prompt_cache_options": "the prefix cache works by itself; leave it out",
    "web_search_options": "the server never opens a connection; leave it out",
}

Name = Annotated[str, Meta(max_length=256)]


class TextPart(Strict, tag="text", tag_field="type"):
    """A part of a message."""

    text: str


class RefusalPart(Strict, tag="refusal", tag_field="type"):
    """A refusal that an assistant gave before; it is read as its text."""

    refusal: str


class SystemMessage(Strict, tag="system", tag_field="role"):
    """An instruction."""

    content: str | list[TextPart]
    name: Name | None = None


class DeveloperMessage(Strict, tag="developer", tag_field="role"):
    """OpenAI's newer name for an instruction; templates know it as "system"."""

    content: str | list[TextPart]
    name: Name | None = None


class UserMessage(Strict, tag="user", tag_field="role"):
    """What the user says."""

    content: str | list[TextPart]
    name: Name | None = None


class CalledFunction(Strict):
    """arguments: JSON as the model wrote it."""

    name: Name
    arguments: str


class ToolCall(Strict):
    """A call that the assistant has asked for."""

    id: Name
    function: CalledFunction
    type: Literal["function"] = "function"


class AssistantMessage(Strict, tag="assistant", tag_field="role"):
    """What the model has said before."""

    content: str | list[TextPart | RefusalPart] | None = None
    name: Name | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Strict, tag="tool", tag_field="role"):
    """The result of a call."""

    content: str | list[TextPart]
    tool_call_id: Name


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class ToolDefinition(Strict):
    """A function; OpenAI's custom tools are not served."""

    function: FunctionDefinition
    type: Literal["function"]


class ChosenFunction(Strict):
    """The name of the one function."""

    name: ToolName


class NamedTool(Strict):
    """The one function that must be called."""

    function: ChosenFunction
    type: Literal["function"]


class ChatRequest(Generating, kw_only=True):
    """The body, field by field; `read` checks what types can't say."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[int | None, documented(1, 2**31 - 1)] = None
    max_tokens: Annotated[int | None, documented(1, 2**31 - 1)] = None
    n: Annotated[int | None, documented(1, 1024)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, documented(0, 20)] = None
    stream_options: StreamOptions | None = None
    response_format: ChatFormat = msgspec.field(default_factory=TextFormat)
    tools: Annotated[list[ToolDefinition], Meta(max_length=shared.MAX_TOOLS)] = msgspec.field(
        default_factory=list
    )
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: Identity | None = None
    prompt_cache_key: Identity | None = None
    # One value only.
    audio: None = None
    function_call: Literal["none"] | None = None
    modalities: list[Literal["text"]] | None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    reasoning_effort: Literal["none"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: bool | None = None
    verbosity: Literal["medium"] | None = None


class Chat(Generation, frozen=True, kw_only=True):
    """A checked request. messages: plain mappings for `text.template`."""

    messages: list[dict[str, Any]]
    tools: list[Tool] = msgspec.field(default_factory=list)
    tool_choice: ToolChoice = ToolChoice()
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


def read(body: bytes, limits: BodyLimits) -> Chat:
    """The request of a body; the errors are those of `wire.decode`."""
    request = wire.decode(ChatRequest, body, limits, UNSUPPORTED)
    shared.neutral(not request.store, "store", "nothing is stored; leave it out or send false")
    shared.neutral(request.modalities != [], "modalities", 'answers are text; send ["text"]')
    tools = [shared.tool(own.function) for own in request.tools]
    shape = formats.shape(request.response_format, "response_format", request.structured_outputs)
    return Chat(
        model=request.model,
        params=_params(request, shape),
        terms=shared.terms(request, request.on_deadline),
        stream=bool(request.stream),
        include_usage=shared.stream_usage(request.stream, request.stream_options),
        user=request.safety_identifier or request.user,
        messages=messages(request.messages),
        constraint_param=None if shape is None else shape.param,
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        metadata=shared.check_metadata(request.metadata),
    )


def _params(request: ChatRequest, shape: Shape | None) -> SamplingParams:
    name, most = "max_tokens", request.max_tokens
    if request.max_completion_tokens is not None:
        if most is not None and most != request.max_completion_tokens:
            raise BadRequest(
                f"max_tokens ({most}) and max_completion_tokens "
                f"({request.max_completion_tokens}) differ; send one of them",
                "max_tokens",
            )
        name, most = "max_completion_tokens", request.max_completion_tokens
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("top_logprobs is only allowed with logprobs: true", "top_logprobs")
    names = {"logprobs": "top_logprobs", "max_tokens": name}
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return shared.sampling(
        request, max_tokens=most, logprobs=logprobs, n=request.n, shape=shape, names=names
    )


def _tool_choice(request: ChatRequest, tools: list[Tool]) -> ToolChoice:
    given = request.tool_choice
    named = given.function.name if isinstance(given, NamedTool) else None
    return shared.tool_choice(
        tools,
        given if isinstance(given, str) else None,
        named,
        request.parallel_tool_calls,
        "tool_choice.function.name",
    )


def messages(given: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as templates read them."""
    return [_plain(own, index) for index, own in enumerate(given)]


def _plain(message: Message, index: int) -> dict[str, Any]:
    """A message as templates read it."""
    if isinstance(message, ToolMessage):
        content = _content(message.content)
        return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id}
    own: dict[str, Any] = {}
    if isinstance(message, AssistantMessage):
        own["role"] = "assistant"
        said = message.content if message.content is not None else message.refusal
        if said is None and not message.tool_calls:
            raise BadRequest(
                f"messages[{index}] has neither content nor tool_calls; give one of them",
                f"messages[{index}].content",
            )
        own["content"] = None if said is None else _content(said)
        if message.tool_calls:
            own["tool_calls"] = [
                tool_call(call.id, call.function.name, call.function.arguments)
                for call in message.tool_calls
            ]
    else:
        own["role"] = "user" if isinstance(message, UserMessage) else "system"
        own["content"] = _content(message.content)
    if message.name is not None:
        own["name"] = message.name
    return own


def _content(
    content: str | list[TextPart] | list[TextPart | RefusalPart],
) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": part.text if isinstance(part, TextPart) else part.refusal}
        for part in content
    ]


def tool_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call as templates read it: they write `arguments` as JSON themselves, so an object is given
    to them where the text is one (as vLLM does).
    """
    value: Any = arguments
    try:
        parsed = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        value = parsed
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": value}}


# Answers. Names and order are OpenAI's.


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that might have been chosen. bytes: its UTF-8, which may be part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct, frozen=True):
    """The token that was chosen, and the most probable ones."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a choice, or of what an event adds to it."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerFunction(msgspec.Struct, frozen=True):
    """arguments: JSON, as the model wrote it."""

    name: str
    arguments: str


class AnswerToolCall(msgspec.Struct, frozen=True):
    """A call that the model asks for."""

    id: str
    function: AnswerFunction
    type: Literal["function"] = "function"


class AnswerMessage(msgspec.Struct, frozen=True):
    """What the model says."""

    content: str | None
    tool_calls: list[AnswerToolCall] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Choice(msgspec.Struct, frozen=True):
    """One of n texts. finish_reason: "stop", "length", "tool_calls" or "deadline"."""

    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: Logprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer. created: Unix seconds."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | None = None
    metadata: dict[str, str] | UnsetType = UNSET
    subsecond: Promise | UnsetType = UNSET


class DeltaToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an event adds to a call."""

    index: int
    id: str | None = None
    type: str | None = None
    function: dict[str, str] | None = None


class Delta(msgspec.Struct, frozen=True):
    """What an event adds to a choice. role: in the first event of a choice only."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[DeltaToolCall] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """A choice in an event. finish_reason: in its last one."""

    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a stream. usage: left out unless asked for; then null in all but the last event,
    which has no choices.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None
    subsecond: Promise | UnsetType = UNSET
