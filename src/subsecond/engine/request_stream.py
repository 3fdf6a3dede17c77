"""What the front sees of a request that the engine process answers: a stream of events.

Owns: the events that are not read yet, and the one end of a request. Does not know: sockets, text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from subsecond.engine.messages import Cancel, EndReason, ErrorInfo, Event, TokenLogprob


class RequestStream(AsyncIterator[Event]):
    """The events of one request; the last one `ends_request`, whatever happens.

    Whoever reads slowly finds all that was missed of a text in one event, and delays nobody: what
    is stored is bounded by the request's own max_tokens and n. To be read by one task of the loop
    that it was made in. As a context manager it cancels the request if it is left early.

    observe: called with each event as it arrives, read or not; it must not raise.
    """

    def __init__(
        self,
        id: int,
        send: Callable[[Cancel], None],
        observe: Callable[[Event], None] | None = None,
    ) -> None:
        self.id = id
        self.ended = False  # the last event has arrived, read or not
        self._send = send
        self._observe = observe
        self._unread: dict[int, list[Event]] = {}
        self._reader: asyncio.Future[None] | None = None

    def cancel(self, choice: int | None = None, reason: EndReason = "cancelled") -> None:
        """Ends the request, or one of its texts, before the engine's next step; the events that
        end it still arrive. No coroutine, so that a task that is cancelled itself can call it.
        """
        if not self.ended:
            self._send(Cancel(self.id, choice, reason))

    def push(self, event: Event) -> None:
        """An event has arrived. Never waits. What arrives after the end is dropped."""
        if self.ended:
            return
        self.ended = event.ends_request
        if self._observe is not None:
            self._observe(event)
        self._unread.setdefault(event.choice, []).append(event)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def fail(self, error: ErrorInfo) -> None:
        """The request ends with an error, unless it has ended."""
        self.push(Event(id=self.id, choice=0, error=error))

    async def __anext__(self) -> Event:
        while not self._unread:
            if self.ended:
                raise StopAsyncIteration
            if self._reader is not None:
                raise RuntimeError("two tasks read one request's events")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._next()

    async def __aenter__(self) -> RequestStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def _next(self) -> Event:
        """The unread events of one text as one. That which ends the request comes last."""
        choices = iter(self._unread)
        choice = next(choices)
        if self._unread[choice][-1].ends_request:
            choice = next(choices, choice)
        return _merged(self._unread.pop(choice))


def _merged(events: list[Event]) -> Event:
    """Events of one text as one event."""
    last = events[-1]
    if len(events) == 1:
        return last
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    for event in events:
        tokens += event.tokens
        logprobs += event.logprobs or []
    asked = any(event.logprobs is not None for event in events)
    return Event(
        id=last.id,
        choice=last.choice,
        tokens=tokens,
        finish_reason=last.finish_reason,
        logprobs=logprobs if asked else None,
        error=last.error,
        timing=last.timing,
        usage=last.usage,
        prompt_logprobs=events[0].prompt_logprobs,
        state=last.state,
    )
