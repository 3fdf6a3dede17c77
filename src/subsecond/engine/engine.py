"""The loop: schedule, run, commit.

Owns: what a step computes, the sequences' progress, kept prefixes. Does not know: text, kernels,
clients. Not thread-safe; whoever shares an engine locks it. `interrupt` alone may be called from
other threads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from subsecond.engine.pages import Pages, PageTable
from subsecond.engine.plan_writer import PlanWriter
from subsecond.engine.report import PageUse, StepReport, page_use, step_shape
from subsecond.engine.request import Logprob, Request, SequenceState
from subsecond.engine.scheduler import Limits, Scheduler, Work
from subsecond.errors import RequestError, RuntimeFailure, SubsecondError

if TYPE_CHECKING:
    from subsecond.engine.runner import Runner

# Plan.finish: the row chose one of its stop ids; its logits are NaN or infinite; every token is
# forbidden to it.
STOP, BROKEN, NONE_ALLOWED = 1, 3, 4


@dataclass(eq=False)
class Kept:
    """A text whose pages stay after its end, so that a request with the same beginning needn't
    compute it again.
    """

    tokens: list[int]
    tables: list[PageTable]
    promise: list[int]


class Engine:
    """Runs requests on a runner. steps_per_call: most decode steps of one call into the runtime."""

    def __init__(self, runner: Runner, *, context: int, steps_per_call: int = 8) -> None:
        self.runner = runner
        self.pages = Pages(runner.groups, runner.pages_per_group, runner.copy_page)
        limits = Limits(
            tokens=runner.max_tokens,
            sequences=runner.max_sequences,
            rows=runner.max_rows,
            steps=min(steps_per_call, runner.max_steps),
            context=context,
        )
        self.scheduler = Scheduler(self.pages, limits)
        self.kept: list[Kept] = []  # oldest first
        self.plan = PlanWriter(runner)

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self.scheduler.limits.context

    def check(self, request: Request) -> None:
        """RequestError if the request could never run."""
        self.scheduler.check(request)

    def submit(self, request: Request) -> None:
        """Queues a request; RequestError if it could never run."""
        self.check(request)
        self.scheduler.waiting.append(request)

    def step(self) -> StepReport | None:
        """One call into the runtime, and its outcome in the requests' sequences. None if nobody
        waits.
        """
        start_s = time.monotonic()
        self._admit()
        step = self.scheduler.schedule()
        if not step:
            if self.scheduler.running or self.scheduler.waiting:
                raise RuntimeFailure("requests wait, but no step can be formed")
            return None
        shape = step_shape(step)
        max_steps = self.scheduler.steps(step)
        rows = self._fill(step, max_steps)
        tokens = sum(work.count for work in step)
        done = self.runner.run(tokens, len(step), len(rows), max_steps)
        self._commit(step, rows, done)
        return StepReport(shape, done, time.monotonic() - start_s, rows)

    def expire(self, now_s: float, step_s: float) -> list[SequenceState]:
        """Ends the texts that must not have another step, which would take `step_s` seconds
        (`SequenceState.is_due`), with the reason "deadline"; those texts.
        """
        scheduler = self.scheduler
        due = [
            sequence
            for requests in (scheduler.waiting, scheduler.running)
            for request in requests
            if request.deadline_s <= now_s + step_s
            for sequence in request.sequences
            if sequence.finish_reason is None and sequence.is_due(now_s, step_s)
        ]
        for sequence in due:
            self.finish(sequence, "deadline")
        return due

    def page_use(self) -> PageUse:
        """Where the KV pages are."""
        return page_use(self.pages, [kept.tables for kept in self.kept])

    def cancel(self, request: Request) -> None:
        """Ends every text of the request that is still running."""
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                self.finish(sequence, "cancelled")

    def finish(self, sequence: SequenceState, reason: str) -> None:
        """Ends one text and gives its pages back; with its last text, the request ends."""
        sequence.finish_reason = reason
        sequence.sampler = None
        request = sequence.request
        if request.keep and sequence.computed:
            self._keep(sequence)
        elif sequence.tables:
            self.pages.close(sequence.tables)
        sequence.tables = []
        if request.finished:
            request.finished_s = time.monotonic()
            self.scheduler.retire(request)

    def interrupt(self) -> None:
        """Ends the running call after the step that it is in (no call runs: the next one after its
        first step). May be called from any thread.
        """
        self.plan.stop()

    def reset(self) -> None:
        """Makes the engine whole after an exception that came from outside in the middle of a step
        (Ctrl-C): what ran fails, what waits goes on waiting, kept texts stay as far as their pages
        are there. Can itself be interrupted, and done again.
        """
        for request in list(self.scheduler.running):
            for sequence in request.sequences:
                tables = sequence.tables
                if sequence.finish_reason is None and request.keep and sequence.computed:
                    self.kept.append(Kept(sequence.tokens[: sequence.computed], tables, []))
                sequence.sampler, sequence.tables = None, []
                if sequence.finish_reason is None:
                    sequence.finish_reason = "cancelled"
                    request.error = RuntimeFailure(
                        "the step that computed this text was interrupted; ask again"
                    )
            request.promise = []
            request.finished_s = time.monotonic()
            if request in self.scheduler.waiting:  # interrupted while it was admitted
                self.scheduler.waiting.remove(request)
            self.scheduler.running.remove(request)
        held: dict[int, Kept] = {}  # a text is kept once, whatever was interrupted
        for kept in self.kept:
            if self.pages.cover(kept.tables, len(kept.tokens)):
                kept.promise = [len(table.pages) - table.first for table in kept.tables]
                held[id(kept.tables)] = kept
        self.kept = list(held.values())
        self.pages.recount(
            [kept.tables for kept in self.kept], [kept.promise for kept in self.kept]
        )
        self.plan.clear_samplers()

    def has_room(self, tokens: int) -> bool:
        """Whether `logits` of so many tokens finds its KV pages: False while generations hold
        them.
        """
        need = self._score_need(tokens)
        running = [request.promise for request in self.scheduler.running]
        return self.pages.fits([sum(each) for each in zip(need, *running, strict=True)])

    def logits(self, token_ids: Sequence[int], out: memoryview[float]) -> None:
        """Logits after every token: float32 [len(token_ids) * vocab_size] into `out`. Tokens are
        checked ids, for which there is room (`has_room`). RuntimeFailure naming the first position
        whose logits are NaN or infinite.
        """
        need, tables = self._score_need(len(token_ids)), self.pages.open()
        promised = False
        size, vocab = min(self.runner.max_rows, self.runner.max_tokens), self.runner.vocab_size
        try:
            while not (promised := self.pages.promise(need)):
                if not self.kept:
                    raise RuntimeFailure(
                        "unfinished generations hold the KV cache; finish or close them first"
                    )
                self._drop(self.kept[0])
            for start in range(0, len(token_ids), size):
                chunk = token_ids[start : start + size]
                self._place(
                    0, chunk, position=start, begin=0, tables=tables, end=start + len(chunk)
                )
                self.plan.set_rows(range(len(chunk)), [None] * len(chunk))
                self.runner.run(len(chunk), 1, len(chunk), 1)
                broken = self.runner.logits(out[start * vocab : (start + len(chunk)) * vocab])
                if broken >= 0:
                    raise _not_finite(start + broken)
                self.pages.slide(tables, start + len(chunk))
        finally:
            self.pages.close(tables)
            if promised:
                self.pages.withdraw(need)

    def _score_need(self, tokens: int) -> list[int]:
        """Most pages that `logits` holds, one number a cache group."""
        return self.pages.worst_case(tokens, tokens, 1, self.runner.max_rows)

    def _admit(self) -> None:
        """Starts waiting requests, in order, while there are places and pages for them.

        A kept text is shared with a request that begins like it. It never stands in the way of one:
        where pages don't suffice for both, its pages count as the request's own, else the oldest
        kept text goes.
        """
        scheduler = self.scheduler
        while scheduler.has_place():
            request = scheduler.waiting[0]
            prefix, common = self._kept_prefix(request.prompt)
            beside = prefix is not None and not _continues(request, prefix, common)
            if beside and scheduler.admit():
                self._start(request, prefix, common, share=True)
                continue
            if prefix is not None:
                self.pages.withdraw(prefix.promise)
            admitted = scheduler.admit()
            if prefix is not None and not admitted:
                self.pages.promise(prefix.promise)
            if admitted:
                self._start(request, prefix, common)
                continue
            others = [kept for kept in self.kept if kept is not prefix] or self.kept
            if not others:
                return
            self._drop(others[0])

    def _start(
        self, request: Request, prefix: Kept | None, common: int, *, share: bool = False
    ) -> None:
        """Gives an admitted request its pages: those of `prefix` up to position `common`, shared
        with it or taken from it, where it has one.
        """
        first = request.sequences[0]
        first.tables = self.pages.open()
        if prefix is not None:
            tables = self.pages.fork(prefix.tables) if share else prefix.tables
            if self.pages.cut(tables, common):
                first.tables = tables
                first.computed = request.cached_tokens = common
            else:  # positions that the prompt's end sees have left the window
                self.pages.close(tables)
            if not share:
                self.kept.remove(prefix)
        first.sampler = self.runner.sampler(request, 0)
        request.scheduled_s = time.monotonic()

    def _kept_prefix(self, prompt: Sequence[int]) -> tuple[Kept | None, int]:
        """The kept text with the longest common beginning, and its length; the prompt's last token
        isn't in it.
        """
        best, longest = None, 0
        for kept in self.kept:
            common = min(_common_length(kept.tokens, prompt), len(prompt) - 1)
            if common > longest:
                best, longest = kept, common
        return best, longest

    def _keep(self, sequence: SequenceState) -> None:
        held = [len(table.pages) - table.first for table in sequence.tables]
        self.pages.withdraw(sequence.request.promise)
        sequence.request.promise = [0] * len(held)
        self.pages.promise(held)
        self.kept.append(Kept(sequence.tokens[: sequence.computed], sequence.tables, held))

    def _drop(self, kept: Kept) -> None:
        self.kept.remove(kept)
        self.pages.close(kept.tables)
        self.pages.withdraw(kept.promise)

    def _fill(self, step: Sequence[Work], max_steps: int) -> list[SequenceState]:
        """Writes the plan; the sequences that get a token, in the order of the rows."""
        rows: list[SequenceState] = []
        places: list[int] = []
        begin = 0
        for index, work in enumerate(step):
            sequence, count = work.sequence, work.count
            start = sequence.computed
            self._place(
                index,
                sequence.tokens[start : start + count],
                position=start,
                begin=begin,
                tables=sequence.tables,
                end=start + count + max_steps - 1,
            )
            begin += count
            if work.completes:
                choices = self._choices(sequence)
                rows += choices
                places += [begin - 1] * len(choices)
        self.plan.set_rows(places, [sequence.sampler for sequence in rows])
        return rows

    def _place(
        self,
        index: int,
        tokens: Sequence[int],
        *,
        position: int,
        begin: int,
        tables: list[PageTable],
        end: int,
    ) -> None:
        """Sequence `index` of the plan: its tokens from place `begin` on, pages for all positions
        below `end`.
        """
        self.pages.extend(tables, position, end)
        self.plan.set_sequence(index, tokens, position=position, begin=begin, tables=tables)

    def _choices(self, sequence: SequenceState) -> list[SequenceState]:
        """The sequences that choose a token after this one's last: itself, and the forks that begin
        here.
        """
        if sequence.generated or sequence.request.params.n == 1:
            return [sequence]
        for fork in sequence.request.sequences[1:]:
            if fork.finish_reason is None:
                fork.sampler = self.runner.sampler(fork.request, fork.choice)
        return [choice for choice in sequence.request.sequences if choice.finish_reason is None]

    def _commit(self, step: Sequence[Work], rows: Sequence[SequenceState], done: int) -> None:
        for work in step:
            work.sequence.computed += work.count
        for sequence in rows:
            first = sequence.request.sequences[0]
            if not sequence.tables:  # a fork begins
                sequence.tables = self.pages.fork(first.tables)
                sequence.computed = first.computed
        now = time.monotonic()
        for row, sequence in enumerate(rows):
            if sequence.generated == 0:
                sequence.request.first_token_s = now
            self._accept(sequence, row, len(rows), done)
        for work in step:
            if work.sequence.tables:
                self.pages.slide(work.sequence.tables, work.sequence.computed)

    def _accept(self, sequence: SequenceState, row: int, rows: int, done: int) -> None:
        """Appends the tokens chosen in a row, and ends the text if it has ended."""
        request = sequence.request
        if sequence.finish_reason is not None:  # another text of its request has failed
            return
        wants_logprobs = request.params.logprobs is not None
        for index in range(done):
            token = self.plan.sampled[index * rows + row]
            if token < 0:
                break
            sequence.tokens.append(token)
            if wants_logprobs:
                logprob, top = sequence.sampler.logprobs(index)
                sequence.logprobs.append(Logprob(token, logprob, tuple(top)))
        sequence.computed = len(sequence.tokens) - 1  # the last chosen token hasn't been computed
        outcome = self.plan.finish[row]
        if outcome == STOP:
            self.finish(sequence, "stop")
        elif outcome == BROKEN:
            self._fail(request, _not_finite(len(sequence.tokens) - 1))
        elif outcome == NONE_ALLOWED:
            message = "logit_bias and min_tokens together forbid every token"
            self._fail(request, RequestError(message, "logit_bias"))
        elif sequence.generated >= request.max_tokens:
            self.finish(sequence, "length")
        else:
            self.pages.slide(sequence.tables, sequence.computed)

    def _fail(self, request: Request, error: SubsecondError) -> None:
        """Ends a request by its own fault; the others go on."""
        request.error = error
        self.cancel(request)


def _not_finite(position: int) -> RuntimeFailure:
    """The model computed no numbers. NaN weights are refused when a model is converted, so a value
    became too large.
    """
    return RuntimeFailure(
        f"the model's logits after token {position} (counted from 0) are NaN or infinite: a value "
        "overflowed; try kv='f32' or weights='f32', and check the checkpoint"
    )


def _continues(request: Request, kept: Kept, common: int) -> bool:
    """Whether a request is the next turn of a kept text, which it replaces, and not another text
    with the same beginning (a system message, say). A template may write the last turn anew.
    """
    return request.keep and 2 * common >= len(kept.tokens)


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens the beginnings share."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(index for index in range(length) if left[index] != right[index])
