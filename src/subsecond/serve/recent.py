"""The last minutes of a server: percentiles and tokens a second, for the page.

Owns: a bounded window of answers and of seconds. Does not know: models, who asks. Prometheus has
the long history; this is what a human wants to see now, without one.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

WINDOW_S = 300.0
MAX_ANSWERS = 2000
SECONDS = 60

Answered: TypeAlias = tuple[float, float, float | None, float]
"""When, and seconds to the first token, between tokens, of the whole."""


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds; null where nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None


class Latencies(msgspec.Struct, frozen=True):
    """Of the answers of the last five minutes, at most 2,000. ttft: from the first byte to the
    first token. itl: mean time between an answer's tokens. total: from the first byte to the last.
    """

    answers: int
    ttft_ms: Percentiles
    itl_ms: Percentiles
    total_ms: Percentiles


class Recent:
    """Belongs to one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: deque[Answered] = deque(maxlen=MAX_ANSWERS)
        self._counts = [0] * SECONDS
        self._second = int(clock())

    def tokens(self, count: int) -> None:
        """Tokens were sent."""
        self._advance()
        self._counts[self._second % SECONDS] += count

    def answered(self, first_s: float, each_s: float | None, total_s: float) -> None:
        """An answer came to its end. each_s: mean time between its tokens."""
        self._answers.append((self._clock(), first_s, each_s, total_s))

    def tokens_per_s(self) -> list[int]:
        """Tokens of each of the last 59 whole seconds, the oldest first."""
        self._advance()
        return [self._counts[(self._second + 1 + i) % SECONDS] for i in range(SECONDS - 1)]

    def answers(self) -> list[Answered]:
        """The answers of the window."""
        since_s = self._clock() - WINDOW_S
        while self._answers and self._answers[0][0] < since_s:
            self._answers.popleft()
        return list(self._answers)

    def _advance(self) -> None:
        """Empties the seconds that have begun since the last call."""
        now = int(self._clock())
        for second in range(max(self._second + 1, now - SECONDS + 1), now + 1):
            self._counts[second % SECONDS] = 0
        self._second = max(self._second, now)


def latencies_of(answers: Sequence[Answered]) -> Latencies:
    """Percentiles of answers."""
    return Latencies(
        len(answers),
        percentiles([first_s for _, first_s, _, _ in answers]),
        percentiles([each_s for _, _, each_s, _ in answers if each_s is not None]),
        percentiles([total_s for _, _, _, total_s in answers]),
    )


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """By the nearest rank, which is a value that occurred."""
    ordered = sorted(seconds)

    def at(share: float) -> float | None:
        if not ordered:
            return None
        return round(1e3 * ordered[max(0, math.ceil(share * len(ordered)) - 1)], 2)

    return Percentiles(at(0.5), at(0.95), at(0.99))
