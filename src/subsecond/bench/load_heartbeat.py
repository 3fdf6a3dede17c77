"""A thread that sleeps for a millisecond, again and again, and tells when the machine stood still.

Owns: the beats. Does not know: requests. On a shared machine a whole virtual processor can be taken
away for a tenth of a second; no server can keep a promise over that, so whoever judges promises has
to know of it. The thread tells it from outside of the event loop: a loop that is busy is the
generator's own fault and no stall.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

import msgspec

PERIOD_S = 0.001
STALL_S = 0.05


class Stall(msgspec.Struct, frozen=True):
    """From the last beat before it to the first one after it."""

    begin_s: float
    end_s: float

    def overlaps(self, begin_s: float, end_s: float) -> bool:
        return begin_s < self.end_s and self.begin_s < end_s


class Heartbeat:
    """Beats inside a `with` block. `stalls` is complete when the block has ended.

    clock: absolute seconds. sleep: seconds -> None.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.stalls: list[Stall] = []
        self.beats = 0
        self.longest_s = 0.0
        self.cpu_s = 0.0
        self._clock, self._sleep = clock, sleep
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._ended = True
        self._thread.join()

    def _run(self) -> None:
        begin_s = time.thread_time()
        last_s = self._clock()
        while not self._ended:
            self._sleep(PERIOD_S)
            now_s = self._clock()
            self.beat(last_s, now_s)
            last_s = now_s
        self.cpu_s = time.thread_time() - begin_s

    def beat(self, last_s: float, now_s: float) -> None:
        """One beat at `now_s` after one at `last_s`."""
        self.beats += 1
        gap_s = now_s - last_s
        self.longest_s = max(self.longest_s, gap_s)
        if gap_s > STALL_S:
            self.stalls.append(Stall(last_s, now_s))
