"""When what the event loop reads could have been read: its lag, charged to the server.

Owns: an event loop whose selector keeps the time. Does not know: connections, requests.

A socket that is found readable became so after the selector last looked and found it not readable,
or, where the selector had to wait for it, at the end of that wait. So the earliest moment is known
without asking the kernel, and a loop that was busy for 30 ms charges those 30 ms to itself.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any

_WAITED_S = 0.0002  # a selector that took less was not waiting for the socket


class TimedSelector(selectors.DefaultSelector):
    """The system's best selector; `since_s` (`time.monotonic()`) is when, at the earliest, what it
    found last can have become readable, and `lag_s` how long that had to wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self._looked_s = time.monotonic()
        self.since_s = self._looked_s
        self.lag_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Of selectors.BaseSelector."""
        before_s = time.monotonic()
        found = super().select(timeout)
        now_s = time.monotonic()
        self.since_s = now_s if now_s - before_s > _WAITED_S else self._looked_s
        self.lag_s = now_s - self.since_s
        self._looked_s = now_s
        return found


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose reads are timed."""
    return asyncio.SelectorEventLoop(TimedSelector())


def readable_since_s(loop: asyncio.AbstractEventLoop) -> float:
    """`time.monotonic()` of the earliest moment at which what is being read could have been; now,
    for a loop that isn't `new_loop`'s.
    """
    selector = _selector_of(loop)
    return time.monotonic() if selector is None else selector.since_s


def lag_s(loop: asyncio.AbstractEventLoop) -> float:
    """Seconds that what was read last had to wait for the loop; 0 for a loop that isn't
    `new_loop`'s.
    """
    selector = _selector_of(loop)
    return 0.0 if selector is None else selector.lag_s


def _selector_of(loop: asyncio.AbstractEventLoop) -> TimedSelector | None:
    """asyncio has no public way from a loop to its selector. A subclass of the loop that keeps it
    would have to be known wherever a running loop is asked for; a loop without the attribute is
    one that isn't timed.
    """
    selector = getattr(loop, "_selector", None)
    return selector if isinstance(selector, TimedSelector) else None
