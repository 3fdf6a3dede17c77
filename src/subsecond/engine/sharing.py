"""How a step is shared between texts where deadlines were promised.

Owns: what the policy is told of each text, and the works made of its answer. Does not know: pages,
sampling, who measures the steps. `Scheduler` without it gives every text its turn, first come first
served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from subsecond.engine.cost import CostModel, shape_of
from subsecond.engine.policy import Item, StepLimits, is_hurried, longest_s, next_step
from subsecond.engine.request import SequenceState


@dataclass(frozen=True)
class Work:
    """`count` tokens of `sequence`, from its first token that isn't computed. draft: what may come
    behind its last token, to be checked in the same step.
    """

    sequence: SequenceState
    count: int
    draft: Sequence[int] = ()

    @property
    def completes(self) -> bool:
        """Whether a token can be chosen after it."""
        return self.count == self.sequence.wanted

    @property
    def size(self) -> int:
        """Tokens that the step computes of it."""
        return self.count + len(self.draft)


class Sharing:
    """Shares steps by `policy.next_step`. cost: kept up to date by whoever measures the steps."""

    def __init__(self, cost: CostModel, limits: StepLimits) -> None:
        self.cost = cost
        self.limits = limits

    def share(self, active: Sequence[SequenceState], now_s: float) -> list[Work]:
        """The next step of texts that have pages and haven't ended. now_s: `time.monotonic()`."""
        if not any(text.request.promised for text in active) and all(
            text.wanted == 1 and text.generated for text in active
        ):
            return [Work(text, 1) for text in active]  # what the policy would say, at no cost
        items = [item_of(text, index) for index, text in enumerate(active)]
        parts = next_step(items, now_s, self.cost, self.limits)
        works: list[Work] = []
        for item, count in parts:
            text = active[item.id]
            works.append(Work(text, count if item.prompt_left else 1))
        return works

    def spare_s(self, step: Sequence[Work], now_s: float) -> float:
        """Seconds that a step may take which only decodes, so that no text is late even if it gets
        one token from it (the pace of `policy`), and a newcomer waits no longer than for a step
        that prompts fill.
        """
        spare_s = self.limits.step_s
        for work in step:
            request = work.sequence.request
            left_s = request.deadline_s - self.limits.guard_s - now_s
            left = max(1, request.promised_tokens - work.sequence.generated)
            spare_s = min(spare_s, left_s / left)
        return spare_s

    def longest_s(self, active: Sequence[SequenceState], now_s: float) -> float:
        """Seconds that the next step may take at most, by the cost model's bound."""
        rows = [(1, text.computed, 1) for text in active if text.generated and text.wanted == 1]
        shape = shape_of(rows)
        if len(rows) == len(active):
            return self.cost.bound(shape) if rows else 0.0
        hurried = is_hurried((text.request.deadline_s for text in active), now_s)
        return longest_s(shape, self.cost, self.limits, hurried=hurried)


def item_of(text: SequenceState, id: int) -> Item:
    """A text as the policy sees it. A text that is computed again after it has lost its pages has a
    prompt once more: all its tokens.
    """
    request, generated, wanted = text.request, text.generated, text.wanted
    decodes = wanted == 1 and generated > 0
    return Item(
        id=id,
        prompt_left=0 if decodes else wanted,
        decode_left=request.max_tokens - generated,
        context=text.computed,
        deadline_s=request.deadline_s,
        promised_tokens=max(0, request.promised_tokens - generated),
        priority=request.priority,
        arrival_s=request.arrival_s,
        choices=1 if generated else request.params.n,
    )
