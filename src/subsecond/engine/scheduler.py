"""Which sequences get how many tokens in the next step.

Owns: the queue, the admission of requests, the token budget. Does not know: runtimes, sampling.
There are no phases: a sequence is (computed, wanted), so a prompt in chunks, a cached prefix and
decoding are one case.

No deadlock: a request starts when all the pages that it can ever need are promised to it, so that
whatever runs can finish; a request that can't be promised its pages even by an idle engine is
refused when it comes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from subsecond.engine.pages import Pages
from subsecond.engine.request import Request, SequenceState
from subsecond.errors import RequestError


@dataclass(frozen=True)
class Work:
    """`count` tokens of `sequence`, from its first token that isn't computed."""

    sequence: SequenceState
    count: int

    @property
    def completes(self) -> bool:
        """Whether a token can be chosen after it."""
        return self.count == self.sequence.wanted


@dataclass(frozen=True)
class Limits:
    """What one step can hold. steps: most steps of one call into the runtime."""

    tokens: int
    sequences: int
    rows: int
    steps: int
    context: int


class Scheduler:
    """Requests waiting in the order of their arrival, and running ones in the order of their
    admission.
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
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

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

    def has_place(self) -> bool:
        """Whether the sequences of the first waiting request fit beside those that run."""
        if not self.waiting:
            return False
        active = sum(request.params.n for request in self.running)
        return active + self.waiting[0].params.n <= self.limits.sequences

    def admit(self) -> bool:
        """Moves the first waiting request to the running ones; False if its pages can't be promised
        now.
        """
        request = self.waiting[0]
        need = self.need(request)
        if not self.pages.promise(need):
            return False
        request.promise = need
        self.running.append(request)  # before it leaves the queue: an interrupt never loses it
        self.waiting.popleft()
        return True

    def retire(self, request: Request) -> None:
        """Forgets a request that has ended, wherever it was; its tables are already closed."""
        if request in self.running:
            self.running.remove(request)
            self.pages.withdraw(request.promise)
            request.promise = []
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self) -> list[Work]:
        """The next step: every sequence that waits for one token, then prompts in order of
        admission.
        """
        active = [
            sequence
            for request in self.running
            for sequence in request.sequences
            if sequence.tables and sequence.finish_reason is None
        ]
        step = [Work(sequence, 1) for sequence in active if sequence.wanted == 1]
        budget = self.limits.tokens - len(step)
        for sequence in active:
            if sequence.wanted > 1 and budget > 0:
                count = min(sequence.wanted, budget)
                step.append(Work(sequence, count))
                budget -= count
        return step

    def steps(self, step: Sequence[Work]) -> int:
        """How many steps one call may do: several only if every row decodes, nobody waits for a
        place, and none has a deadline, which is looked at between calls.
        """
        limit = self.limits.steps
        for work in step:
            sequence = work.sequence
            if work.count != 1 or sequence.generated == 0:
                return 1
            if sequence.request.deadline_s < math.inf:
                return 1
            limit = min(limit, sequence.request.max_tokens - sequence.generated)
        return 1 if self.waiting else limit
