"""/v1/completions: requests, answers and the events of streams.

Owns: the forms of `prompt`, `echo` and the old form of log probabilities. Does not know: tokens.

Accepted where they ask for nothing: best_of (equal to n), suffix ("").
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from subsecond.engine.values import INT_MAX, short
from subsecond.serve.errors import BadRequest
from subsecond.serve.limits import BodyLimits
from subsecond.serve.schema import formats, shared, wire
from subsecond.serve.schema.formats import ChatFormat, TextFormat
from subsecond.serve.schema.shared import (
    Generating,
    Generation,
    Promise,
    StreamOptions,
    Usage,
    documented,
)

MAX_PROMPTS = 128
MAX_PROMPT_TOKENS = 1 << 17

Prompt = str | list[int]


class CompletionRequest(Generating, kw_only=True):
    """The body, field by field; `read` checks what types can't say."""

    prompt: str | list[Any]
    max_tokens: Annotated[int | None, documented(0, 2**31 - 1)] = None
    n: Annotated[int | None, documented(1, 1024)] = None
    logprobs: Annotated[int | None, documented(0, 20)] = None
    echo: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ChatFormat = msgspec.field(default_factory=TextFormat)
    best_of: int | None = None
    suffix: Literal[""] | None = None


class Completion(Generation, frozen=True, kw_only=True):
    """A checked request. prompts: at least one, each a text or token ids (whose upper bound is the
    model's). echo: the answer begins with the prompt, and its log probabilities with the prompt's.
    prompt_only: nothing is generated (max_tokens: 0 with echo); `params.max_tokens` is then 1.
    """

    prompts: list[Prompt]
    echo: bool = False
    prompt_only: bool = False


def read(body: bytes, limits: BodyLimits) -> Completion:
    """The request of a body; the errors are those of `wire.decode`."""
    request = wire.decode(CompletionRequest, body, limits)
    echo = bool(request.echo)
    prompt_only = echo and request.max_tokens == 0
    shape = formats.shape(request.response_format, "response_format", request.structured_outputs)
    params = shared.sampling(
        request,
        max_tokens=1 if prompt_only else request.max_tokens,
        logprobs=request.logprobs,
        n=request.n,
        shape=shape,
    )
    shared.neutral(
        request.best_of is None or request.best_of == params.n,
        "best_of",
        "every text is returned; leave it out, or give the same as n",
    )
    return Completion(
        model=request.model,
        params=params,
        terms=shared.terms(request, request.on_deadline),
        stream=bool(request.stream),
        include_usage=shared.stream_usage(request.stream, request.stream_options),
        user=request.user,
        prompts=prompts(request.prompt, "prompt", MAX_PROMPTS),
        score_prompt=echo and request.logprobs is not None,
        echo=echo,
        prompt_only=prompt_only,
        constraint_param=None if shape is None else shape.param,
    )


def prompts(given: str | list[Any], param: str, most: int) -> list[Prompt]:
    """OpenAI's four forms: a text, texts, token ids, lists of token ids; a list of them."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise BadRequest(f"{param} is empty; give a text or token ids", param)
    if type(given[0]) is int:
        return [_token_ids(given, param)]
    if len(given) > most:
        raise BadRequest(f"{param} has {len(given)} entries; at most {most} are accepted", param)
    own: list[Prompt] = []
    for index, entry in enumerate(given):
        place = f"{param}[{index}]"
        if isinstance(entry, str):
            own.append(entry)
        elif isinstance(entry, list):
            own.append(_token_ids(entry, place))
        else:
            raise BadRequest(f"{place} must be a text or token ids, not {short(entry)}", place)
    if len({type(entry) for entry in own}) > 1:
        raise BadRequest(f"{param} mixes texts and token ids; send one kind", param)
    return own


def _token_ids(given: list[Any], param: str) -> list[int]:
    """A prompt's ids; the model's own bound is checked when it is known."""
    if not given:
        raise BadRequest(f"{param} is empty; give at least one token id", param)
    if len(given) > MAX_PROMPT_TOKENS:
        raise BadRequest(
            f"{param} has {len(given)} token ids; at most {MAX_PROMPT_TOKENS} are accepted", param
        )
    for index, value in enumerate(given):
        if type(value) is not int or not 0 <= value <= INT_MAX:
            place = f"{param}[{index}]"
            raise BadRequest(f"{place} must be a token id, not {short(value)}", place)
    return given


class Logprobs(msgspec.Struct, frozen=True):
    """One entry a token. token_logprobs, top_logprobs: null for a prompt's first token, which
    nothing precedes. text_offset: where each token begins in the text, in characters.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Choice(msgspec.Struct, frozen=True):
    """One text; n follow each other for each prompt. finish_reason: null before a stream's last
    event, else "stop", "length" or "deadline".
    """

    index: int
    text: str
    finish_reason: str | None
    logprobs: Logprobs | None = None


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer, or an event of a stream (usage: then only if it was asked for)."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None
    subsecond: Promise | UnsetType = UNSET
