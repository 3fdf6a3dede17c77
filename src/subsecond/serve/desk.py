"""Where promises are made: the work that is promised and not done, and what a newcomer would do to
it.

Owns: an entry for each request on its way, kept up to date by the engine's events, the cost model
of each loaded model, and the decision over all of them. Does not know: HTTP, text, who asks.

Models take turns in one process. Of others' promised work it is assumed that all of it comes first,
which is more than their turns will take.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from subsecond.engine.admission import Decision, decide
from subsecond.engine.cost import CostModel
from subsecond.engine.forecast import forecast
from subsecond.engine.messages import Event, SamplingFields, StepStats
from subsecond.engine.policy import Item, StepLimits


@dataclass
class Costs:
    """What a loaded model's steps cost. free_s: when the step that runs now should end, by the
    length of the one before (monotonic seconds).
    """

    cost: CostModel
    limits: StepLimits
    free_s: float = 0.0
    running: int = 0
    waiting: int = 0
    pages_used: int = 0
    pages_total: int = 0


@dataclass(eq=False)
class Entry:
    """A request on its way. `observe` is called with each of its events."""

    model: str
    item: Item
    desk: Desk
    promised: list[int]  # tokens still promised, of each text that goes on
    wanted: list[int]  # the same of tokens at most
    ended: bool = False

    def observe(self, event: Event) -> None:
        """Takes in what has arrived."""
        item = self.item
        if event.ends_request:
            self.close()
            return
        count = len(event.tokens)
        if item.prompt_left and count:
            item.context += item.prompt_left
            item.prompt_left = 0
        self.promised[event.choice] = max(0, self.promised[event.choice] - count)
        self.wanted[event.choice] = max(0, self.wanted[event.choice] - count)
        if event.finish_reason is not None:
            self.promised[event.choice] = self.wanted[event.choice] = 0
            item.choices = max(1, sum(left > 0 for left in self.wanted))
        before = item.decode_left
        item.promised_tokens, item.decode_left = max(self.promised), max(self.wanted)
        item.context += before - item.decode_left

    def close(self) -> None:
        """The request has ended, however."""
        if not self.ended:
            self.ended = True
            self.desk.entries.remove(self)


@dataclass
class Desk:
    """Of one server. Belongs to the event loop's thread."""

    costs: dict[str, Costs] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    _ids: itertools.count[int] = field(default_factory=itertools.count)

    def on_step(self, model: str, stats: StepStats, now_s: float) -> None:
        """A model's turn has ended."""
        own = self.costs.get(model)
        if own is None:
            return
        if stats.shape is not None and stats.steps:
            step_s = stats.elapsed_s / stats.steps
            own.cost.observe(stats.shape, step_s)
            own.free_s = now_s + step_s
        own.running, own.waiting = stats.running, stats.waiting
        own.pages_used = stats.pages_total - stats.pages_free - stats.pages_cached
        own.pages_total = stats.pages_total

    def entry(
        self,
        model: str,
        prompt_tokens: int,
        fields: SamplingFields,
        *,
        deadline_s: float,
        promised_tokens: int,
        priority: int,
        arrival_s: float,
    ) -> Entry:
        """What a request would be, if it is taken; it isn't yet."""
        item = Item(
            id=next(self._ids),
            prompt_left=prompt_tokens,
            decode_left=fields.max_tokens,
            deadline_s=deadline_s,
            promised_tokens=promised_tokens,
            priority=priority,
            arrival_s=arrival_s,
            choices=fields.n,
        )
        return Entry(
            model, item, self, [promised_tokens] * fields.n, [fields.max_tokens] * fields.n
        )

    def take(self, new: Sequence[Entry], now_s: float) -> Decision:
        """Promises all of the new requests (of one model), which are then on their way, or none.

        Where no deadline was asked for there is nothing to promise: they are taken as they are.
        """
        if not any(entry.item.promised for entry in new):
            self.entries += new
            return Decision(promised=False, finish_s=math.inf)
        own = self.costs[new[0].model]
        others, others_s = self._others(new[0].model, now_s)
        free_s = max(now_s, min(own.free_s, now_s + 1.0)) + others_s
        held = [entry.item for entry in self.entries if entry.model == new[0].model]
        finish_s = 0.0
        for entry in new:
            found = decide(entry.item, held, now_s, own.cost, own.limits, free_s=free_s)
            if not found.promised:
                return found
            held.append(entry.item)
            finish_s = max(finish_s, found.finish_s)
        late_s = self._late_s(others, held, own, now_s)
        if late_s > 0:
            wait_s = max(late_s, own.limits.step_s)
            return Decision(
                promised=False,
                finish_s=new[0].item.deadline_s + wait_s,
                retry_after_s=wait_s,
                reason="busy",
            )
        self.entries += new
        return Decision(promised=True, finish_s=finish_s)

    def _others(self, model: str, now_s: float) -> tuple[dict[str, list[Item]], float]:
        """Promised work of other models, and the seconds that it takes."""
        work: dict[str, list[Item]] = {}
        for entry in self.entries:
            if entry.model != model and entry.item.promised:
                work.setdefault(entry.model, []).append(entry.item)
        return work, sum(self._busy_s(name, items, now_s) for name, items in work.items())

    def _busy_s(self, model: str, items: list[Item], now_s: float) -> float:
        own = self.costs[model]
        ends = forecast(items, now_s, own.cost, own.limits).finish_s.values()
        return max(ends, default=now_s) - now_s

    def _late_s(
        self, others: dict[str, list[Item]], held: list[Item], own: Costs, now_s: float
    ) -> float:
        """How late the worst of the other models' promises would be behind all of this one's."""
        if not others:
            return 0.0
        promised = [item for item in held if item.promised]
        ends = forecast(promised, now_s, own.cost, own.limits).finish_s.values()
        busy_s = {name: self._busy_s(name, items, now_s) for name, items in others.items()}
        before_s = max(ends, default=now_s) - now_s + sum(busy_s.values())
        late_s = 0.0
        for name, items in others.items():
            costs = self.costs[name]
            start_s = now_s + before_s - busy_s[name]
            late_s = max(late_s, forecast(items, start_s, costs.cost, costs.limits).late_s)
        return late_s
