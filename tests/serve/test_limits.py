"""Limits of keys on a clock that the tests move."""

from __future__ import annotations

import math
import random
import threading
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond.serve.errors import RateLimited
from subsecond.serve.limits import IDLE_S, KeyLimits, Lease, Limiter, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refused(limiter: Limiter, limits: KeyLimits, tokens: int = 0, key: str = "k") -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        limiter.admit(key, limits, tokens)
    assert int(caught.value.headers["retry-after"]) >= 1
    return caught.value


def test_no_limits(clock: Clock) -> None:
    limiter = Limiter(clock)
    for _ in range(1000):
        limiter.admit("k", KeyLimits(), 10**9)
    assert limiter.running("k") == 1000


def test_requests_a_minute(clock: Clock) -> None:
    limiter, limits = Limiter(clock), KeyLimits(requests_per_minute=6)
    for _ in range(6):
        limiter.admit("k", limits, 0)
    error = refused(limiter, limits)
    assert (error.limit, error.headers["retry-after"]) == ("requests_per_minute", "10")
    clock.now_s += 9.9
    assert refused(limiter, limits).headers["retry-after-ms"] in ("100", "101")
    clock.now_s += 0.1
    limiter.admit("k", limits, 0)
    refused(limiter, limits)
    clock.now_s += 3600
    for _ in range(6):  # never more than a minute's worth at once
        limiter.admit("k", limits, 0)
    refused(limiter, limits)


def test_keys_are_apart(clock: Clock) -> None:
    limiter, limits = Limiter(clock), KeyLimits(requests_per_minute=1)
    limiter.admit("a", limits, 0)
    refused(limiter, limits, key="a")
    limiter.admit("b", limits, 0)


def test_concurrency(clock: Clock) -> None:
    limiter, limits = Limiter(clock), KeyLimits(concurrency=2)
    first = limiter.admit("k", limits, 0)
    with limiter.admit("k", limits, 0):
        assert refused(limiter, limits).limit == "concurrency"
    limiter.admit("k", limits, 0)
    first.release()
    first.release()  # counts once
    limiter.admit("k", limits, 0)
    refused(limiter, limits)
    assert limiter.running("k") == 2


def test_tokens_are_reserved_and_settled(clock: Clock) -> None:
    limiter, limits = Limiter(clock), KeyLimits(tokens_per_minute=600)
    lease = limiter.admit("k", limits, 500)
    error = refused(limiter, limits, 200)
    assert (error.limit, error.headers["retry-after"]) == ("tokens_per_minute", "10")
    lease.settle(100)
    lease.settle(0)  # counts once
    limiter.admit("k", limits, 500)
    refused(limiter, limits, 1)


def test_a_request_that_is_larger_than_a_minute(clock: Clock) -> None:
    limiter, limits = Limiter(clock), KeyLimits(tokens_per_minute=60)
    limiter.admit("k", limits, 180)  # the bucket is full, and owes 120 afterwards
    clock.now_s += 120
    assert refused(limiter, limits, 1).headers["retry-after"] == "1"
    clock.now_s += 1
    limiter.admit("k", limits, 1)
    assert refused(limiter, limits, 1000).headers["retry-after"] == "60"


def test_use_beyond_the_reservation_is_charged(clock: Clock) -> None:
    limiter, limits = Limiter(clock), KeyLimits(tokens_per_minute=60)
    limiter.admit("k", limits, 10).settle(70)
    assert refused(limiter, limits, 1).headers["retry-after"] == "11"


def test_what_is_refused_is_not_charged(clock: Clock) -> None:
    limiter, limits = Limiter(clock), KeyLimits(requests_per_minute=2, tokens_per_minute=60)
    limiter.admit("k", limits, 60)
    for _ in range(5):
        assert refused(limiter, limits, 60).limit == "tokens_per_minute"
    clock.now_s += 60
    limiter.admit("k", limits, 60)
    assert limiter.running("k") == 2


def test_new_limits_keep_what_was_used(clock: Clock) -> None:
    limiter = Limiter(clock)
    for _ in range(4):
        limiter.admit("k", KeyLimits(requests_per_minute=5), 0)
    wider = KeyLimits(requests_per_minute=10)
    for _ in range(6):
        limiter.admit("k", wider, 0)
    refused(limiter, wider)
    limiter.admit("k", KeyLimits(), 0)


def test_a_clock_that_stands_or_runs_back(clock: Clock) -> None:
    limiter, limits = Limiter(clock), KeyLimits(requests_per_minute=1)
    limiter.admit("k", limits, 0)
    clock.now_s -= 500
    refused(limiter, limits)
    clock.now_s += 500 + 60
    limiter.admit("k", limits, 0)


def test_idle_keys_are_forgotten(clock: Clock) -> None:
    limiter, limits = Limiter(clock), KeyLimits(requests_per_minute=60, tokens_per_minute=60)
    held = limiter.admit("held", limits, 0)
    limiter.admit("debt", limits, 60 * 60 * 24).release()
    for index in range(500):
        limiter.admit(f"k{index}", limits, 1).release()
    clock.now_s += IDLE_S
    limiter.admit("new", limits, 0)
    assert set(limiter._states) == {"held", "debt", "new"}
    assert limiter.running("held") == 1
    held.release()
    clock.now_s += IDLE_S
    limiter.admit("new", limits, 0)
    assert "held" not in limiter._states


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1000), st.integers(0, 2**32), st.integers(1, 40))
def test_no_more_than_the_rate_gets_through(per_minute: int, seed: int, largest: int) -> None:
    """Over any time: at most the rate, one full bucket, and one request's debt."""
    draw = random.Random(seed)
    bucket, now_s, taken = TokenBucket(per_minute, 0.0), 0.0, 0
    for _ in range(200):
        now_s += draw.expovariate(per_minute / 60)
        units = draw.randint(1, largest)
        wait_s = bucket.wait_s(units, now_s)
        assert math.isfinite(wait_s) and wait_s >= 0
        if wait_s == 0:
            bucket.take(units, now_s)
            taken += units
        assert taken <= per_minute + now_s * per_minute / 60 + largest + 1e-6
    after_s = now_s + bucket.wait_s(largest, now_s)
    assert bucket.wait_s(largest, after_s) < 1e-6


def test_threads(clock: Clock) -> None:
    limiter, limits = Limiter(clock), KeyLimits(requests_per_minute=100)
    leases: list[Lease] = []

    def admit() -> None:
        for _ in range(50):
            with suppress(RateLimited):
                leases.append(limiter.admit("k", limits, 0))

    threads = [threading.Thread(target=admit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leases) == limiter.running("k") == 100
    for lease in leases:
        lease.release()
    assert limiter.running("k") == 0
