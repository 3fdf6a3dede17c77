"""What becomes of promised work if nothing else comes: the step that each item will be finished in,
and when.

Owns: the simulation of `policy.next_step` over promised items. Pure. Does not know: who asks.

It goes from event to event (a prompt computed, an item finished), not from step to step: between
two events all steps have the same items, and their times are an arithmetic series (contexts grow by
one), summed in closed form. So long answers cost no more than short ones, and 64 items take some
200 events.

It never flatters: costs are bounds; steps are as long as the policy's, or shorter, so that prompts
need no fewer of them; a prompt's attention is counted at the end of each part of 64 tokens.
That promises outlive it has this reason. Until time t, n steps have taken n fixed costs and every
decoding item's tokens, at most n each; all else went to prompts. The policy's steps are no shorter
than the forecast's (a pace never falls while steps are at most the least pace), so by any t it has
done no more steps, hence no less of the prompts, than forecast; decoding items are in time because
their pace bears every step. An item that ends early, or a step that takes less than its bound, only
adds time. What is left is rounding (tokens are whole, steps end when they end), for which
`guard_s` and `admission.ROUNDING` are: this is an argument tested by simulation, not a proof.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from subsecond.engine.cost import CostModel
from subsecond.engine.policy import Item, StepLimits, chunk, prompt_order

_PART = 64  # tokens of a prompt whose attention is counted at one context
_STEPS = 16  # of one stretch with prompts, after which the room for them is counted again


class Forecast:
    """Finishing times of promised items.

    finish_s: by item id, when its last promised token is chosen (monotonic seconds).
    pace_s: by item id, the pace that it begins to decode with.
    late_s: the most that any item is later than its deadline less the guard; at most 0: all are in
    time.
    """

    __slots__ = ("finish_s", "late_s", "pace_s")

    def __init__(self) -> None:
        self.finish_s: dict[int, float] = {}
        self.pace_s: dict[int, float] = {}
        self.late_s = -math.inf


def forecast(
    items: Sequence[Item],
    start_s: float,
    cost: CostModel,
    limits: StepLimits,
    *,
    stretch: float = 1.0,
) -> Forecast:
    """Runs promised items (all of them `promised`) to their promised ends, from `start_s` on, when
    the machine is free for the next step. stretch: that much longer is every step.
    """
    run = _Run(start_s, cost, limits, stretch)
    for item in items:
        if not item.prompt_left:
            run.join(item, item.context, item.promised_tokens)
    heapify(run.heap)
    run.prompts([item for item in items if item.prompt_left])
    run.drain()
    return run.result


class _Run:
    """The simulated machine. A decoding item is (its last step, deadline less guard, id, choices,
    context less the step that it has it after): its context after step n is that number plus n.
    """

    __slots__ = (
        "_cost", "_factor", "_least", "_limits", "_per_position", "_row_s", "_table", "_top",
        "heap", "positions", "result", "rows", "step", "time",
    )  # fmt: skip

    def __init__(self, start_s: float, cost: CostModel, limits: StepLimits, stretch: float) -> None:
        self.result = Forecast()
        self.time = start_s
        self.step = 0
        self.rows = 0
        self.positions = 0  # that the next step's decoding rows look at
        self.heap: list[tuple[int, float, int, int, int]] = []
        self._least = math.inf  # pace: a lower bound of all decoding items'
        self._cost = cost
        self._limits = limits
        self._factor = cost.factor * stretch
        self._table = cost.table
        self._top = min(limits.tokens, len(cost.table) - 1)
        self._row_s = cost.coefficients.row_s
        self._per_position = cost.coefficients.position_s + cost.coefficients.stored_s

    def join(self, item: Item, context: int, tokens: int) -> None:
        """An item decodes from the next step on; `tokens` of it are promised."""
        due = item.deadline_s - self._limits.guard_s
        if tokens <= 0:
            self._finish(item.id, due)
            return
        ends = self.step + tokens
        heappush(self.heap, (ends, due, item.id, item.choices, context - self.step))
        self.rows += item.choices
        self.positions += item.choices * (context + 1)
        pace = self.result.pace_s[item.id] = (due - self.time) / tokens
        self._least = min(self._least, pace)

    def prompts(self, items: list[Item]) -> None:
        """Computes prompts, in the policy's order, beside what decodes."""
        items.sort(key=prompt_order(self._limits))
        c = self._cost.coefficients
        first, left = 0, items[0].prompt_left if items else 0
        while first < len(items):
            item = items[first]
            context = item.context + item.prompt_left - left
            deep = context + min(left, _PART)
            fixed = self.rows * self._row_s + self.positions * self._per_position
            room = self._room(fixed + self._row_s * item.choices, deep)
            if not room and self.heap:
                self._advance(self.heap[0][0] - self.step, self._decode_s(self.rows) + fixed)
                self._least = -math.inf
                continue
            room = max(room, 1)
            steps = min((min(left, _PART) - 1) // room, _STEPS)
            if self.heap:
                steps = min(steps, self.heap[0][0] - self.step)
            if steps > 0:
                each = self._table[self.rows + room] + fixed + c.stored_s * deep
                self._advance(steps, each + c.position_s * room * deep)
                left -= steps * room
                continue
            # The step that computes the rest of this prompt, and what fits of the next ones.
            used, seconds, joining = 0, fixed, []
            while used < room:
                count = min(left, room - used)
                item = items[first]
                ends = item.context + item.prompt_left - left + count
                seconds += c.position_s * count * ends + c.stored_s * ends
                used += count
                left -= count
                if left:
                    break
                seconds += self._row_s * item.choices
                joining.append(item)
                first += 1
                if first == len(items):
                    break
                left = items[first].prompt_left
            self._advance(1, self._table[self.rows + used] + seconds)
            for item in joining:
                self.join(item, item.context + item.prompt_left, item.promised_tokens - 1)

    def drain(self) -> None:
        """Decodes until every item is finished."""
        while self.heap:
            fixed = self.rows * self._row_s + self.positions * self._per_position
            self._advance(self.heap[0][0] - self.step, self._decode_s(self.rows) + fixed)

    def _room(self, fixed: float, deep: int) -> int:
        """Tokens of a prompt that the policy would put into the next step."""
        tokens = self.rows
        decode_s = self._factor * (self._decode_s(max(tokens, 1)) + fixed)
        longest = max(self._limits.step_s, 1.5 * decode_s)
        if self._least < longest:  # it may have risen, or its item have ended
            now, step = self.time, self.step
            self._least = min(
                ((due - now) / (ends - step) for ends, due, _, _, _ in self.heap), default=math.inf
            )
        limit = min(longest, self._least) * self._cost.factor / self._factor
        fixed += self._cost.coefficients.stored_s * deep
        return chunk(self._cost, tokens, self._top, limit, fixed, deep)

    def _decode_s(self, rows: int) -> float:
        """Uncorrected seconds of a step's tokens. Rows that no step holds count as those of the
        largest: `admission` declines them, and wants to know until when.
        """
        return self._table[min(rows, len(self._table) - 1)]

    def _advance(self, steps: int, each: float) -> None:
        """So many steps, the first of `each` uncorrected seconds; items that end in the last."""
        rows = self.rows
        growth = self._per_position * rows * (steps * (steps - 1) // 2)
        self.time += self._factor * (steps * each + growth)
        self.step += steps
        self.positions += rows * steps
        heap, now = self.heap, self.step
        while heap and heap[0][0] <= now:
            _, due, id_, choices, offset = heappop(heap)
            self.rows -= choices
            self.positions -= choices * (offset + now + 1)
            self._finish(id_, due)

    def _finish(self, id_: int, due: float) -> None:
        result = self.result
        result.finish_s[id_] = self.time
        late = self.time - due
        result.late_s = max(result.late_s, late)
