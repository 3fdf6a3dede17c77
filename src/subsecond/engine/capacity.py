"""What a machine can promise: so many requests a second.

Owns: a server in miniature, with simulated time, that is given random arrivals. Does not know:
clocks, engines; what it says is what the cost model says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import msgspec

from subsecond.engine.admission import decide
from subsecond.engine.cost import CostModel, shape_of
from subsecond.engine.policy import Item, StepLimits, next_step
from subsecond.errors import InputError

SHARE = 0.8
"""Of the stated rate: at this part of it nearly nothing is declined."""

MOST_DECLINED = 0.005


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """requests_per_s: at 0.8 of it, arrivals being random (Poisson), at most 0.5 % are declined and
    none is late. 0: not even one at a time. p99_s: of the latencies at 0.8 of it. alone_s: one
    request on an idle machine, by the cost model's bound.
    """

    requests_per_s: float
    p99_s: float
    alone_s: float


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What became of simulated arrivals. latencies_s: of the promised ones, ascending."""

    arrivals: int
    declined: int
    late: int
    latencies_s: tuple[float, ...]


def capacity(
    cost: CostModel,
    limits: StepLimits,
    *,
    prompt_tokens: int,
    new_tokens: int,
    within_s: float,
    arrivals: int = 600,
) -> Capacity:
    """The rate of requests of `prompt_tokens` and `new_tokens`, each to be answered in full within
    `within_s`, that can be promised.

    By bisection to 3 %, on the same random numbers for every rate. arrivals: of each trial; the
    standard deviation of a rate found with 600 is some 4 %.
    """
    for name, value in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1")
    if not 0 < within_s <= 3600:
        raise InputError(f"within_s is {within_s}, not above 0 and at most 3600 seconds")

    def request(index: int, now_s: float) -> Item:
        return Item(
            id=index,
            prompt_left=prompt_tokens,
            decode_left=new_tokens,
            deadline_s=now_s + within_s,
            promised_tokens=new_tokens,
            arrival_s=now_s,
        )

    alone = decide(request(0, 0.0), [], 0.0, cost, limits)
    if not alone.promised:
        return Capacity(requests_per_s=0.0, p99_s=alone.finish_s, alone_s=alone.finish_s)

    def try_rate(rate: float) -> Trial:
        return trial(cost, limits, request, rate=rate, arrivals=arrivals)

    low, best = 0.0, try_rate(0.05 / within_s)
    high = 1 / alone.finish_s
    while (found := try_rate(high)).declined <= MOST_DECLINED * arrivals and high < 1e5:
        low, best, high = high, found, 2 * high
    while high > 1.03 * low and high > 0.05 / within_s:
        middle = (low + high) / 2
        found = try_rate(middle)
        if found.declined <= MOST_DECLINED * arrivals:
            low, best = middle, found
        else:
            high = middle
    slow = best.latencies_s[int(0.99 * (len(best.latencies_s) - 1))]
    return Capacity(requests_per_s=low / SHARE, p99_s=slow, alone_s=alone.finish_s)


class _Source:
    """Arrivals at random moments of a Poisson process, the same for the same seed."""

    def __init__(self, rate: float, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 (no secret)
        self._rate = rate

    def times(self, arrivals: int) -> Iterator[float]:
        now = 0.0
        for _ in range(arrivals):
            now += self._random.expovariate(1.0) / self._rate
            yield now


def trial(
    cost: CostModel,
    limits: StepLimits,
    request: Callable[[int, float], Item],
    *,
    rate: float,
    arrivals: int,
    seed: int = 1,
) -> Trial:
    """Gives a simulated server `arrivals` requests at `rate` a second; its steps take what the
    model expects of them, its promises are made from the model's bounds.

    request: makes a request of an index and the moment of its arrival.
    """
    now, declined, late = 0.0, 0, 0
    items: list[Item] = []
    latencies: list[float] = []

    def advance(until_s: float) -> None:
        nonlocal now, items, late
        while items and now < until_s:
            parts = next_step(items, now, cost, limits)
            now += cost.predict(shape_of([part(item, count) for item, count in parts]))
            for item, count in parts:
                if commit(item, count):
                    latencies.append(now - item.arrival_s)
                    late += now > item.deadline_s
            items = [item for item in items if item.decode_left]
        now = max(now, until_s) if until_s < float("inf") else now

    for index, moment in enumerate(_Source(rate, seed).times(arrivals)):
        advance(moment)
        new = request(index, moment)
        if decide(new, items, now, cost, limits).promised:
            items.append(new)
        else:
            declined += 1
    advance(float("inf"))
    return Trial(
        arrivals=arrivals, declined=declined, late=late, latencies_s=tuple(sorted(latencies))
    )


def commit(item: Item, count: int) -> bool:
    """Advances an item by the tokens that a step has given it, as if no text ended early; whether
    it is finished.
    """
    if item.prompt_left:
        item.prompt_left -= count
        item.context += count
        if item.prompt_left:
            return False
    else:
        item.context += 1
    item.decode_left -= 1
    item.promised_tokens = max(item.promised_tokens - 1, 0)
    return item.decode_left == 0


def part(item: Item, count: int) -> tuple[int, int, int]:
    """An item's part of a step, for `shape_of`."""
    if item.prompt_left:
        return count, item.context, item.choices if count == item.prompt_left else 0
    return count, item.context, item.choices
