"""How much one request and one key may ask for.

Owns: the bounds of bodies and headers, and per key the token buckets (requests and tokens a minute)
and the number of requests at once. The clock is given (`time.monotonic`), so nothing here waits.
Does not know: HTTP, keys' secrets, what a request is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from subsecond.serve.errors import RateLimited

MINUTE_S = 60.0
MAX_PRIORITY = 9
"""Priorities are -9 to 9: of two, the higher one gets the free room first, and what is below 0 is
promised nothing of a reserve.
"""
IDLE_S = 10 * MINUTE_S
"""A key that was idle for so long has full buckets: what is known of it is forgotten."""


class BodyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a JSON body: its bytes, the nesting of lists and objects, and how many strings,
    lists and objects it may hold.
    """

    body_bytes: int = 4 << 20
    depth: int = 64
    parts: int = 50_000


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of any request.

    body: of its JSON. header_bytes, headers: of all headers together. headers_s, body_s: seconds
    in which the headers, and then the body, must have arrived. idle_s: how long a connection may
    be kept without a request. connections: open at once.
    """

    body: BodyLimits = BodyLimits()
    header_bytes: int = 16 << 10
    headers: int = 100
    headers_s: float = 5.0
    body_s: float = 10.0
    idle_s: float = 75.0
    connections: int = 1024


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one key may use; None: as much as there is.

    tokens_per_minute: of prompts and answers together. concurrency: requests at once.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


class TokenBucket:
    """`per_minute` units a minute, at most one minute's worth at once (A. S. Tanenbaum, Computer
    Networks, "the token bucket algorithm").

    What is taken may exceed what a full bucket holds: then the bucket must be full, and the debt is
    waited for afterwards. So a large request is possible, and the mean rate holds.
    """

    __slots__ = ("_level", "_seen_s", "capacity", "rate_per_s")

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.capacity = float(per_minute)
        self.rate_per_s = per_minute / MINUTE_S
        self._level = self.capacity
        self._seen_s = now_s

    def level(self, now_s: float) -> float:
        """Units that are there; negative for a debt."""
        if now_s > self._seen_s:  # a clock that stands still or runs back adds nothing
            gained = (now_s - self._seen_s) * self.rate_per_s
            self._level = min(self.capacity, self._level + gained)
            self._seen_s = now_s
        return self._level

    def wait_s(self, units: float, now_s: float) -> float:
        """Seconds until so many units can be taken; 0: now."""
        short = min(units, self.capacity) - self.level(now_s)
        if short <= 1e-9 * self.capacity:
            return 0.0
        return short / self.rate_per_s

    def take(self, units: float, now_s: float) -> None:
        """Takes units; negative ones are given back."""
        self._level = min(self.capacity, self.level(now_s) - units)


class _KeyState:
    __slots__ = ("limits", "requests", "running", "seen_s", "tokens")

    def __init__(self, limits: KeyLimits, now_s: float) -> None:
        self.limits = limits
        self.running = 0
        self.seen_s = now_s
        self.requests = _bucket(limits.requests_per_minute, now_s)
        self.tokens = _bucket(limits.tokens_per_minute, now_s)


class Lease:
    """A request that was let in. `settle` says what it used, `release` that it has ended; each
    counts once, and a release without a settlement keeps what was reserved.
    """

    __slots__ = ("_limiter", "_released", "_reserved", "_state")

    def __init__(self, limiter: Limiter, state: _KeyState, reserved: int) -> None:
        self._limiter = limiter
        self._state = state
        self._reserved: int | None = reserved
        self._released = False

    def settle(self, used_tokens: int) -> None:
        """Gives back what was reserved and not used, or charges what was used beyond it."""
        self._limiter._settle(self, used_tokens)

    def release(self) -> None:
        """The request has ended."""
        self._limiter._release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Limiter:
    """The limits of all keys. May be used by several threads.

    Memory is bounded by the keys that were used in the last ten minutes.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[str, _KeyState] = {}
        self._swept_s = clock()

    def admit(self, key_id: str, limits: KeyLimits, tokens: int) -> Lease:
        """Lets a request in that may use so many tokens, or raises RateLimited with the time when
        it is worth another try. A request that isn't let in is charged nothing.
        """
        with self._lock:
            now_s = self._clock()
            self._sweep(now_s)
            state = self._state(key_id, limits, now_s)
            state.seen_s = max(state.seen_s, now_s)
            self._check(state, tokens, now_s)
            state.running += 1
            if state.requests is not None:
                state.requests.take(1, now_s)
            if state.tokens is not None:
                state.tokens.take(tokens, now_s)
            return Lease(self, state, tokens)

    def running(self, key_id: str) -> int:
        """Requests of a key that have not ended."""
        with self._lock:
            state = self._states.get(key_id)
            return 0 if state is None else state.running

    def _state(self, key_id: str, limits: KeyLimits, now_s: float) -> _KeyState:
        state = self._states.get(key_id)
        if state is None:
            state = self._states[key_id] = _KeyState(limits, now_s)
        elif state.limits != limits:  # changed while the server runs
            state.requests = _kept(state.requests, limits.requests_per_minute, now_s)
            state.tokens = _kept(state.tokens, limits.tokens_per_minute, now_s)
            state.limits = limits
        return state

    def _check(self, state: _KeyState, tokens: int, now_s: float) -> None:
        limits = state.limits
        if limits.concurrency is not None and state.running >= limits.concurrency:
            raise RateLimited(
                f"this key has {state.running} requests running, and may have "
                f"{limits.concurrency}; wait for one to end",
                "concurrency",
                1.0,
            )
        wait_s = 0.0 if state.requests is None else state.requests.wait_s(1, now_s)
        if wait_s > 0:
            raise RateLimited(
                f"this key may send {limits.requests_per_minute} requests a minute; try again in "
                f"{wait_s:.1f} s",
                "requests_per_minute",
                wait_s,
            )
        wait_s = 0.0 if state.tokens is None else state.tokens.wait_s(tokens, now_s)
        if wait_s > 0:
            raise RateLimited(
                f"this key may use {limits.tokens_per_minute} tokens a minute, and the request may "
                f"need {tokens}; try again in {wait_s:.1f} s, or lower max_tokens",
                "tokens_per_minute",
                wait_s,
            )

    def _sweep(self, now_s: float) -> None:
        if now_s - self._swept_s < IDLE_S:
            return
        self._swept_s = now_s
        self._states = {
            key_id: state
            for key_id, state in self._states.items()
            if state.running or now_s - state.seen_s < IDLE_S or _in_debt(state, now_s)
        }

    def _settle(self, lease: Lease, used_tokens: int) -> None:
        with self._lock:
            if lease._reserved is None:
                return
            bucket = lease._state.tokens
            if bucket is not None:
                bucket.take(used_tokens - lease._reserved, self._clock())
            lease._reserved = None

    def _release(self, lease: Lease) -> None:
        with self._lock:
            if not lease._released:
                lease._released = True
                lease._state.running -= 1


def _bucket(per_minute: int | None, now_s: float) -> TokenBucket | None:
    return None if per_minute is None else TokenBucket(per_minute, now_s)


def _kept(old: TokenBucket | None, per_minute: int | None, now_s: float) -> TokenBucket | None:
    """The bucket under a new limit: what was used of the old one stays used."""
    fresh = _bucket(per_minute, now_s)
    if fresh is not None and old is not None:
        fresh.take(old.capacity - old.level(now_s), now_s)
    return fresh


def _in_debt(state: _KeyState, now_s: float) -> bool:
    buckets = (state.requests, state.tokens)
    return any(own is not None and own.level(now_s) < own.capacity for own in buckets)
