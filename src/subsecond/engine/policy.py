"""Which item of work gets how many tokens in the next step.

Owns: the order of work and the length of a step. Pure: no clock, no engine objects; the same
arguments give the same step. Does not know: how promises were found possible (`admission`), pages,
sampling.

Promised work is scheduled by slack (least laxity first; Dertouzos and Mok 1989), in a form that
suits batched decoding, where a step serves every text at once and lasts as long for all:

- The *pace* of a decoding item is the time left to its deadline, divided by the tokens still
  promised: the longest step that it can bear again and again. A step that is at most the least pace
  never lowers any pace, so that no decoding item becomes late by it: that is the step's limit.
- Prompts fill the step up to that limit, or to `step_s`. Longer steps share the fixed cost of a
  step (reading the weights) among more tokens, so a step is as long as the paces allow.
- Prompts are taken in the order of the moment at which their decoding should begin (deadline less
  promised tokens at half of `step_s`): a deadline for the prompt's part of the work, which never
  changes, as in deadline decomposition of chains (Sun and Liu 1996).

Work without a promise (no deadline, or tokens beyond the promised ones) gets what promises leave
(slack stealing; Lehoczky and Ramos-Thuel 1992): while no promised prompt waits, it fills steps up
to the least pace; while one waits, it has its place only where a test shows that all promises would
hold even if it had one more full step. It is ordered by arrival, one level of priority being worth
`aging_s` of arrival, so that whatever waits long enough comes first: nothing starves but by
promises.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from subsecond.engine.cost import CostModel, StepShape
from subsecond.errors import InputError

STEP_S = 0.020  # a step that prompts may fill
PACE_S = STEP_S / 2  # of decoding, for the order of prompts: about the middle of what happens
FREE_STEP_S = 3 * STEP_S  # where nothing is in a hurry
HURRY_S = 10.0  # to its deadline; what has longer bears long steps
AGING_S = 5.0  # of arrival, that a level of priority is worth


class Item(msgspec.Struct, kw_only=True):
    """A request as the policy sees it. Whoever owns it keeps it up to date.

    id               tells items apart, and decides between equals
    prompt_left      tokens to compute before a token can be chosen; 0: it decodes, a token a step
    decode_left      tokens still to be chosen at most (one of them by the prompt's last step)
    context          positions that are computed
    deadline_s       when it must be answered (monotonic seconds); inf: whenever
    promised_tokens  tokens still to be chosen by then at least; 0: none is promised (any more)
    priority         larger first, among work that isn't promised
    arrival_s        when it came (monotonic seconds)
    choices          texts of it, each a row and a token a step
    """

    id: int
    prompt_left: int
    decode_left: int
    context: int = 0
    deadline_s: float = math.inf
    promised_tokens: int = 0
    priority: int = 0
    arrival_s: float = 0.0
    choices: int = 1

    @property
    def promised(self) -> bool:
        return self.promised_tokens > 0 and self.deadline_s < math.inf


class StepLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a step can hold, and what is kept free.

    tokens, sequences, rows: most of one step
    step_s     how long a step may be made by prompts (one and a half decode steps where that is
               longer, so that prompts always go on)
    free_step_s  the same where nothing has its deadline within `HURRY_S`: longer steps answer more,
               and whoever comes then waits for one at most
    guard_s    promised work aims at its deadline less this: what follows its last step (text,
               sending), and the rounding of steps to whole tokens
    aging_s    seconds of arrival that a level of priority is worth
    reserve    part of the machine that requests of negative priority may not be promised
    pace_kept  a request is promised only if waiting for others' prompts leaves it this part of the
               pace that it would decode with alone (or of step_s). Without this, an overloaded
               server promises whatever is just possible: texts that begin late and allow only short
               steps, in which the fixed cost weighs most; at 4 times its capacity it then answers
               30 % less than with 0.45
    positions  KV positions that promised work may hold together; `page` of them are one page
    """

    tokens: int
    sequences: int
    rows: int
    step_s: float = STEP_S
    free_step_s: float = FREE_STEP_S
    guard_s: float = 0.020
    aging_s: float = AGING_S
    reserve: float = 0.25
    pace_kept: float = 0.45
    positions: int = 1 << 40
    page: int = 64

    def __post_init__(self) -> None:
        for name in ("tokens", "sequences", "rows", "positions", "page"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; a step holds at least 1")
        for name, low, high in (
            ("step_s", 1e-6, 3600),
            ("free_step_s", 1e-6, 3600),
            ("guard_s", 0, 3600),
            ("aging_s", 0, 3600),
            ("reserve", 0, 100),
            ("pace_kept", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)}, not from {low:g} to {high:g}")


def next_step(
    items: Sequence[Item], now_s: float, cost: CostModel, limits: StepLimits
) -> list[tuple[Item, int]]:
    """The items of the next step and the tokens that each gets: its choices where it decodes, else
    a part of its prompt. Empty only if no item has anything left to do.

    items: with something left (prompt_left or decode_left above 0), in any order.
    """
    decoding: list[Item] = []
    prompts: list[Item] = []
    free: list[Item] = []
    least_pace = math.inf
    for item in items:
        if not item.promised or is_lost(item, now_s, cost):
            if item.prompt_left or item.decode_left:
                free.append(item)
        elif item.prompt_left:
            prompts.append(item)
        else:
            decoding.append(item)
            left = item.deadline_s - limits.guard_s - now_s
            least_pace = min(least_pace, left / item.promised_tokens)
    step = Step(cost, limits)
    decoding.sort(key=lambda item: (item.deadline_s, item.id))
    for item in decoding:
        step.decode(item)
    if free:
        free.sort(key=lambda item: (item.arrival_s - limits.aging_s * item.priority, item.id))
    hurried = is_hurried((item.deadline_s for item in items), now_s)
    longest = step.longest(limits.step_s if hurried else limits.free_step_s)
    limit = min(longest, least_pace)
    if prompts:
        prompts.sort(key=prompt_order(limits))
        if free and not _has_slack(decoding, prompts, now_s, cost, limits):
            free = []
    for item in free:
        if not item.prompt_left and (not (decoding or prompts) or step.fits(item, limit)):
            step.decode(item)
    if not decoding and not prompts:
        limit = step.longest(limits.step_s if hurried else limits.free_step_s)
    for item in (*prompts, *(item for item in free if item.prompt_left)):
        if not step.prompt(item, limit):
            break
    if not step.parts and items:  # nothing fits the limit: the first of all, whatever it takes
        step.one(next(iter((*prompts, *free)), None))
    return step.parts


def is_hurried(deadlines_s: Iterable[float], now_s: float) -> bool:
    """Whether anything has its deadline soon."""
    return any(deadline_s < now_s + HURRY_S for deadline_s in deadlines_s)


def longest_s(
    decoding: StepShape, cost: CostModel, limits: StepLimits, *, hurried: bool = True
) -> float:
    """How long prompts may make a step that has these decoding rows already. hurried: of what is in
    it (`is_hurried`).
    """
    one = cost.bound(decoding) if decoding.tokens else cost.factor * cost.table[1]
    return max(limits.step_s if hurried else limits.free_step_s, 1.5 * one)


def prompt_order(limits: StepLimits) -> _Order:
    """The key by which promised prompts are taken; it never changes while an item waits."""
    return _Order(limits.step_s / 2)


class _Order:
    """Sorts by the moment at which decoding should begin at the latest."""

    __slots__ = ("_pace_s",)

    def __init__(self, pace_s: float) -> None:
        self._pace_s = pace_s

    def __call__(self, item: Item) -> tuple[float, int]:
        return item.deadline_s - self._pace_s * item.promised_tokens, item.id


def is_lost(item: Item, now_s: float, cost: CostModel) -> bool:
    """Whether a promised item could not be in time even if the machine had nothing else to do, so
    that time spent on it first would only make others late too (the domino effect of scheduling by
    deadlines under overload).
    """
    table, c = cost.table, cost.coefficients
    each = table[1] + c.row_s * item.choices
    needs = item.promised_tokens * each
    if item.prompt_left:
        top = len(table) - 1
        whole, part = divmod(item.prompt_left, top)
        needs += whole * table[top] + table[part] - each
    return now_s + cost.scale * needs > item.deadline_s


class Step:
    """A step while it is put together: its parts, and what it costs so far."""

    __slots__ = ("_base", "_cost", "_limits", "_top", "parts", "rows", "sequences", "tokens")

    def __init__(self, cost: CostModel, limits: StepLimits) -> None:
        self._cost = cost
        self._limits = limits
        self._top = min(limits.tokens, len(cost.table) - 1)
        self._base = 0.0  # uncorrected seconds of all but the curve
        self.parts: list[tuple[Item, int]] = []
        self.tokens = self.rows = self.sequences = 0

    def longest(self, step_s: float) -> float:
        """How long prompts may make the step, whatever the paces: `step_s`, or longer where its
        decoding rows take most of that.
        """
        one = self._cost.table[max(self.tokens, 1)] + self._base
        return max(step_s, 1.5 * self._cost.factor * one)

    def fits(self, item: Item, limit: float) -> bool:
        """Whether the step with a decoding item more is no longer than `limit`."""
        tokens = self.tokens + item.choices
        if tokens > self._top:
            return False
        seconds = self._cost.table[tokens] + self._base + self._decode_s(item)
        return self._cost.factor * seconds <= limit

    def decode(self, item: Item) -> None:
        """Adds a decoding item, if the step can hold it."""
        count, limits = item.choices, self._limits
        if (
            self.tokens + count > self._top
            or self.sequences + count > limits.sequences
            or self.rows + count > limits.rows
        ):
            return
        self._base += self._decode_s(item)
        self.tokens += count
        self.sequences += count
        self.rows += count
        self.parts.append((item, count))

    def prompt(self, item: Item, limit: float) -> bool:
        """Adds as much of a prompt as fits; False if the step is full.

        It is full as soon as a prompt doesn't fit whole: a token of the next one, in the room that
        rounding leaves, would let that one decode too early, and shorten the steps of the first.
        """
        limits, c = self._limits, self._cost.coefficients
        if self.sequences + item.choices > limits.sequences:
            return True  # a later item may have fewer choices
        row_s = c.row_s * item.choices
        if self.rows + item.choices > limits.rows:
            return False
        fixed = self._base + row_s + c.stored_s * item.context
        room = chunk(self._cost, self.tokens, self._top, limit, fixed, item.context)
        count = min(room, item.prompt_left)
        if count <= 0:
            return False
        whole = count == item.prompt_left
        self._add_prompt(item, count)
        return whole

    def one(self, item: Item | None) -> None:
        """The first item of an empty step, as little of it as possible."""
        if item is None:
            return
        if item.prompt_left:
            self._add_prompt(item, 1)
        else:
            self.decode(item)

    def _add_prompt(self, item: Item, count: int) -> None:
        c = self._cost.coefficients
        self._base += c.position_s * (count * item.context + count * (count + 1) / 2)
        self._base += c.stored_s * (item.context + count)
        self.tokens += count
        self.sequences += item.choices
        if count == item.prompt_left:
            self._base += c.row_s * item.choices
            self.rows += item.choices
        self.parts.append((item, count))

    def _decode_s(self, item: Item) -> float:
        c = self._cost.coefficients
        position = (c.position_s + c.stored_s) * (item.context + 1)
        return item.choices * (c.row_s + position)


def chunk(cost: CostModel, tokens: int, top: int, limit: float, fixed: float, context: int) -> int:  # noqa: PLR0917
    """Tokens of a prompt that fit into a step of `limit` seconds beside `tokens` others, with
    `fixed` uncorrected seconds of all but the curve, and `context` positions stored before.

    Never more than fit: attention is counted for the tokens that would fit without it.
    """
    c, table = cost.coefficients, cost.table
    seconds = limit / cost.factor - fixed
    count = bisect_right(table, seconds, 0, top + 1) - 1 - tokens
    if count <= 0:
        return 0
    seconds -= count * (c.position_s * (context + (count + 1) / 2) + c.stored_s)
    return max(bisect_right(table, seconds, 0, top + 1) - 1 - tokens, 0)


def _has_slack(
    decoding: Sequence[Item],
    prompts: Sequence[Item],
    now_s: float,
    cost: CostModel,
    limits: StepLimits,
) -> bool:
    """Whether all promises hold even if this step and one more were given away: a sufficient test.

    It looks for a pace at which the prompts take n steps, and all items can do n more steps than
    their tokens in the time they have. At that pace or any longer one, promised work alone is in
    time.
    """
    c, guard = cost.coefficients, limits.guard_s
    rows = sum(item.choices for item in decoding) + sum(item.choices for item in prompts)
    stored = 0
    for item in (*decoding, *prompts):
        ends = item.context + item.prompt_left + item.promised_tokens
        stored += item.choices * ends
    if rows >= len(cost.table):
        return False
    fixed = rows * c.row_s + stored * (c.position_s + c.stored_s)
    decode_s = cost.factor * (cost.table[rows] + fixed)
    tokens = sum(item.prompt_left for item in prompts)
    deepest = max(item.context + item.prompt_left for item in prompts)
    top = min(limits.tokens, len(cost.table) - 1)
    pace = max(limits.step_s, 1.5 * decode_s)
    for _ in range(4):
        each = chunk(cost, rows, top, pace, fixed, deepest)
        if not each or pace < decode_s:
            return False
        steps = -(-tokens // each) + len(prompts) + 2
        bearable = min(
            (item.deadline_s - guard - now_s) / (item.promised_tokens + steps)
            for item in (*decoding, *prompts)
        )
        if bearable >= pace:
            return True
        pace = bearable
    return False
