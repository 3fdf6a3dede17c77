"""Whether a request can be promised its deadline.

Owns: the decision, and the capacity that a machine can state. Pure: given the same promises, time
and costs, the same answer. Does not know: clocks, HTTP, engines, tenants.

The test simulates the policy over everything promised and the newcomer (`forecast`), which is the
processor demand criterion of EDF (Baruah, Rosier and Howell 1990) with the policy itself as demand
function: batched steps aren't additive, so there is no closed bound that is not far off. A request
is promised only if every promise, its own among them, is in time by the cost model's bound. Work
without a promise doesn't count: the policy gives it only what promises leave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from subsecond.engine.cost import CostModel
from subsecond.engine.forecast import forecast
from subsecond.engine.policy import Item, StepLimits, is_lost

ROUNDING = 1.03
"""Promises are tested with steps that are this much longer than their bounds: tokens are whole, so
a step of 20 ms is up to a token (0.4 ms on the machines this was made for) shorter than forecast.
The error adds up step by step, so it is a share of the time, where `guard_s` is a sum.
"""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """promised: whether the deadline will be kept. finish_s: when it is predicted to have its
    promised tokens (monotonic seconds): if declined, the earliest at which it could be promised to
    have them. retry_after_s: 0 if promised; else after how long the same request, with a deadline
    as far away, can expect a promise; inf if never. reason: "" or why it is declined:

    "too_short"   not even an idle machine could do it
    "too_large"   more texts, tokens or KV positions than this machine can ever hold
    "busy"        it, or what was promised before, would be late
    "full"        what was promised before holds all places or KV positions
    """

    promised: bool
    finish_s: float
    retry_after_s: float = 0.0
    reason: str = ""


def decide(
    new: Item,
    promised_items: Sequence[Item],
    now_s: float,
    cost: CostModel,
    limits: StepLimits,
    *,
    free_s: float | None = None,
) -> Decision:
    """Promises `new`, or declines it.

    new: with deadline_s and promised_tokens (all of decode_left for on_deadline "full").
    promised_items: what was promised and isn't finished, as last reported; free_s: when the step
    that runs now is expected to end (default: now).
    Of a prompt that hasn't been tokenized, `prompt_left` may be a lower bound: what is declined
    with it would be declined with more.
    """
    start_s = now_s if free_s is None else max(now_s, free_s)
    stretch = ROUNDING * (1.0 + limits.reserve if new.priority < 0 else 1.0)
    alone = forecast([new], now_s, cost, limits, stretch=stretch)
    if not _ever_fits(new, limits):
        return Decision(
            promised=False, finish_s=math.inf, retry_after_s=math.inf, reason="too_large"
        )
    if alone.late_s > 0:
        return Decision(
            promised=False,
            finish_s=alone.finish_s[new.id],
            retry_after_s=math.inf,
            reason="too_short",
        )
    held = [item for item in promised_items if item.promised and not is_lost(item, now_s, cost)]
    together = forecast([*held, new], start_s, cost, limits, stretch=stretch)
    if not _fits([*held, new], limits):
        wait = _until_room(new, held, together.finish_s, limits) - now_s
        wait = max(wait, together.late_s, limits.step_s)
        return Decision(
            promised=False, finish_s=new.deadline_s + wait, retry_after_s=wait, reason="full"
        )
    if together.late_s <= 0:
        pace = together.pace_s.get(new.id, math.inf)
        wanted = limits.pace_kept * min(alone.pace_s.get(new.id, math.inf), limits.step_s)
        if pace >= wanted or not held:
            return Decision(promised=True, finish_s=together.finish_s[new.id])
        late_s = (wanted - pace) * new.promised_tokens
    else:
        late_s = together.late_s
    # As much later as the worst of them is late, the machine has worked off as much.
    wait = max(late_s, limits.step_s)
    return Decision(
        promised=False, finish_s=new.deadline_s + wait, retry_after_s=wait, reason="busy"
    )


def _pages(item: Item, limits: StepLimits) -> int:
    """KV positions that the item holds at its end, rounded up to whole pages for each text."""
    ends = item.context + item.prompt_left + max(item.promised_tokens, item.decode_left)
    return item.choices * -(-ends // limits.page) * limits.page


def _ever_fits(item: Item, limits: StepLimits) -> bool:
    return _fits([item], limits)


def _fits(items: Sequence[Item], limits: StepLimits) -> bool:
    """Whether a step can hold a token of every text, and the cache all positions."""
    rows = sum(item.choices for item in items)
    if rows > min(limits.sequences, limits.rows, limits.tokens):
        return False
    return sum(_pages(item, limits) for item in items) <= limits.positions


def _until_room(
    new: Item, held: Sequence[Item], finish_s: dict[int, float], limits: StepLimits
) -> float:
    """When enough of what was promised has ended for `new` to have its place."""
    staying = sorted(held, key=lambda item: (finish_s[item.id], item.id))
    ends = -math.inf
    while staying and not _fits([*staying, new], limits):
        ends = finish_s[staying[0].id]
        staying = staying[1:]
    return ends
