"""A request for text, from its checked body to its one end.

Owns: the order of things (tokenize, limits, place, promise, submit, stream, end), and what is told
of it. Does not know: how answers are written (a `Form` does), when a promise is kept, routes.

Every request that was taken ends once: with its last bytes, with one error, or because the client
left; and with it end its promise in the ledger, its prompts at the desk, its place and its key's
lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

from subsecond.engine.messages import Event, SamplingFields, Stamps, error_of
from subsecond.errors import EngineUnavailable, RequestError
from subsecond.serve.again import Again
from subsecond.serve.audit import Texts
from subsecond.serve.choice_text import ChoiceText, Piece
from subsecond.serve.deadline import Deadline
from subsecond.serve.errors import RateLimited, ServeError, Unavailable, error_for
from subsecond.serve.exchange import ClientGone, Exchange
from subsecond.serve.form import Form, Summary
from subsecond.serve.keys import Key
from subsecond.serve.metrics import Answer
from subsecond.serve.places import Place
from subsecond.serve.prompts import Prompts
from subsecond.serve.schema.shared import Generation
from subsecond.serve.text_side import prompts_of

if TYPE_CHECKING:
    from subsecond.serve.loading import ServedModel
    from subsecond.serve.server import Server
    from subsecond.text.stream import TokenBytes

EARLY_CHARACTERS = 8192
"""Of a text that is long enough to be asked before it is tokenized."""

Encode = Callable[["ServedModel"], list[list[int]]]
"""Makes the token ids of a request's prompts; runs in a thread."""


class Generating:
    """One request on its way."""

    def __init__(self, server: Server, exchange: Exchange, request: Generation, key: Key) -> None:
        self.server = server
        self.exchange = exchange
        self.request = request
        self.key = key
        self.model = server.model(request.model)
        self.deadline = Deadline(server, exchange, request, key)
        if server.audit is not None and server.audit.texts:
            exchange.texts = Texts(prompts_of(request))
        self.again: Again
        self.stamps: list[Stamps] = []
        self.prompt_tokens = self.cached_tokens = 0
        self.texts: list[ChoiceText] = []
        self.outcome = ""
        self.tokens: TokenBytes | None = None  # as the answer shows them, if not as usual
        self._open = 0
        self._last_s: dict[int, float] = {}  # when each text grew last

    async def run(self, encode: Encode, form: Form) -> None:
        """Answers the request; raises the ServeError that it is refused with before it has begun,
        or ClientGone.
        """
        self._decline_large()
        prompts = await self.server.in_thread(lambda: encode(self.model))
        await self._check_constraint()
        each = [self._fields(len(prompt)) for prompt in prompts]
        self.prompt_tokens = sum(map(len, prompts))
        tokens = self.prompt_tokens + sum(own.max_tokens * own.n for own in each)
        async with AsyncExitStack() as stack:
            lease = stack.enter_context(self._lease(tokens))
            stack.callback(lambda: lease.settle(self._used()))
            stack.push(self._end)
            self.again = Again(self, prompts, each)
            if await self.again.given(form):
                return
            self.server.check_open(self.key.id, self.model.name)
            stack.enter_context(self._place(tokens))
            entries = []
            if self.deadline.asked:
                lengths = [len(prompt) for prompt in prompts]
                entries = self.deadline.judge(lengths, each, take=True)
            sent = Prompts(self, prompts, each, entries)
            stack.callback(sent.close)
            await sent.begin()
            await self._answer(sent, each[0].n, len(prompts), form)

    # Before anything is begun.

    def _decline_large(self) -> None:
        """Declines a long text whose bytes alone say that the deadline can't be kept, before it is
        tokenized. Of a short one they say too little to be asked.
        """
        text, info = self.model.text, self.model.info
        least = text.least_tokens(self.request)
        if not self.deadline.asked or sum(least) * text.longest_token < EARLY_CHARACTERS:
            return
        if max(least) < info.context:  # else it is refused for that
            self.server.check_open(self.key.id, self.model.name)
            self.deadline.judge(least, [self._fields(tokens) for tokens in least], take=False)

    async def _check_constraint(self) -> None:
        """Refuses a constraint that can't be followed. Where a text can't be closed in a moment, or
        not with log probabilities, which only the model has, "full" applies.
        """
        params = self.request.params
        if params.constraint is None:
            return
        closes = await self.server.aside(params.constraint.check)
        if not closes or params.logprobs is not None:
            self.deadline.in_full()

    def named(self, error: ServeError) -> ServeError:
        """The error, with the field that asks for the constraint if it is about that."""
        if error.param == "constraint" and self.request.constraint_param is not None:
            error.param = self.request.constraint_param
        return error

    def _fields(self, prompt_tokens: int) -> SamplingFields:
        room = self.model.info.context - prompt_tokens
        asked, vocab_size = self.request, self.model.info.vocab_size
        more = {"score_prompt": asked.score_prompt, "embeds": asked.embeds}
        fields = self.model.text.fields(asked.params, room, vocab_size, **more)
        if fields.n > self.model.info.max_sequences:
            raise RequestError(
                f"n is {fields.n}; this server computes at most {self.model.info.max_sequences} "
                "texts together",
                "n",
            )
        return fields

    def _lease(self, tokens: int) -> Any:
        try:
            return self.server.limiter.admit(self.key.id, self.key.limits, tokens)
        except RateLimited as error:
            self.server.ledger.decline(self.key.id, self.model.name, error.limit)  # type: ignore[arg-type]
            raise

    def _place(self, tokens: int) -> Place:
        """A place among those with a deadline or among those without, so that who can wait for ever
        never stands in the way of who can't.
        """
        server = self.server
        places = server.urgent if self.deadline.asked else server.patient
        try:
            return places.take(self.key.id, tokens)
        except Unavailable:
            server.ledger.decline(self.key.id, self.model.name, "full")
            raise

    def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        """The promise's fate in the end, where nothing else has decided it."""
        if error is None or isinstance(error, (asyncio.CancelledError, ClientGone)):
            self.deadline.cancel()
        else:
            self.deadline.break_("engine" if isinstance(error, EngineUnavailable) else "error")

    def _used(self) -> int:
        return self.prompt_tokens + sum(text.tokens for text in self.texts)

    # The answer.

    async def _answer(self, sent: Prompts, n: int, prompts: int, form: Form) -> None:
        exchange, streaming = self.exchange, self.request.stream
        self.texts = [
            ChoiceText(self.tokens or self.model.text.tokenizer, index, self.request.params.stops)
            for index in range(n * prompts)
        ]
        self._open = len(self.texts)
        final = 0
        try:
            async with aclosing(sent.events()) as events:
                async for place, event in events:
                    text = self.texts[place * n + event.choice]
                    before = text.finish_reason
                    data = self._piece(text, event, place, sent, form)
                    if before is None and text.finish_reason is not None:
                        self._open -= 1
                        final = text.index
                        if self._open:  # the last one's end waits for what the summary says
                            data += form.finished(text.index, text.finish_reason, None)
                    if streaming and data:
                        await exchange.write(data)
            summary = self._summary()
        except ServeError as error:
            self.named(error)
            self.deadline.blame(error)
            self.outcome = str(error.code)
            await self._fail(error, form)
            return
        self.again.end(self.texts)
        await self.finish(form, final, b"", summary)

    async def finish(
        self, form: Form, final: int, data: bytes, summary: Summary | None = None
    ) -> None:
        """Ends an answer. final: the text that ended last; data: events before its end."""
        summary = summary or self._summary()
        reasons = [text.finish_reason or "stop" for text in self.texts]
        self.outcome = reasons[0]
        self.exchange.stages = summary.promise
        self._measure(summary)
        self.deadline.settle()
        if self.request.stream:
            data += form.finished(final, reasons[final], summary) + form.last(summary)
            await self.exchange.end(data)
        else:
            await self.exchange.answer(form.whole(reasons, summary))

    def _piece(
        self, text: ChoiceText, event: Event, place: int, sent: Prompts, form: Form
    ) -> bytes:
        """Takes an event in; the bytes of what it adds. ServeError where it ends the request."""
        if event.error is not None:
            raise error_for(error_of(event.error))
        if event.usage is not None:
            self.cached_tokens += event.usage.cached_tokens
        if event.timing is not None:
            self.stamps.append(event.timing)
        if text.finish_reason is not None:
            return b""
        piece = text.take(event)
        if text.finish_reason is None and self.deadline.should_close(text):
            text.finish_reason = "deadline"
            sent.cancel(place, event.choice, "deadline")
        elif text.stopped and event.finish_reason is None:
            sent.cancel(place, event.choice, "stop")
        self.deadline.check_closed(text)
        self.again.take(piece)
        self.tell(piece)
        self._grown(text.index, len(piece.tokens))
        if not piece.tokens and not piece.text and not piece.state:
            return b""
        return form.piece(piece)

    def _summary(self) -> Summary:
        return Summary(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(text.tokens for text in self.texts),
            cached_tokens=self.cached_tokens,
            promise=self.deadline.report(self.stamps),
        )

    def tell(self, piece: Piece) -> None:
        """The audit log, if it is to know, of what the client is told."""
        if self.exchange.texts is not None:
            self.exchange.texts.take(piece.index, piece.text)

    def _grown(self, index: int, tokens: int) -> None:
        """Measures tokens of a text as they come."""
        if tokens:
            now_s, last_s = time.monotonic(), self._last_s.get(index)
            self._last_s[index] = now_s
            gap_s = None if last_s is None else now_s - last_s
            self.server.metrics.tokens(self.model.name, tokens, gap_s)

    def _measure(self, summary: Summary) -> None:
        self.server.metrics.answered(
            Answer(
                model=self.model.name,
                prompt_tokens=summary.prompt_tokens,
                completion_tokens=summary.completion_tokens,
                cached_tokens=summary.cached_tokens,
                finished=[text.finish_reason or "stop" for text in self.texts],
                promise=summary.promise,
            )
        )

    async def _fail(self, error: ServeError, form: Form) -> None:
        if self.exchange.begun:
            await self.exchange.end(form.failed(error))
        else:
            await self.exchange.refuse(error)
