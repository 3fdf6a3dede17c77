"""The prompts of one request on their way to the engine, and what comes back.

Owns: when each is submitted, their events as one sequence, their end. Does not know: text, the
ledger, how answers are written.

What is promised goes to the engine as a whole. Of a request without a deadline only `AHEAD` times
as many prompts are there as are computed together, the next ones when others have ended, each with
its own moment of arrival: two thousand prompts in one request don't stand before the one of the
next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from subsecond.engine.messages import Event, SamplingFields
from subsecond.engine.request_stream import RequestStream
from subsecond.serve.desk import Entry
from subsecond.serve.errors import error_for

if TYPE_CHECKING:
    from subsecond.serve.generation import Generating


AHEAD = 2
"""So that the next prompts are there already when a step ends others."""


class Prompts:
    """Of one request. entries: of prompts whose deadline is promised, else none."""

    def __init__(
        self,
        own: Generating,
        prompts: Sequence[list[int]],
        each: Sequence[SamplingFields],
        entries: Sequence[Entry],
    ) -> None:
        self._own = own
        self._prompts = prompts
        self._each = each
        self._entries = entries
        self._streams: list[RequestStream] = []  # of those that were submitted, in order
        own.server.desk.unsent[own.model.name] += len(prompts)

    async def begin(self) -> None:
        """Submits the first ones; EngineUnavailable if that is impossible."""
        while self._may_submit(len(self._streams)):
            await self._submit(self._own.exchange.start_s)

    def cancel(self, place: int, choice: int, reason: str) -> None:
        """Ends one text of a prompt."""
        self._streams[place].cancel(choice, reason)  # type: ignore[arg-type]

    def close(self) -> None:
        """Ends what hasn't ended. To be called once."""
        self._own.server.desk.unsent[self._own.model.name] -= len(self._prompts) - len(
            self._streams
        )
        for entry in self._entries[len(self._streams) :]:
            entry.close()
        for stream in self._streams:
            stream.cancel()

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """Their events as they come, each with its prompt's place. Raises the ServeError of a
        prompt that can't be submitted.
        """
        if len(self._prompts) == 1:
            async for event in self._streams[0]:
                yield 0, event
            return
        ready: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue(maxsize=1)

        async def read(place: int) -> None:
            async for event in self._streams[place]:
                await ready.put((place, event))
            await ready.put(None)

        going = len(self._streams)
        tasks = {asyncio.create_task(read(place)) for place in range(going)}
        try:
            while going:
                found = await ready.get()
                if found is not None:
                    yield found
                    continue
                going -= 1
                while self._may_submit(going):
                    try:
                        await self._submit(time.monotonic())
                    except Exception as error:
                        raise error_for(error) from error
                    tasks.add(asyncio.create_task(read(len(self._streams) - 1)))
                    going += 1
                tasks = {task for task in tasks if not task.done()}
        finally:
            for task in tasks:
                task.cancel()

    def _may_submit(self, going: int) -> bool:
        """Whether the next prompt goes to the engine while so many are there. One always may, more
        where neither this request nor all together have too many.
        """
        if len(self._streams) == len(self._prompts):
            return False
        if self._entries or not going:
            return True
        server, most = self._own.server, self._own.model.info.max_sequences
        texts = (going + 1) * self._each[0].n
        return texts <= AHEAD * most and len(server.desk.entries) < server.settings.max_waiting

    async def _submit(self, arrival_s: float) -> None:
        own, server, place = self._own, self._own.server, len(self._streams)
        prompt, fields = self._prompts[place], self._each[place]
        if self._entries:
            entry = self._entries[place]
        else:
            entry = own.deadline.entry(len(prompt), fields, arrival_s)
            server.desk.take([entry], time.monotonic())
        try:
            stream = await server.engine.submit(
                own.model.name,
                prompt,
                fields,
                deadline_s=entry.item.deadline_s,
                promised_tokens=entry.item.promised_tokens,
                on_deadline=own.deadline.terms.on_deadline,
                priority=own.deadline.priority,
                tenant=own.key.id,
                arrival_s=arrival_s,
                constraint=own.request.params.constraint,
                observe=entry.observe,
            )
        except BaseException:
            entry.close()
            raise
        server.desk.bind(entry, stream.id)
        self._streams.append(stream)
        server.desk.unsent[own.model.name] -= 1
