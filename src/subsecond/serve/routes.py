"""What each route does, from the body to the answer.

Owns: the order of reading, checking and answering of every route; the refusal, by name, of what
this server doesn't do. Does not know: who may use a route, where errors go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from subsecond.serve.embedding_form import EmbeddingForm
from subsecond.serve.errors import BadRequest, Unavailable, error_for
from subsecond.serve.exchange import ClientGone, Exchange
from subsecond.serve.form import Form
from subsecond.serve.forms import ChatForm, CompletionForm
from subsecond.serve.generation import Encode, Generating
from subsecond.serve.keys import Key
from subsecond.serve.limits import BodyLimits
from subsecond.serve.loading import ServedModel
from subsecond.serve.metrics import KIND
from subsecond.serve.responses_form import ResponsesForm
from subsecond.serve.schema import chat as chat_schema
from subsecond.serve.schema import completions as completions_schema
from subsecond.serve.schema import embeddings as embeddings_schema
from subsecond.serve.schema import responses as responses_schema
from subsecond.serve.schema import tokens, wire
from subsecond.serve.schema.models import Models
from subsecond.serve.schema.shared import Generation
from subsecond.serve.server import ANYONE, Server
from subsecond.serve.tools import Marked, ToolUse, plan, syntax_for

T = TypeVar("T")
Asked = TypeVar("Asked", chat_schema.Chat, responses_schema.Respond)

_LARGE_BYTES = 32 << 10  # a body to be read in a thread, so that others don't wait for it


_RESPONSES = {"messages": "input", "prompt": "input", "max_tokens": "max_output_tokens"}
"""What /v1/responses calls what other routes call so."""


@dataclass(frozen=True)
class Done:
    """What became of a request, for the audit log."""

    outcome: str
    model: str | None = None
    user: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    deadline_ms: float | None = None
    promised: bool | None = None
    kept: bool | None = None


class State(msgspec.Struct, frozen=True):
    """status: "ok", or why not."""

    status: str


async def live(server: Server, exchange: Exchange) -> Done:
    """/health/live: this process answers."""
    del server
    await exchange.answer(wire.encode(State("ok")))
    return Done("ok")


async def ready(server: Server, exchange: Exchange) -> Done:
    """/health/ready: requests are taken, and the engine has answered a canary in time."""
    why = server.unready()
    if why:
        raise Unavailable("the server is not ready", 1.0, why)
    await exchange.answer(wire.encode(State("ok")))
    return Done("ok")


async def models(server: Server, exchange: Exchange) -> Done:
    """/v1/models"""
    data = [own.text.describe(own.info.context) for own in server.models.values()]
    await exchange.answer(wire.encode(Models(data=data)))
    return Done("ok")


async def model(server: Server, exchange: Exchange) -> Done:
    """/v1/models/NAME"""
    own = server.model(exchange.scope["path_params"]["model"])
    await exchange.answer(wire.encode(own.text.describe(own.info.context)))
    return Done("ok", own.name)


async def metrics(server: Server, exchange: Exchange) -> Done:
    """/metrics"""
    now = server.snapshot()
    await exchange.answer(await server.aside(lambda: server.metrics.text(now)), kind=KIND)
    return Done("ok")


async def tokenize(server: Server, exchange: Exchange) -> Done:
    """/tokenize"""
    request = await _read(server, exchange, tokens.read_tokenize)
    own = server.model(request.model)

    def work() -> tokens.Tokenized:
        tokenizer = own.text.tokenizer
        if request.tools:
            syntax_for(own.text)
        if request.prompt is None:
            ids = own.text.chat_ids(
                request.messages,
                request.add_generation_prompt,
                own.info.context,
                [tool.for_template() for tool in request.tools],
            )
        else:
            own.text.check_size(len(request.prompt), own.info.context, "prompt")
            ids = tokenizer.encode(request.prompt, affixes=request.add_special_tokens)
        spellings = None
        if request.return_token_strs:
            spellings = [tokenizer.token(token) or "" for token in ids]
        return tokens.Tokenized(len(ids), own.info.context, ids, spellings)

    await exchange.answer(wire.encode(await server.in_thread(work)))
    return Done("ok", own.name)


async def detokenize(server: Server, exchange: Exchange) -> Done:
    """/detokenize"""
    request = await _read(server, exchange, tokens.read_detokenize)
    own = server.model(request.model)
    try:
        text = await server.in_thread(lambda: own.text.tokenizer.decode(request.tokens))
    except Exception as error:
        raise error_for(error, "tokens") from None
    await exchange.answer(wire.encode(tokens.Detokenized(text)))
    return Done("ok", own.name)


async def chat(server: Server, exchange: Exchange) -> Done:
    """/v1/chat/completions"""
    request, use = await _tools(server, await _read(server, exchange, chat_schema.read))

    def form(own: Any) -> Form:
        return ChatForm(request, own.text.tokenizer, exchange.id, int(time.time()), use.syntax)

    return await _generate(
        server, exchange, request, _conversation(request), form, "messages", use.marks
    )


async def completions(server: Server, exchange: Exchange) -> Done:
    """/v1/completions"""
    request = await _read(server, exchange, completions_schema.read)
    prompts: list[list[int]] = []

    def encode(own: Any) -> list[list[int]]:
        info = own.info
        prompts.extend(
            own.text.encode(one, info.context, info.vocab_size) for one in request.prompts
        )
        return prompts

    def form(own: Any) -> Form:
        return CompletionForm(request, own.text.tokenizer, exchange.id, int(time.time()), prompts)

    return await _generate(server, exchange, request, encode, form, "prompt")


async def embeddings(server: Server, exchange: Exchange) -> Done:
    """/v1/embeddings"""
    request = await _read(server, exchange, embeddings_schema.read)

    def encode(own: Any) -> list[list[int]]:
        info = own.info
        return [own.text.encode(one, info.context, info.vocab_size) for one in request.inputs]

    try:
        return await _generate(
            server, exchange, request, encode, lambda _: EmbeddingForm(request), "input"
        )
    except BadRequest as error:
        error.param = "input" if error.param == "prompt" else error.param
        raise


async def responses(server: Server, exchange: Exchange) -> Done:
    """/v1/responses"""
    request, use = await _tools(server, await _read(server, exchange, responses_schema.read))

    def form(own: Any) -> Form:
        return ResponsesForm(request, own.text.tokenizer, exchange.id, int(time.time()), use.syntax)

    try:
        encode = _conversation(request)
        return await _generate(server, exchange, request, encode, form, "input", use.marks)
    except BadRequest as error:
        error.param = _RESPONSES.get(error.param or "", error.param)
        raise


async def _read(server: Server, exchange: Exchange, read: Callable[[bytes, BodyLimits], T]) -> T:
    """The checked body."""
    body = await exchange.body()
    limits = exchange.limits.body
    if len(body) < _LARGE_BYTES:
        return read(body, limits)
    return await server.in_thread(lambda: read(body, limits))


async def _tools(server: Server, request: Asked) -> tuple[Asked, ToolUse]:
    """The request with what its tools ask of the answer."""
    text = server.model(request.model).text
    if not request.tools:
        return request, ToolUse()
    return await server.aside(lambda: plan(text, request))


def _conversation(request: chat_schema.Chat | responses_schema.Respond) -> Encode:
    """How a conversation becomes token ids. Tools that mustn't be used aren't told of."""
    tools = [tool.for_template() for tool in request.tools]
    if request.tool_choice.mode == "none":
        tools = []

    def encode(own: ServedModel) -> list[list[int]]:
        info = own.info
        return [own.text.encode_chat(request.messages, info.context, info.vocab_size, tools)]

    return encode


async def _generate(  # noqa: PLR0917 (its callers give all, in this order)
    server: Server,
    exchange: Exchange,
    request: Generation,
    encode: Encode,
    form: Callable[[Any], Form],
    param: str,
    marks: Mapping[int, bytes] | None = None,
) -> Done:
    """Answers a request for text, and ends it when the client leaves. marks: control tokens that
    the form wants to see.
    """
    key: Key = exchange.key or ANYONE
    generating = Generating(server, exchange, request, key)
    if marks:
        generating.tokens = Marked(generating.model.text.tokenizer, marks)
    work = asyncio.ensure_future(generating.run(encode, form(generating.model)))
    watch = asyncio.ensure_future(exchange.left())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not exchange.ended:
            work.cancel()
            await asyncio.wait({work})
            raise ClientGone
        await work
    except ClientGone:
        generating.outcome = "cancelled"
        raise
    except Exception as error:
        raise generating.named(error_for(error, param)) from error
    finally:
        for task in (work, watch):
            task.cancel()
    return Done(
        generating.outcome,
        generating.model.name,
        request.user,
        generating.prompt_tokens,
        sum(text.tokens for text in generating.texts),
        generating.deadline.terms.deadline_ms,
        generating.deadline.promised,
        generating.deadline.kept,
    )
