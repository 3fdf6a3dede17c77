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
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from subsecond.engine.admission import Decision, decide
from subsecond.engine.capacity import commit, part
from subsecond.engine.cost import CostModel, shape_of
from subsecond.engine.forecast import forecast
from subsecond.engine.messages import Event, SamplingFields, StepStats
from subsecond.engine.policy import Item, StepLimits, next_step

LEAST_SENDING_S, MOST_SENDING_S = 0.005, 0.1
"""Before its deadline an answer's last step ends by so much at least, so that its end is sent in
time; at most: a loop that lags more has another fault than its load.
"""
_LAGS = 512  # of the newest steps' news


@dataclass
class Costs:
    """What a loaded model's steps cost. ended_s: when its last step did (monotonic seconds)."""

    cost: CostModel
    limits: StepLimits
    ended_s: float = 0.0
    running: int = 0

    def busy_s(self, items: Sequence[Item], now_s: float) -> float:
        """Seconds that what is promised of the items takes."""
        promised = [item for item in items if item.promised]
        ends = forecast(promised, now_s, self.cost, self.limits).finish_s.values()
        return max(ends, default=now_s) - now_s


@dataclass(frozen=True)
class Busy:
    """Promised work, by model. each_s: the seconds that each model's takes by itself."""

    now_s: float
    work: Mapping[str, list[Item]]
    each_s: Mapping[str, float]
    costs: Mapping[str, Costs]

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return sum(self.each_s.values())

    def late_s(self, delay_s: float) -> float:
        """How late the worst of it would be if nothing of it were computed for `delay_s`, and each
        model came last; at most 0: none would. -inf where nothing is promised.
        """
        late_s, begin_s = -math.inf, self.now_s + delay_s + self.seconds
        for name, items in self.work.items():
            own, start_s = self.costs[name], begin_s - self.each_s[name]
            late_s = max(late_s, forecast(items, start_s, own.cost, own.limits).late_s)
        return late_s


@dataclass(eq=False)
class Entry:
    """A request on its way. `observe` is called with each of its events. taken_s: when it was taken
    (monotonic seconds). stream: the engine's number of it, once it has one.
    """

    model: str
    item: Item
    desk: Desk
    promised: list[int]  # tokens still promised, of each text that goes on
    wanted: list[int]  # the same of tokens at most
    ended: bool = False
    taken_s: float = 0.0
    stream: int = -1

    def observe(self, event: Event) -> None:
        """Takes in what has arrived."""
        item = self.item
        if event.ends_request:
            self.close()
            return
        count = len(event.tokens)
        if item.prompt_left and count:
            self.computed(0)
        self.promised[event.choice] = max(0, self.promised[event.choice] - count)
        self.wanted[event.choice] = max(0, self.wanted[event.choice] - count)
        if event.finish_reason is not None:
            self.promised[event.choice] = self.wanted[event.choice] = 0
            item.choices = max(1, sum(left > 0 for left in self.wanted))
        before = item.decode_left
        item.promised_tokens, item.decode_left = max(self.promised), max(self.wanted)
        item.context += before - item.decode_left

    def computed(self, left: int) -> None:
        """So much of the prompt isn't computed."""
        item = self.item
        item.context += item.prompt_left - left
        item.prompt_left = left

    def close(self) -> None:
        """The request has ended, however."""
        if not self.ended:
            self.ended = True
            self.desk.entries.remove(self)
            self.desk.streams.pop(self.stream, None)


@dataclass
class Desk:
    """Of one server. Belongs to the event loop's thread. taken_until_s: until then (monotonic
    seconds) the machine is taken by what is no request, such as the loading of a model. unsent: by
    model, the prompts that wait for others of their request, and have no entry yet.
    """

    taken_until_s: float = 0.0
    costs: dict[str, Costs] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    streams: dict[int, Entry] = field(default_factory=dict)
    unsent: Counter[str] = field(default_factory=Counter)
    _ids: itertools.count[int] = field(default_factory=itertools.count)
    _lags: deque[float] = field(default_factory=lambda: deque(maxlen=_LAGS))

    def sending_s(self) -> float:
        """Seconds from the end of a step to the moment at which its tokens are sent: a high
        quantile of what it took lately.
        """
        if not self._lags:
            return LEAST_SENDING_S
        worst_s = sorted(self._lags)[-1 - len(self._lags) // 100]
        return min(max(LEAST_SENDING_S, 2 * worst_s), MOST_SENDING_S)

    def bind(self, entry: Entry, stream: int) -> None:
        """The engine knows a request that was taken by the number `stream`."""
        if not entry.ended:
            entry.stream = stream
            self.streams[stream] = entry

    def on_step(self, model: str, stats: StepStats, now_s: float) -> None:
        """A model's turn has ended; `Entry.observe` has been told of its events."""
        own = self.costs.get(model)
        if own is None:
            return
        if stats.shape is not None and stats.steps:
            if stats.steps == 1 and not stats.drafted:
                own.cost.observe(stats.shape, stats.elapsed_s)
            self._lags.append(now_s - stats.ended_s)
        own.ended_s = stats.ended_s
        for stream, left in stats.prompts:
            entry = self.streams.get(stream)
            if entry is not None:
                entry.computed(left)
        own.running = stats.running

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
            # A row of logits for every token of a prompt costs less than the prompt itself.
            prompt_left=2 * prompt_tokens if fields.score_prompt else prompt_tokens,
            decode_left=fields.max_tokens,
            deadline_s=deadline_s,
            promised_tokens=promised_tokens,
            priority=priority,
            arrival_s=arrival_s,
            choices=fields.n,
        )
        promised, wanted = [promised_tokens] * fields.n, [fields.max_tokens] * fields.n
        return Entry(model, item, self, promised, wanted)

    def take(self, new: Sequence[Entry], now_s: float) -> Decision:
        """Promises all of the new requests (of one model), which are then on their way, or none.

        Where no deadline was asked for there is nothing to promise: they are taken as they are.
        """
        promise = any(entry.item.promised for entry in new)
        found = Decision(promised=False, finish_s=math.inf)
        if promise:
            found = self.judge(new, now_s)
        if found.promised or not promise:
            for entry in new:
                entry.taken_s = now_s
            self.entries += new
        return found

    def judge(self, new: Sequence[Entry], now_s: float) -> Decision:
        """What `take` would decide of requests with a deadline. Of prompts that haven't been
        tokenized, a lower bound of the tokens is enough to decline them.
        """
        own = self.costs[new[0].model]
        if sum(entry.item.choices for entry in new) > own.limits.sequences:  # never, not later
            return Decision(
                promised=False, finish_s=math.inf, retry_after_s=math.inf, reason="too_large"
            )
        others = self.busy(now_s, besides=new[0].model)
        held, free_s = self._after_step(new[0].model, own, now_s)
        free_s = max(free_s, self.taken_until_s) + others.seconds
        finish_s = 0.0
        for entry in new:
            found = decide(entry.item, held, now_s, own.cost, own.limits, free_s=free_s)
            if not found.promised:
                return found
            held.append(entry.item)
            finish_s = max(finish_s, found.finish_s)
        late_s = others.late_s(own.busy_s(held, now_s)) if others.work else 0.0
        if late_s > 0:
            wait_s = max(late_s, own.limits.step_s)
            return Decision(
                promised=False,
                finish_s=new[0].item.deadline_s + wait_s,
                retry_after_s=wait_s,
                reason="busy",
            )
        return Decision(promised=True, finish_s=finish_s)

    def _after_step(self, model: str, own: Costs, now_s: float) -> tuple[list[Item], float]:
        """The model's work as it will be when the step that runs now has ended, and when that will
        be: the step is the one that the policy makes of what the engine knew when it began.
        """
        entries = [entry for entry in self.entries if entry.model == model]
        if not entries:
            return [], now_s
        began_s = max(own.ended_s, min(entry.taken_s for entry in entries))
        known = [entry.taken_s <= began_s for entry in entries]
        items = [msgspec.structs.replace(entry.item) for entry in entries]
        work = [
            item
            for item, is_known in zip(items, known, strict=True)
            if is_known and (item.prompt_left or item.decode_left)
        ]
        step = next_step(work, began_s, own.cost, own.limits)
        ends_s = began_s + own.cost.bound(shape_of([part(item, count) for item, count in step]))
        if ends_s > now_s:  # else the news of its end is on the way
            for item, count in step:
                commit(item, count)
        return items, max(now_s, ends_s)

    def busy(self, now_s: float, *, besides: str | None = None) -> Busy:
        """The promised work of all models, or of all but one."""
        work: dict[str, list[Item]] = {}
        for entry in self.entries:
            if entry.model != besides and entry.item.promised:
                work.setdefault(entry.model, []).append(entry.item)
        each_s = {name: self.costs[name].busy_s(items, now_s) for name, items in work.items()}
        return Busy(now_s, work, each_s, self.costs)
