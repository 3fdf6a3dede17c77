"""What several routes have in common: sampling, the deadline, tools, usage.

Owns: the fields that every generating route takes, our own beside OpenAI's, and their way into
SamplingParams, which alone judges sampling. Does not know: routes.

Our own fields: deadline_ms, on_deadline, priority, min_tokens, top_k, min_p, repetition_penalty,
stop_token_ids, ignore_eos, structured_outputs (formats). null is the same as leaving a field out
where OpenAI's own interface has it so, and where our field's default is "nobody has said".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from subsecond.engine.sampling import SamplingParams
from subsecond.errors import RequestError
from subsecond.serve.errors import BadRequest, UnsupportedValue
from subsecond.serve.limits import MAX_PRIORITY
from subsecond.serve.schema.formats import Shape, StructuredOutputs
from subsecond.serve.schema.strict import Identity, ModelName, Strict, ToolName

MAX_DEADLINE_MS = 86_400_000
MAX_TOOLS = 128
MAX_METADATA = 16

OnDeadline = Literal["finish", "full"]


def documented(low: float, high: float) -> Meta:
    """The range of a field for the interface's description; SamplingParams is what enforces it."""
    return Meta(extra_json_schema={"minimum": low, "maximum": high})


class StreamOptions(Strict):
    """Options of a stream. OpenAI pads events against guesses of their length; this server never
    does.
    """

    include_usage: bool = False
    include_obfuscation: bool = False


class Generating(Strict):
    """The fields that every route takes that makes text."""

    model: ModelName
    stream: bool | None = None
    user: Identity | None = None
    temperature: Annotated[float | None, documented(0, 100)] = None
    top_p: Annotated[float | None, documented(0, 1)] = None
    presence_penalty: Annotated[float | None, documented(-2, 2)] = None
    frequency_penalty: Annotated[float | None, documented(-2, 2)] = None
    seed: Annotated[int | None, documented(0, 2**64 - 1)] = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    # Our own.
    top_k: Annotated[int | None, documented(0, 2**31 - 1)] = None
    min_p: Annotated[float | None, documented(0, 1)] = None
    repetition_penalty: Annotated[float | None, documented(0.01, 100)] = None
    min_tokens: Annotated[int, documented(0, 2**31 - 1)] = 0
    stop_token_ids: list[int] = msgspec.field(default_factory=list)
    ignore_eos: bool = False
    deadline_ms: Annotated[float | None, documented(1, MAX_DEADLINE_MS)] = None
    on_deadline: OnDeadline = "finish"
    priority: Annotated[int | None, documented(-MAX_PRIORITY, MAX_PRIORITY)] = None
    structured_outputs: StructuredOutputs | None = None


_SAMPLING = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "logit_bias", "stop",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos",
)  # fmt: skip


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The deadline that a request asks for, and its rank.

    deadline_ms: from the moment when the request's first byte could be read; None: the server's.
    on_deadline: "finish" ends the answer in time, "full" promises all of its tokens or nothing.
    priority: -9 to 9, who gets the free room first; None: the key's.
    """

    deadline_ms: float | None = None
    on_deadline: OnDeadline = "finish"
    priority: int | None = None

    def promised_tokens(self, min_tokens: int, max_tokens: int) -> int:
        """Tokens that a promise covers: all of them for "full", else `min_tokens`, else half of
        `max_tokens`.
        """
        if self.on_deadline == "full":
            return max_tokens
        return min_tokens or (max_tokens + 1) // 2


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request for text, of any route.

    constraint_param: the field that asks for `params.constraint`, which errors name. score_prompt:
    whether the prompt's log probabilities are wanted. embeds: whether it is not text that is wanted
    but the model's state after the prompt.
    include_usage: whether a stream ends with the usage. user: who the client says it acts for; goes
    into the audit log.
    """

    model: str
    params: SamplingParams
    terms: Terms
    stream: bool = False
    include_usage: bool = False
    user: str | None = None
    constraint_param: str | None = None
    score_prompt: bool = False
    embeds: bool = False


def sampling(
    request: Generating,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    n: int | None = None,
    shape: Shape | None = None,
    names: Mapping[str, str] | None = None,
) -> SamplingParams:
    """The sampling of a request. names: what the route calls max_tokens, logprobs and n."""
    given = {name: value for name in _SAMPLING if (value := getattr(request, name)) is not None}
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            logprobs=logprobs,
            n=1 if n is None else n,
            constraint=None if shape is None else shape.constraint,
            **given,
        )
    except RequestError as error:
        message, param = str(error), error.param
        for ours, theirs in (names or {}).items():
            message = re.sub(rf"\b{ours}\b", theirs, message)
            param = theirs if param == ours else param
        raise BadRequest(message, param) from None


class HasTerms(Protocol):
    """A body with a deadline and a priority."""

    deadline_ms: float | None
    priority: int | None


def terms(request: HasTerms, on_deadline: OnDeadline = "finish") -> Terms:
    """The deadline and priority of a request; BadRequest if one is out of its range."""
    if request.deadline_ms is not None:
        check_deadline_ms(request.deadline_ms, "deadline_ms")
    if request.priority is not None and not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise BadRequest(
            f"priority must be an integer from {-MAX_PRIORITY} to {MAX_PRIORITY}, not "
            f"{request.priority}",
            "priority",
        )
    return Terms(
        deadline_ms=request.deadline_ms,
        on_deadline=on_deadline,
        priority=request.priority,
    )


def check_deadline_ms(value: float, name: str) -> float:
    """A deadline in milliseconds from now, 1 to a day; BadRequest naming `name` otherwise."""
    if not 1 <= value <= MAX_DEADLINE_MS:  # false for NaN
        raise BadRequest(
            f"{name} must be a number of milliseconds from 1 to {MAX_DEADLINE_MS}, not {value:g}",
            name,
        )
    return float(value)


_DECIMAL = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?")


def header_deadline_ms(text: str) -> float:
    """The value of an X-Deadline-Ms header; BadRequest naming the header otherwise."""
    name = "X-Deadline-Ms"
    value = text.strip(" \t")
    if not _DECIMAL.fullmatch(value):
        raise BadRequest(f"{name} must be a number of milliseconds, not {value[:40]!r}", name)
    return check_deadline_ms(float(value), name)


def earlier(terms: Terms, header_ms: float | None) -> Terms:
    """The terms with a header's deadline taken in: of two, the earlier holds."""
    if header_ms is None or (terms.deadline_ms is not None and terms.deadline_ms <= header_ms):
        return terms
    return msgspec.structs.replace(terms, deadline_ms=header_ms)


def stream_usage(stream: bool | None, options: StreamOptions | None) -> bool:
    """Whether a stream ends with its usage; BadRequest for options without a stream."""
    if options is None:
        return False
    if not stream:
        raise BadRequest("stream_options is only allowed with stream: true", "stream_options")
    if options.include_obfuscation:
        raise UnsupportedValue(
            "stream_options.include_obfuscation is not supported; leave it out or send false",
            "stream_options.include_obfuscation",
        )
    return options.include_usage


def neutral(holds: bool, param: str, why: str) -> None:
    """UnsupportedValue naming `param` unless the field asks for nothing."""
    if not holds:
        raise UnsupportedValue(f"{param} is not supported: {why}", param)


def check_metadata(metadata: dict[str, str] | None) -> dict[str, str]:
    """Up to 16 short texts that the answer repeats; BadRequest otherwise."""
    own = metadata or {}
    if len(own) > MAX_METADATA:
        raise BadRequest(f"metadata has {len(own)} entries; at most 16 are accepted", "metadata")
    if any(len(key) > 64 or len(value) > 512 for key, value in own.items()):
        raise BadRequest(
            "metadata must have keys of at most 64 characters and values of at most 512", "metadata"
        )
    return own


# Tools.


class FunctionDefinition(Strict):
    """A function that the model may ask for. parameters: a JSON schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """A function as templates see it."""

    name: str
    description: str | None
    parameters: dict[str, Any]
    strict: bool

    def for_template(self) -> dict[str, Any]:
        """OpenAI's form, which chat templates read."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters
        return {"type": "function", "function": function}


class ToolChoice(msgspec.Struct, frozen=True):
    """mode: "none", "auto" (the model decides) or "required" (at least one call). name: the one
    function that must be called. parallel: whether several calls are allowed.
    """

    mode: Literal["none", "auto", "required"] = "none"
    name: str | None = None
    parallel: bool = True


def tool(given: FunctionDefinition) -> Tool:
    """A function without its optional parts left open."""
    return Tool(
        given.name,
        given.description,
        given.parameters or {"type": "object", "properties": {}},
        bool(given.strict),
    )


def tool_choice(
    tools: list[Tool], choice: str | None, name: str | None, parallel: bool | None, name_param: str
) -> ToolChoice:
    """How tools are chosen. choice: "none", "auto", "required" or None (auto where there are
    tools). name: the function that must be called, in the field `name_param`.
    """
    names = [own.name for own in tools]
    if len(set(names)) < len(names):
        twice = next(own for own in names if names.count(own) > 1)
        raise BadRequest(f"tools has the function {twice!r} twice", "tools")
    if not tools:
        if name is not None or choice is not None:
            raise BadRequest("tool_choice is only allowed with tools", "tool_choice")
        if parallel is not None:
            raise BadRequest(
                "parallel_tool_calls is only allowed with tools", "parallel_tool_calls"
            )
        return ToolChoice()
    if name is not None:
        if name not in names:
            raise BadRequest(f"tool_choice names {name!r}, which is not in tools", name_param)
        return ToolChoice("required", name, parallel is not False)
    if choice not in (None, "none", "auto", "required"):
        raise UnsupportedValue(
            f"tool_choice is {choice!r:.40}; it may be 'none', 'auto', 'required' or a function",
            "tool_choice",
        )
    mode: Literal["none", "auto", "required"] = (
        "none" if choice == "none" else "required" if choice == "required" else "auto"
    )
    return ToolChoice(mode, None, parallel is not False)


# Answers.


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """cached_tokens: of the prompt, not computed again."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request, as OpenAI counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET

    @staticmethod
    def of(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
        """Usage with its sum."""
        return Usage(
            prompt_tokens,
            completion_tokens,
            prompt_tokens + completion_tokens,
            PromptTokensDetails(cached_tokens),
        )


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked, promised and used: `subsecond` in every answer, and in a stream's last event.

    deadline_ms: null where there was none. promised_tokens: null where nothing was promised. kept:
    whether the promise was. The times are milliseconds: queue_ms until the first step,
    prefill_ms from there to the first token, decode_ms to the last; total_ms from the request's
    first byte.
    """

    deadline_ms: float | None
    on_deadline: OnDeadline
    promised_tokens: int | None
    kept: bool | None
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float


LEAST_LOGPROB = -9999.0
"""OpenAI's number for a token that can't be chosen: JSON has no infinity."""


def finite(logprob: float) -> float:
    """A log probability as JSON can hold it."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB  # NaN too
