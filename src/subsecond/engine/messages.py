"""What the front process and the engine process tell each other.

Owns: the messages, their bounds, and how errors cross from one process to the other. Does not know:
sockets (framing has the bytes), who sends what when, text.

Messages are msgpack arrays with a tag, so a step of sixteen streams is a few hundred bytes. Times
are `time.monotonic()` seconds, one clock for all processes of a machine; no deadline is `math.inf`,
what has not happened is NaN. Ids are the front's own counter: nothing that a client sends names
anything here.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

import msgspec

from subsecond import errors
from subsecond.engine.constraint import Constraint
from subsecond.engine.cost import StepShape
from subsecond.engine.values import INT_MAX
from subsecond.errors import RequestError, RuntimeFailure, SubsecondError

Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=INT_MAX)]
TokenId = Count
ModelName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Tenant = Annotated[str, msgspec.Meta(max_length=256)]
OnDeadline = Literal["finish", "full"]
FinishReason = Literal["stop", "complete", "length", "cancelled", "deadline"]
EndReason = Literal["cancelled", "stop", "deadline"]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The shape of all messages and their parts."""


class LoadOptions(Message, frozen=True):
    """`config.ModelOptions` without the model, and steps_per_call: most decode steps of one call
    into the runtime (1: every token is sent as soon as it is chosen).
    """

    weights: str | None = None
    kv: str | None = None
    threads: int | None = None
    isa: str | None = None
    max_tokens_per_step: int = 512
    max_sequences: int = 16
    context: int | None = None
    steps_per_call: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    speculation: bool = True


class SamplingFields(Message, frozen=True):
    """How the tokens of a request are chosen, nothing left to the model: see `SamplingParams` for
    the meanings and ranges, which the engine process checks once more.

    score_prompt: the prompt's log probabilities are wanted, with `logprobs` best tokens each.
    embeds: the model's final state is wanted, and no token.
    stop_ids: tokens that end a text, the model's own included. Stop strings are the front's: it
    has the text, and ends a text with `Cancel(reason="stop")`.
    """

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=INT_MAX)]
    stop_ids: list[TokenId] = []
    min_tokens: Count = 0
    temperature: float = 0.0
    top_k: Count = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0)] | None = None
    logit_bias: dict[TokenId, float] = {}
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    score_prompt: bool = False
    embeds: bool = False


# Front to engine.


class Load(Message, frozen=True, tag="load"):
    """Make a model ready. path: an artifact, or whatever `LLM` takes. Answered by Loaded or
    LoadFailed; other models go on meanwhile.
    """

    model: ModelName
    path: str
    options: LoadOptions


class Costs(Message, frozen=True, tag="costs"):
    """What the steps of a model cost: `CostModel.to_json`. From now on its steps are shared so that
    promises are kept, and the model corrects itself by the steps that it measures.
    """

    model: ModelName
    data: bytes


class Warm(Message, frozen=True, tag="warm"):
    """Take the memory of so many KV pages of a model now, rather than while nothing else is to do:
    what is submitted after this finds them touched.
    """

    model: ModelName
    pages: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Unload(Message, frozen=True, tag="unload"):
    """Free a model; what runs on it ends with an error. Answered by Unloaded, known or not."""

    model: ModelName


class Submit(Message, frozen=True, tag="submit"):
    """Answer a prompt. Answered by events up to the one that ends the request."""

    id: Id
    model: ModelName
    prompt: Annotated[list[TokenId], msgspec.Meta(min_length=1)]
    params: SamplingFields
    deadline_s: float = math.inf
    promised_tokens: Count = 0
    on_deadline: OnDeadline = "finish"
    priority: Annotated[int, msgspec.Meta(ge=-INT_MAX, le=INT_MAX)] = 0
    tenant: Tenant = ""
    arrival_s: float | None = None
    constraint: Constraint | None = None


class Cancel(Message, frozen=True, tag="cancel"):
    """End a request, or one of its texts, before its next step. An id that has ended is nothing
    special: both ends may end a request at the same time. A text that has no token yet ends with
    its whole request.
    """

    id: Id
    choice: Count | None = None
    reason: EndReason = "cancelled"


class Ping(Message, frozen=True, tag="ping"):
    """Answered by a Pong with the same n between two steps."""

    n: Id


class Drain(Message, frozen=True, tag="drain"):
    """Take no new requests, end those that there are, then exit."""


# Engine to front.


class ModelInfo(Message, frozen=True):
    """A loaded model. context: most tokens of prompt and answer. max_tokens, max_sequences,
    max_rows: what a step can hold. pages_total: KV pages in all cache groups together.
    """

    context: Count
    vocab_size: Count
    max_tokens: Count
    max_sequences: Count
    max_rows: Count
    pages_total: Count
    executor: str


class Loaded(Message, frozen=True, tag="loaded"):
    """The model takes requests from now on."""

    model: ModelName
    info: ModelInfo


class LoadFailed(Message, frozen=True, tag="load_failed"):
    """Why a model is not there. kind: the name of an exception of `subsecond.errors`."""

    model: ModelName
    message: str
    kind: str


class Unloaded(Message, frozen=True, tag="unloaded"):
    """The model is not there any more."""

    model: ModelName


class TokenLogprob(Message, frozen=True):
    """`engine.request.Logprob` of a token."""

    logprob: float
    top: list[tuple[int, float]] = []


class ErrorInfo(Message, frozen=True):
    """Why a request failed. kind: the name of an exception of `subsecond.errors`."""

    kind: str
    message: str
    param: str | None = None


class Stamps(Message, frozen=True):
    """When a request arrived in the engine process, began, had its first token, ended."""

    received_s: float
    scheduled_s: float
    first_token_s: float
    finished_s: float


class Usage(Message, frozen=True):
    """Tokens of one request, as in `tasks.completion.Usage`."""

    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count = 0


class Event(Message, frozen=True):
    """What a step adds to one text.

    logprobs: one a token where they were asked for, else none. finish_reason: with the last event
    of a text. timing, usage: with the last event of the request. error: with the last event of a
    request that failed; it ends all its texts. prompt_logprobs: with the first event of each text,
    where the prompt was to be scored; one a token from the second on. state: float32 [width], with
    the one event of a request that embeds.
    """

    id: Id
    choice: Count
    tokens: list[TokenId] = []
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    error: ErrorInfo | None = None
    timing: Stamps | None = None
    usage: Usage | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    state: bytes | None = None

    @property
    def ends_request(self) -> bool:
        """Whether the request has no further events."""
        return self.usage is not None or self.error is not None


class StepStats(Message, frozen=True):
    """What a turn of a model cost, and where the model stands after it.

    shape: None where nothing was computed (requests ended without a step). elapsed_s: from the end
    of the step before, where there was work since then: all that a step costs. ended_s: when it
    ended (monotonic seconds). steps: decode steps of the call; `shape` is the first's. prompts: of
    the requests whose prompt the step has computed a part of, what is left: (id, tokens).
    running, waiting: requests. Pages: of all cache groups together; cached ones are held by
    nothing but the prefix cache. free, cached and those of running requests sum up to total.
    drafted, accepted: tokens of drafts that the step has checked, and of them those that were
    chosen. What costs are learnt from is steps without.
    """

    shape: StepShape | None
    elapsed_s: float
    steps: Count
    running: Count
    waiting: Count
    pages_free: Count
    pages_total: Count
    pages_cached: Count
    ended_s: float = 0.0
    prompts: list[tuple[int, int]] = []
    drafted: Count = 0
    accepted: Count = 0


class StepDone(Message, frozen=True, tag="step"):
    """What a turn of a model gave, for all its streams together."""

    model: ModelName
    events: list[Event]
    stats: StepStats


class Refused(Message, frozen=True, tag="refused"):
    """A request that never reached an engine ends: a bad value, no such model, a process that takes
    no new requests.
    """

    id: Id
    error: ErrorInfo


class Pong(Message, frozen=True, tag="pong"):
    """The answer to a Ping."""

    n: Id


class Draining(Message, frozen=True, tag="draining"):
    """New requests are refused from now on; the process exits after the last answer."""


class Fatal(Message, frozen=True, tag="fatal"):
    """Why the process exits now. For whoever operates the server, not for its clients."""

    message: str


FrontMessage: TypeAlias = Load | Unload | Costs | Warm | Submit | Cancel | Ping | Drain
EngineMessage: TypeAlias = (
    Loaded | LoadFailed | Unloaded | StepDone | Refused | Pong | Draining | Fatal
)


def front_decoder() -> msgspec.msgpack.Decoder[FrontMessage]:
    """Decodes what the front sends."""
    return msgspec.msgpack.Decoder(FrontMessage)


def engine_decoder() -> msgspec.msgpack.Decoder[EngineMessage]:
    """Decodes what the engine sends."""
    return msgspec.msgpack.Decoder(EngineMessage)


def error_info(error: BaseException) -> ErrorInfo:
    """An exception as it crosses the border. Only errors raised on purpose take their message
    along: others may name addresses or paths.
    """
    if isinstance(error, SubsecondError):
        return ErrorInfo(type(error).__name__, str(error), getattr(error, "param", None))
    return ErrorInfo(
        RuntimeFailure.__name__, "an error inside the engine ended the request; its log says more"
    )


def error_of(info: ErrorInfo) -> SubsecondError:
    """The exception on the other side of the border."""
    kind = getattr(errors, info.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, SubsecondError)):
        kind = RuntimeFailure
    if issubclass(kind, RequestError):
        return kind(info.message, info.param)
    return kind(info.message)
