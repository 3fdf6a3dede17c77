"""Which sequences get how many tokens in the next step.

Owns: the queue, the order of requests, the token budget, who yields when pages run out. Does not
know: runtimes, sampling. There are no phases: a sequence is (computed, wanted), so a prompt in
chunks, a cached prefix, a text that is computed again and decoding are one case.

Requests have an order: those with a deadline, whose place is promised, before those without. The
former by the moment at which their decoding should begin; the latter by arrival, a level of
priority being worth `AGING_S` of it, so that whatever waits long enough comes first; the texts of
one request by their choice. Pages are given as positions need them. When they run out, the last
text that has pages yields: it gives them back and waits in its old place. So no text yields to one
that comes after it, and the first one always goes on, in the end alone, where it fits: what doesn't
fit alone is refused when it comes.

Who has pages shares the step: first come, first served, or by `sharing` where promises are kept.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from subsecond.engine.pages import Pages, page_count
from subsecond.engine.policy import AGING_S, PACE_S
from subsecond.engine.request import Rank, Request, SequenceState
from subsecond.engine.sharing import Sharing, Work
from subsecond.errors import RequestError


@dataclass(frozen=True)
class Limits:
    """What one step can hold. steps: most steps of one call into the runtime."""

    tokens: int
    sequences: int
    rows: int
    steps: int
    context: int


class Scheduler:
    """Requests that wait and requests that run, each in order. unplaced: texts of running requests
    that wait for pages, in order; `sequence.tables` tells: a text with tables is placed.
    """

    def __init__(self, pages: Pages, limits: Limits) -> None:
        if limits.sequences > min(limits.tokens, limits.rows):
            raise RequestError(
                f"{limits.sequences} sequences need at least as many tokens ({limits.tokens}) and "
                "logit rows "
                f"({limits.rows}) a step",
                "max_sequences",
            )
        self.pages = pages
        self.limits = limits
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.unplaced: list[SequenceState] = []
        self.sharing: Sharing | None = None
        self._arrivals = 0

    def check(self, request: Request) -> None:
        """RequestError if the request could never run."""
        prompt, limits = len(request.prompt), self.limits
        if prompt + request.max_tokens > limits.context:
            raise RequestError(
                f"the prompt has {prompt} tokens and max_tokens is {request.max_tokens}: together "
                f"{prompt + request.max_tokens}, more than the context of {limits.context}",
                "prompt" if prompt >= limits.context else "max_tokens",
            )
        if request.params.n > limits.sequences:
            raise RequestError(
                f"n is {request.params.n}; at most {limits.sequences} sequences run together; "
                f"lower n, or load the model with LLM(max_sequences={request.params.n})",
                "n",
            )
        need = self.need(request)
        if not self.pages.fits(need):
            raise RequestError(
                f"the request needs {max(need)} KV pages of 64 positions, the cache holds "
                f"{min(pool.size for pool in self.pages.pools)}; lower max_tokens or n",
                "max_tokens",
            )

    def need(self, request: Request) -> list[int]:
        """Most pages that the request can hold, one number a cache group."""
        step = max(self.limits.tokens, self.limits.steps)
        last_stored = request.sequences[0].last_stored
        return self.pages.worst_case(len(request.prompt), last_stored, request.params.n, step)

    def submit(self, request: Request) -> None:
        """Queues a checked request."""
        self._arrivals += 1
        if request.deadline_s < math.inf:
            begins_s = request.deadline_s - PACE_S * request.promised_tokens
            request.rank = (False, begins_s, self._arrivals)
        else:
            comes_s = request.arrival_s - AGING_S * request.priority
            request.rank = (True, comes_s, self._arrivals)
        insort(self.waiting, request, key=_rank)

    def next_text(self) -> SequenceState | None:
        """The first text that waits for pages. None too while it is better computed a little
        later: when the prompt of an earlier text of its request is, whose pages it can share.
        """
        text = self.unplaced[0] if self.unplaced else None
        if self.waiting and (text is None or self.waiting[0].rank < text.request.rank):
            return _texts(self.waiting[0])[0]
        if text is not None:
            for other in text.request.sequences:
                if other.tables and other.computed < len(text.request.prompt):
                    return None
        return text

    def has_place(self, text: SequenceState, *, yielding: bool = False) -> bool:
        """Whether the sequences of the text's request fit beside those that run. yielding: if all
        that come after it yielded.
        """
        if text in self.unplaced:
            return True
        rank = text.request.rank
        stay = (own for own in self.running if not yielding or own.rank < rank)
        active = sum(request.params.n for request in stay)
        return active + text.request.params.n <= self.limits.sequences

    def has_pages(
        self, text: SequenceState, uses: Sequence[tuple[int, int]], *, yielding: bool = False
    ) -> bool:
        """Whether a text finds pages for all its tokens and one page more, beside what the prompts
        of placed texts still need. yielding: if all of later requests yielded (True may be wrong,
        where those share pages).

        uses: for each group, how many cached pages it has already, and how many of them are idle.
        """
        stay: list[SequenceState] = []
        yielded: list[SequenceState] = []
        for request in self.running:
            own = yielded if yielding and request.rank > text.request.rank else stay
            own += [placed for placed in request.sequences if placed.tables]
        for index, (pool, (cached, idle)) in enumerate(zip(self.pages.pools, uses, strict=True)):
            need = self._pages_of(text, index, more=1) - cached
            for placed in stay:
                if placed.wanted > 1:
                    need += max(0, self._pages_of(placed, index) - placed.tables[index].held)
            freed = sum(placed.tables[index].held for placed in yielded)
            if need > pool.available - idle + freed:
                return False
        return True

    def last_placed(self) -> SequenceState | None:
        """The text that yields when pages run out; None if none has any."""
        for request in reversed(self.running):
            for text in reversed(request.sequences):
                if text.tables:
                    return text
        return None

    def place(self, text: SequenceState) -> None:
        """A text of `next_text` is about to get pages: its request runs."""
        request = text.request
        if text in self.unplaced:
            self.unplaced.remove(text)
            return
        insort(self.running, request, key=_rank)  # before it leaves the queue: an interrupt never
        self.waiting.remove(request)  # loses it
        for other in _texts(request)[1:]:
            insort(self.unplaced, other, key=_text_rank)

    def displace(self, text: SequenceState) -> None:
        """A text has lost its pages, and waits in its old place."""
        request = text.request
        if any(other.tables for other in request.sequences):
            insort(self.unplaced, text, key=_text_rank)
            return
        insort(self.waiting, request, key=_rank)
        self.running.remove(request)
        self.unplaced = [other for other in self.unplaced if other.request is not request]

    def retire(self, text: SequenceState) -> None:
        """Forgets a text that has ended, wherever it was, and with its last one the request; its
        tables are already closed.
        """
        request = text.request
        if text in self.unplaced:
            self.unplaced.remove(text)
        if not request.finished:
            return
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def active(self) -> list[SequenceState]:
        """Texts that have pages and haven't ended, in their order."""
        return [
            sequence
            for request in self.running
            for sequence in request.sequences
            if sequence.tables and sequence.finish_reason is None
        ]

    def schedule(self, now_s: float) -> list[Work]:
        """The next step: every sequence that waits for one token, then prompts in their order; or
        what `sharing` gives them at `now_s`.
        """
        active = self.active()
        if self.sharing is not None:
            return self.sharing.share(active, now_s)
        step = [Work(sequence, 1) for sequence in active if sequence.wanted == 1]
        budget = self.limits.tokens - len(step)
        for sequence in active:
            if sequence.wanted > 1 and budget > 0:
                count = min(sequence.wanted, budget)
                step.append(Work(sequence, count))
                budget -= count
        return step

    def steps(self, step: Sequence[Work]) -> int:
        """How many steps one call may do: several only if every row decodes without a draft, nobody
        waits for a place, and none has a deadline, which is looked at between calls.
        """
        limit = self.limits.steps
        for work in step:
            sequence = work.sequence
            if work.count != 1 or work.draft or sequence.generated == 0:
                return 1
            if sequence.request.deadline_s < math.inf or sequence.constraint is not None:
                return 1
            limit = min(limit, sequence.request.max_tokens - sequence.generated)
        return 1 if self.waiting or self.unplaced else limit

    def _pages_of(self, text: SequenceState, index: int, more: int = 0) -> int:
        """Pages of a group that all the text's tokens need, and `more`, if it can ever use them."""
        most = page_count(text.last_stored)
        window = self.pages.groups[index].window
        if window:
            step = max(self.limits.tokens, self.limits.steps)
            most = min(most, page_count(window + step) + 1)
        return min(page_count(len(text.tokens)) + more, most)


def _texts(request: Request) -> list[SequenceState]:
    """The texts that can be computed by themselves: the first, and those that have begun."""
    return [
        text
        for text in request.sequences
        if text.finish_reason is None and (text.choice == 0 or text.generated)
    ]


def _rank(request: Request) -> Rank:
    return request.rank


def _text_rank(text: SequenceState) -> tuple[Rank, int]:
    return text.request.rank, text.choice
