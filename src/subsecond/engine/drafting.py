"""Which texts get drafts in the next step, how long ones, and whether they have paid.

Owns: what drafts cost and win, the account that bounds what they may lose, the drafts of each text.
Does not know: how a draft is guessed (`speculate`), how it is checked (the runtime: rows of one
sampler are chosen one after the other, each as if it had been a step of its own, so a text is the
same to the bit with drafts and without, greedy or sampled).

Times are in plain steps: what a step of the same texts takes without drafts. A draft of n tokens,
each of which is chosen with probability p if those before it were, wins p + p^2 + ... + p^n steps
of its text (of B texts that share the step, a B-th of that), and costs what n more rows take. Both
are measured:

- p of each text, by every guess: also by those that no step checks, since the text shows later what
  they would have won. So a text that can't be guessed costs no rows to know that, and one that
  begins to repeat itself is noticed.
- the cost of rows from steps with drafts, relative to plain steps of the same texts just before. It
  is known apart for each number of texts. Where many texts fill the step, rows cost more than any
  draft can win.

Estimates can be led astray, so an account bounds the loss: a text may lose what it has won, and
beyond that all texts together `LOSS` of their plain steps, and `CREDIT` steps once.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from subsecond.engine.pages import PAGE_POSITIONS
from subsecond.engine.report import step_shape
from subsecond.engine.request import SequenceState
from subsecond.engine.sharing import Work

if TYPE_CHECKING:
    from subsecond.engine.scheduler import Scheduler
    from subsecond.engine.speculate import Proposer

MOST = 15
"""Tokens of a draft: with the row that there is anyway, one tile of the prompts' kernels."""

ROW_COST = 0.08
"""Of a draft's row, before it is measured (0.03 to 0.2 were)."""

MOST_TEXTS = 8
"""With more texts a row costs more of a step than a draft can win of it: nobody guesses."""

LOSS = 0.005
CREDIT = 0.6
MOST_WON = 8.0  # of what a text has won, what it may lose again
UNKNOWN_ROWS = 3  # of a draft, before their cost is measured
MOST_OVER = 4.0  # times what was expected, while costs aren't known: a stall is no draft's doing
CAUTION = 0.8  # what is expected to be won must be worth its cost with so much of it
FORGET = 0.9  # a token's weight in p, after each one that follows
HOT_CHANCE, HOT_STEPS, CALL_COST = 0.55, 3, 0.08
"""A text with such a p is looked at again after so many steps, because a new guess may come of that
many tokens; what a call of few steps costs more than one of many.
"""
_FIRST = (0.5, 1.0)  # hits and trials that p begins with
_KEPT = 9  # measurements that a median is of
_OLD = 64  # steps


class RowCosts:
    """What a draft's rows cost in a step of so many texts: its first one, and each one more, which
    differ (one row more is computed with the same passes over the weights). Medians of the newest
    measurements, so that a machine that stands still now and then is no dearer.
    """

    def __init__(self) -> None:
        self._first: dict[int, deque[float]] = {}  # by texts
        self._more: dict[int, deque[float]] = {}
        self._texts: object = None  # whose plain step is known
        self._plain: deque[float] = deque(maxlen=_KEPT)
        self._age = 0  # steps with drafts since

    def of(self, texts: int, rows: int) -> float:
        """Cost of `rows` more rows in a step of `texts`, in plain steps."""
        if not rows:
            return 0.0
        cost = _median(self._first.get(texts))
        return cost + (rows - 1) * _median(self._more.get(texts)) if rows > 1 else cost

    def plain(self, texts: object, seconds: float) -> None:
        """A step of these texts without drafts took so long."""
        if self._texts != texts:
            self._texts = texts
            self._plain.clear()
        self._plain.append(seconds)
        self._age = 0

    def has_plain(self, texts: object) -> bool:
        """Whether the plain step of these texts was measured lately."""
        return self._texts == texts and self._age < _OLD

    def is_known(self, texts: int) -> bool:
        """Whether the cost of several rows was measured."""
        return len(self._more.get(texts, ())) > 2

    def drafted(self, texts: Sequence[object], rows: int, seconds: float) -> float | None:
        """A step of these texts with `rows` rows of drafts took so long; what they have cost. None
        where the plain step of these texts isn't known.
        """
        if self._texts != texts:
            return None
        self._age += 1
        cost = max(seconds / _median(self._plain) - 1, 0.0)
        if rows == 1:
            _kept(self._first, len(texts)).append(cost)
        else:
            more = (cost - self.of(len(texts), 1)) / (rows - 1)
            _kept(self._more, len(texts)).append(max(more, 0.0))
        return cost


def _kept(found: dict[int, deque[float]], texts: int) -> deque[float]:
    return found.setdefault(texts, deque((ROW_COST,), maxlen=_KEPT))


def _median(values: Sequence[float] | None) -> float:
    return statistics.median(values) if values else ROW_COST


class TextDrafts:
    """The guesses of one text, and what became of them. won: plain steps, above what was lost."""

    __slots__ = ("_draft", "_hits", "_length", "_proposer", "_trials", "number", "won")

    _numbers = itertools.count()

    def __init__(self, proposer: Proposer) -> None:
        self.number = next(self._numbers)  # unlike `id`, never used again
        self.won = 0.0
        self._proposer = proposer
        self._draft: list[int] = []
        self._length = 0  # of the text that `_draft` would follow
        self._hits, self._trials = _FIRST

    @property
    def chance(self) -> float:
        """The probability that a token of a draft is chosen, if those before it were."""
        return self._hits / self._trials

    def guess(self, tokens: Sequence[int]) -> list[int]:
        """What may follow, after a look at what became of the guess before."""
        for place, token in enumerate(self._draft, self._length):
            if place >= len(tokens):
                break
            hit = tokens[place] == token
            self._hits = FORGET * (self._hits - _FIRST[0]) + hit + _FIRST[0]
            self._trials = FORGET * (self._trials - _FIRST[1]) + 1 + _FIRST[1]
            if not hit:
                break
        self._draft = self._proposer.propose(tokens, MOST)
        self._length = len(tokens)
        return self._draft


@dataclass(frozen=True)
class _Checked:
    """A draft that a step checks. length: of the text before. cost: in plain steps."""

    text: SequenceState
    drafts: TextDrafts
    length: int
    rows: int
    cost: float


class Drafting:
    """Drafts of an engine's texts. proposer: makes the guesser of a text. drafted, accepted: tokens
    of drafts that steps have checked, and of them those that were chosen.
    """

    def __init__(self, proposer: Callable[[], Proposer], scheduler: Scheduler) -> None:
        self.costs = RowCosts()
        self.credit = CREDIT
        self.drafted = self.accepted = 0
        self.proposer = proposer
        self._scheduler = scheduler
        self._checked: list[_Checked] = []
        self._hot: TextDrafts | None = None  # a text of the step that is likely to be guessed soon
        self._texts: tuple[int, ...] = ()  # numbers of the texts of the step; (): it isn't watched

    def add(self, step: list[Work], now_s: float) -> list[Work]:
        """The step, with drafts where they are likely to pay. Only where every text decodes."""
        self._texts, self._hot = (), None
        self._checked.clear()
        if len(step) > MOST_TEXTS or not all(map(_decodes, step)):
            return step
        limits = self._scheduler.limits
        room = min(limits.rows, limits.tokens) - len(step)
        drafted: list[Work] = []
        numbers: list[int] = []
        before, spent = 0, 0.0
        for work in step:
            text = work.sequence
            drafts = text.drafts
            if drafts is None:
                drafts = text.drafts = TextDrafts(self.proposer())
            numbers.append(drafts.number)
            # A constraint's mask is of one row.
            draft = [] if text.constraint is not None else drafts.guess(text.tokens)
            if draft:
                most = min(len(draft), room - before, self._most(text, len(step)))
                rows, cost = self._rows(drafts, len(step), most, before, spent)
                if rows:
                    own = _Checked(text, drafts, len(text.tokens), rows, cost)
                    self._checked.append(own)
                    work = replace(work, draft=draft[:rows])  # noqa: PLW2901
                    before += rows
                    spent += max(0.0, cost - drafts.won)
            if drafts.chance > HOT_CHANCE:
                self._hot = drafts
            drafted.append(work)
        self._texts = tuple(numbers)
        if not self._checked:
            return step
        if not self.costs.has_plain(self._texts):
            self._hot = self._checked[0].drafts
        elif self._is_free(drafted, now_s):
            return drafted
        self._checked.clear()
        return step

    def steps(self, most: int) -> int:
        """How many steps a call should do, of the `most` that it may: fewer where a text is likely
        to be guessed soon.
        """
        hot = self._hot
        if hot is None or most <= HOT_STEPS or hot.won + self.credit < CREDIT / 2 + CALL_COST:
            return most
        self._win(hot, -CALL_COST)
        return HOT_STEPS

    def settle(self, step: Sequence[Work], steps: int, elapsed_s: float) -> tuple[int, int]:
        """What a call of `steps` steps has taken, and its texts have won; the tokens of drafts that
        it has checked, and of them those that were chosen. To be called when its tokens are
        appended.
        """
        checked = [own for own in self._checked if any(own.text is work.sequence for work in step)]
        whole = len(self._texts) == len(step)  # else it isn't watched, or some lost their pages
        if not checked:
            self.credit = min(CREDIT, self.credit + LOSS * steps)
            if whole:
                # As if the call had been as long as most are.
                most = self._scheduler.limits.steps
                each = elapsed_s / (steps + CALL_COST) * (1 + CALL_COST / most)
                self.costs.plain(self._texts, each)
            return 0, 0
        rows, expected = sum(own.rows for own in checked), sum(own.cost for own in checked)
        took = self.costs.drafted(self._texts, rows, elapsed_s) if whole else None
        over = 1.0
        if took is not None and expected and not self.costs.is_known(len(step)):
            over = min(took / expected, MOST_OVER)
        hits = 0
        for own in checked:
            chosen = max(0, len(own.text.tokens) - own.length - 1)
            hits += chosen
            own.text.request.drafted_tokens += own.rows
            own.text.request.accepted_tokens += chosen
            self._win(own.drafts, chosen / len(step) - over * own.cost)
        self.drafted += rows
        self.accepted += hits
        return rows, hits

    def _win(self, drafts: TextDrafts, steps: float) -> None:
        """Enters what a text has won, or lost: what it hasn't is of the credit."""
        won = drafts.won + steps
        self.credit += min(won, 0.0)
        drafts.won = min(max(won, 0.0), MOST_WON)

    def _rows(
        self, drafts: TextDrafts, texts: int, most: int, before: int, spent: float
    ) -> tuple[int, float]:
        """The length of a text's draft that wins most, as far as its loss could be borne, and what
        it costs. before: rows of others' drafts in the same step; spent: what they may lose of the
        credit.
        """
        costs = self.costs
        bearable = drafts.won + self.credit - spent
        if not costs.is_known(texts) and drafts.won < MOST_WON / 2:
            most = min(most, UNKNOWN_ROWS)
        best, best_cost, most_won = 0, 0.0, 0.0
        chance, value = 1.0, 0.0
        for rows in range(1, most + 1):
            chance *= drafts.chance
            value += chance / texts
            cost = costs.of(texts, before + rows) - costs.of(texts, before)
            if cost > bearable:
                break
            if CAUTION * value - cost > most_won:
                best, best_cost, most_won = rows, cost, CAUTION * value - cost
        return best, best_cost

    def _most(self, text: SequenceState, texts: int) -> int:
        """Tokens of a draft that the text could still take, and finds pages for without anybody
        losing some.
        """
        most = text.request.max_tokens - text.generated - 1
        pages = self._scheduler.pages
        if all(pool.available >= 2 * texts for pool in pages.pools):
            return most
        own = min(len(table.pages) for table in text.tables) * PAGE_POSITIONS
        return min(most, own - text.computed - 1)

    def _is_free(self, step: Sequence[Work], now_s: float) -> bool:
        """Whether no promise is worse off by a step with these drafts: one that has a deadline is
        only touched where the costs of steps are known, and what a step may take.
        """
        scheduler = self._scheduler
        sharing = scheduler.sharing
        if sharing is None:
            return all(work.sequence.request.deadline_s == math.inf for work in step)
        if scheduler.waiting or scheduler.unplaced or len(scheduler.active()) != len(step):
            return False
        return sharing.cost.bound(step_shape(step)) <= sharing.spare_s(step, now_s)


def _decodes(work: Work) -> bool:
    return work.count == 1 and work.sequence.generated > 0 and work.sequence.wanted == 1
