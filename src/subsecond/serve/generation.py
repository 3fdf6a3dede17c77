"""A request for text, from its checked body to its one end.

Owns: the order of things (tokenize, limits, promise, submit, stream, end), the promise's fate, and
what is told of it. Does not know: how answers are written (a `Form` does), routes.

Every request that was taken ends once: with its last bytes, with one error, or because the client
left; and with it ends its promise in the ledger, its place at the desk, and its key's lease.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from subsecond.engine.admission import Decision
from subsecond.engine.messages import Event, SamplingFields, Stamps, error_of
from subsecond.engine.request_stream import RequestStream
from subsecond.errors import EngineUnavailable, RequestError
from subsecond.serve import ledger
from subsecond.serve.again import Again
from subsecond.serve.choice_text import ChoiceText
from subsecond.serve.desk import Entry
from subsecond.serve.errors import (
    DeadlineDeclined,
    PromiseBroken,
    RateLimited,
    ServeError,
    Unavailable,
    error_for,
)
from subsecond.serve.exchange import ClientGone, Exchange
from subsecond.serve.form import Form, Summary
from subsecond.serve.keys import Key
from subsecond.serve.metrics import Answer
from subsecond.serve.schema import shared
from subsecond.serve.schema.shared import Generation, Promise, Terms

if TYPE_CHECKING:
    from subsecond.serve.loading import ServedModel
    from subsecond.serve.server import Server
    from subsecond.text.stream import TokenBytes

UNSAID_TOKENS = 16
"""Promised where nobody says how long the answer may be: half of 1,024 is in no second."""

EARLY_CHARACTERS = 8192
"""Of a text that is long enough to be asked before it is tokenized."""

SENTENCE_SHARE = 0.15
"""Of the time until the deadline: in the last part, a text that may end early ends at a
sentence.
"""


_Exit = Callable[[type[BaseException] | None, BaseException | None, object], None]
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
        header = exchange.header(b"x-deadline-ms")
        header_ms = None
        if header is not None:
            header_ms = shared.header_deadline_ms(header.decode("latin-1"))
        self.terms: Terms = shared.earlier(request.terms, header_ms)
        if self.terms.deadline_ms is None and server.settings.within_s is not None:
            deadline_ms = server.settings.within_s * 1e3
            self.terms = Terms(
                deadline_ms=deadline_ms,
                on_deadline=self.terms.on_deadline,
                priority=self.terms.priority,
            )
        self.deadline_s = math.inf
        if self.terms.deadline_ms is not None:
            self.deadline_s = exchange.start_s + self.terms.deadline_ms / 1e3
        self.priority = server.rank(key, self.terms.priority)
        self.promise: ledger.Promise | None = None
        self.promised_tokens: int | None = None
        self.again: Again
        self.stamps: list[Stamps] = []
        self.prompt_tokens = self.cached_tokens = 0
        self.texts: list[ChoiceText] = []
        self.outcome = ""
        self.kept: bool | None = None
        self.tokens: TokenBytes | None = None  # as the answer shows them, if not as usual
        self._open = 0
        self._last_s: dict[int, float] = {}  # when each text grew last
        self._submitted: set[int] = set()

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
            stack.push(self._end_of([]))
            self.again = Again(self, prompts, each)
            if await self.again.given(form):
                return
            entries = self._judge([len(prompt) for prompt in prompts], each, take=True)
            stack.push(self._end_of(entries))
            streams: list[RequestStream] = []
            for prompt, fields, entry in zip(prompts, each, entries, strict=True):
                stream = await self._submit(prompt, fields, entry)
                streams.append(await stack.enter_async_context(stream))
            await self._answer(streams, each[0].n, form)

    # Before anything is begun.

    def _decline_large(self) -> None:
        """Declines a long text whose bytes alone say that the deadline can't be kept, before it is
        tokenized. Of a short one they say too little to be asked.
        """
        text, info = self.model.text, self.model.info
        least = text.least_tokens(self.request)
        if self.deadline_s == math.inf or sum(least) * text.longest_token < EARLY_CHARACTERS:
            return
        if max(least) < info.context:  # else it is refused for that
            self._judge(least, [self._fields(tokens) for tokens in least], take=False)

    async def _check_constraint(self) -> None:
        """Refuses a constraint that can't be followed. Where a text can't be closed in a moment, or
        not with log probabilities, which only the model has, "full" applies.
        """
        params = self.request.params
        if params.constraint is None:
            return
        closes = await self.server.aside(params.constraint.check)
        if not closes or params.logprobs is not None:
            self.terms = msgspec.structs.replace(self.terms, on_deadline="full")

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

    def _judge(
        self, prompt_tokens: list[int], each: list[SamplingFields], *, take: bool
    ) -> list[Entry]:
        """Promises the deadline, if there is one, or declines. take: whether what is promised is
        then on its way; else only declining counts.
        """
        server, name = self.server, self.model.name
        server.check_open(self.key.id, name)
        now_s = time.monotonic()
        promised = 0
        if self.deadline_s < math.inf:
            promised = self.promised(each[0])
        deadline_s = self.deadline_s - server.desk.sending_s()
        entries = [
            server.desk.entry(
                name,
                tokens,
                fields,
                deadline_s=deadline_s,
                promised_tokens=min(promised, fields.max_tokens),
                priority=self.priority,
                arrival_s=self.exchange.start_s,
            )
            for tokens, fields in zip(prompt_tokens, each, strict=True)
        ]
        found = server.desk.take(entries, now_s) if take else server.desk.judge(entries, now_s)
        if promised:
            if not found.promised:
                server.ledger.decline(self.key.id, name, "deadline")
                server.declined_s = now_s
                raise _declined(found, self.exchange.start_s, self.terms, now_s)
            if not take:
                return entries
            self.promised_tokens = promised
            self.promise = server.ledger.promise(self.key.id, name)
        return entries

    def promised(self, fields: SamplingFields) -> int:
        """Tokens of each text that a promise covers; at least 1."""
        terms, params = self.terms, self.request.params
        if terms.on_deadline == "finish" and params.max_tokens is None and not params.min_tokens:
            return min(UNSAID_TOKENS, fields.max_tokens)
        return max(1, terms.promised_tokens(params.min_tokens, fields.max_tokens))

    async def _submit(
        self, prompt: list[int], fields: SamplingFields, entry: Entry
    ) -> RequestStream:
        stream = await self.server.engine.submit(
            self.model.name,
            prompt,
            fields,
            deadline_s=entry.item.deadline_s,
            promised_tokens=entry.item.promised_tokens,
            on_deadline=self.terms.on_deadline,
            priority=self.priority,
            tenant=self.key.id,
            arrival_s=self.exchange.start_s,
            constraint=self.request.params.constraint,
            observe=entry.observe,
        )
        self.server.desk.bind(entry, stream.id)
        self._submitted.add(entry.item.id)
        return stream

    def _end_of(self, entries: list[Entry]) -> _Exit:
        """What is to be done in the end, whatever has happened, where nothing else has done it."""

        def end(kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
            for entry in entries:
                if entry.item.id not in self._submitted:
                    entry.close()
            if error is None or isinstance(error, (asyncio.CancelledError, ClientGone)):
                if self.promise is not None:
                    self.promise.cancel()
            else:
                self._break("engine" if isinstance(error, EngineUnavailable) else "error")

        return end

    def _used(self) -> int:
        return self.prompt_tokens + sum(text.tokens for text in self.texts)

    # The answer.

    async def _answer(self, streams: list[RequestStream], n: int, form: Form) -> None:
        exchange, streaming = self.exchange, self.request.stream
        self.texts = [
            ChoiceText(self.tokens or self.model.text.tokenizer, index, self.request.params.stops)
            for index in range(n * len(streams))
        ]
        self._open = len(self.texts)
        final = 0
        try:
            async with aclosing(_events(streams)) as events:
                async for place, event in events:
                    text = self._text(event, place * n)
                    before = text.finish_reason
                    data = self._piece(text, event, streams[place], form)
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
            self._blame(error)
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
        self._settle(summary)
        if self.request.stream:
            data += form.finished(final, reasons[final], summary) + form.last(summary)
            await self.exchange.end(data)
        else:
            await self.exchange.answer(form.whole(reasons, summary))

    def _text(self, event: Event, first: int) -> ChoiceText:
        return self.texts[first + event.choice]

    def _piece(self, text: ChoiceText, event: Event, stream: RequestStream, form: Form) -> bytes:
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
        if text.finish_reason is None and self._should_close(text):
            text.finish_reason = "deadline"
            stream.cancel(event.choice, "deadline")
        elif text.stopped and event.finish_reason is None:
            stream.cancel(event.choice, "stop")
        if text.finish_reason == "deadline" and text.tokens < (self.promised_tokens or 0):
            raise PromiseBroken(
                f"{self.promised_tokens} tokens were promised by the deadline and {text.tokens} "
                "are there; this is the server's fault"
            )
        self.again.take(piece)
        self._grown(text.index, len(piece.tokens))
        if not piece.tokens and not piece.text and not piece.state:
            return b""
        return form.piece(piece)

    def _should_close(self, text: ChoiceText) -> bool:
        """Whether the text ends here, at a sentence, rather than in the middle of a later one."""
        if self.terms.on_deadline != "finish" or self.deadline_s == math.inf:
            return False
        if self.request.params.constraint is not None:  # the engine closes it
            return False
        if text.tokens < max(self.promised_tokens or 0, 1) or not text.at_sentence_end:
            return False
        left_s = self.deadline_s - time.monotonic()
        return left_s < SENTENCE_SHARE * (self.deadline_s - self.exchange.start_s)

    def _summary(self) -> Summary:
        now_s = time.monotonic()
        start_s = self.exchange.start_s
        first = self.stamps[0] if self.stamps else Stamps(now_s, now_s, now_s, now_s)
        ended_s = max((own.finished_s for own in self.stamps), default=now_s)
        if self.promise is not None:
            self.kept = now_s <= self.deadline_s
        return Summary(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(text.tokens for text in self.texts),
            cached_tokens=self.cached_tokens,
            promise=Promise(
                deadline_ms=self.terms.deadline_ms,
                on_deadline=self.terms.on_deadline,
                promised_tokens=self.promised_tokens,
                kept=self.kept,
                queue_ms=_ms(first.scheduled_s - start_s),
                prefill_ms=_ms(first.first_token_s - first.scheduled_s),
                decode_ms=_ms(ended_s - first.first_token_s),
                total_ms=_ms(now_s - start_s),
            ),
        )

    def _settle(self, summary: Summary) -> None:
        """The promise's fate. A client that held up its own answer can't be disappointed."""
        self.exchange.stages = summary.promise
        self._measure(summary)
        promise = self.promise
        if promise is None:
            return
        if self.kept:
            promise.keep()
        elif time.monotonic() - self.exchange.waited_s <= self.deadline_s:
            promise.cancel()
        else:
            promise.break_("late")

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

    def _blame(self, error: ServeError) -> None:
        """The promise's fate after an error. A request that was wrong was promised nothing."""
        if error.status == 400:
            if self.promise is not None:
                self.promise.cancel()
        elif isinstance(error, PromiseBroken):
            self._break("short")
        else:
            self._break("engine" if isinstance(error, Unavailable) else "error")

    def _break(self, reason: ledger.Broken) -> None:
        if self.promise is not None:
            self.kept = False
            self.promise.break_(reason)

    async def _fail(self, error: ServeError, form: Form) -> None:
        if self.exchange.begun:
            await self.exchange.end(form.failed(error))
        else:
            await self.exchange.refuse(error)


async def _events(streams: list[RequestStream]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of all streams as they come, each with its stream's place."""
    if len(streams) == 1:
        async for event in streams[0]:
            yield 0, event
        return
    ready: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue(maxsize=1)

    async def read(place: int) -> None:
        async for event in streams[place]:
            await ready.put((place, event))
        await ready.put(None)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(place)) for place in range(len(streams))]
        left = len(streams)
        try:
            while left:
                found = await ready.get()
                if found is None:
                    left -= 1
                else:
                    yield found
        finally:
            for task in tasks:
                task.cancel()


def _declined(found: Decision, start_s: float, terms: Terms, now_s: float) -> DeadlineDeclined:
    """The refusal, in words that say what would help."""
    asked_ms = terms.deadline_ms or 0.0
    predicted_s = found.finish_s - start_s
    if found.reason == "too_large":
        message = (
            "the request is larger than what is computed together here; lower max_tokens or n, or "
            "send fewer prompts at once"
        )
    elif found.reason == "too_short":
        message = (
            f"the deadline is {asked_ms:g} ms, and even an idle server would need about "
            f"{predicted_s * 1e3:.0f} ms; lower max_tokens, or give more time"
        )
    else:
        message = (
            f"the deadline of {asked_ms:g} ms can't be promised now, about "
            f"{predicted_s * 1e3:.0f} ms could; try again in {found.retry_after_s:.2f} s"
        )
    return DeadlineDeclined(message, predicted_s, found.retry_after_s)


def _ms(seconds: float) -> float:
    """Milliseconds; 0 for what never happened."""
    return round(seconds * 1e3, 3) if seconds > 0 and math.isfinite(seconds) else 0.0
