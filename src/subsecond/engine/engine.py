"""The loop: schedule, run, commit.

Owns: what a step computes, the sequences' progress. Does not know: text, kernels, clients. Not
thread-safe; whoever shares an engine locks it. `interrupt` alone may be called from other threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from subsecond.engine.all_logits import all_logits
from subsecond.engine.constraint import MAX_CLOSING_TOKENS
from subsecond.engine.drafting import Drafting
from subsecond.engine.faults import none_allowed, not_finite
from subsecond.engine.pages import PAGE_POSITIONS, Pages
from subsecond.engine.plan_writer import PlanWriter
from subsecond.engine.prefix import Hit, PrefixCache
from subsecond.engine.report import PageUse, StepReport, page_use, step_shape
from subsecond.engine.request import CLOSING_S, Logprob, Request, SequenceState
from subsecond.engine.scheduler import Limits, Scheduler
from subsecond.engine.scoring import Scores, known_positions, trimmed
from subsecond.engine.sharing import Sharing, Work
from subsecond.errors import RuntimeFailure, SubsecondError

if TYPE_CHECKING:
    from collections.abc import Callable

    from subsecond.engine.constraint_state import Grammars
    from subsecond.engine.runner import Runner
    from subsecond.engine.speculate import Proposer

# Plan.finish: the row chose one of its stop ids; its logits are NaN or infinite; every token is
# forbidden to it.
STOP, BROKEN, NONE_ALLOWED = 1, 3, 4

NEVER = 2**62  # tokens


class Engine:
    """Runs requests on a runner. steps_per_call: most decode steps of one call into the runtime.
    most_idle: KV pages of a cache group in which texts that have ended may stay known before their
    memory is used again; None: all. proposer: makes what guesses how a text goes on; None: nobody
    does, and every step of a text gives one token.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        context: int,
        steps_per_call: int = 8,
        most_idle: int | None = None,
        proposer: Callable[[], Proposer] | None = None,
    ) -> None:
        self.runner = runner
        # Makes constraints ready; whoever loads a model for a server gives it its vocabulary.
        self.grammars: Grammars | None = None
        self.pages = Pages(runner.groups, runner.pages_per_group, runner.copy_page, most_idle)
        limits = Limits(
            tokens=runner.max_tokens,
            sequences=runner.max_sequences,
            rows=runner.max_rows,
            steps=min(steps_per_call, runner.max_steps),
            context=context,
        )
        self.scheduler = Scheduler(self.pages, limits)
        self.prefixes = PrefixCache(self.pages)
        self.plan = PlanWriter(runner)
        self.drafting = None if proposer is None else Drafting(proposer, self.scheduler)

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self.scheduler.limits.context

    def keep_promises(self, sharing: Sharing) -> None:
        """From the next step on, shares steps so that promised deadlines are kept."""
        self.scheduler.sharing = sharing

    def check(self, request: Request) -> None:
        """RequestError if the request could never run."""
        self.scheduler.check(request)

    def submit(self, request: Request) -> None:
        """Queues a request; RequestError if it could never run."""
        self.check(request)
        self.scheduler.submit(request)

    def step(self) -> StepReport | None:
        """One call into the runtime, and its outcome in the requests' sequences. None if nobody
        waits.
        """
        start_s = time.monotonic()
        self._admit()
        step = self.scheduler.schedule(start_s)
        if not step:
            if self.scheduler.running or self.scheduler.waiting:
                raise RuntimeFailure("requests wait, but no step can be formed")
            return None
        step = trimmed(step, self.runner.max_rows)
        if self.drafting is not None:
            step = self.drafting.add(step, start_s)
        max_steps = self.scheduler.steps(step)
        if self.drafting is not None:
            max_steps = self.drafting.steps(max_steps)
        step = self._supply(step, max_steps)
        shape = step_shape(step)
        scores = Scores()
        rows = self._fill(step, scores)
        tokens = sum(work.size for work in step)
        done = self.runner.run(tokens, len(step), len(rows) + len(scores), max_steps)
        scores.commit()
        self._commit(step, rows, done)
        begun = [work.sequence for work in step if work.sequence.wanted > 1]
        elapsed_s, drafted, accepted = time.monotonic() - start_s, 0, 0
        if self.drafting is not None:
            drafted, accepted = self.drafting.settle(step, done, elapsed_s)
            rows = list(dict.fromkeys(rows)) if drafted else rows
        return StepReport(shape, done, elapsed_s, rows, begun, drafted, accepted)

    def expire(self, now_s: float, step_s: float) -> list[SequenceState]:
        """Ends the texts that must not have another step, which would take `step_s` seconds
        (`SequenceState.is_due`), with the reason "deadline"; those texts.
        """
        scheduler = self.scheduler
        due = [
            sequence
            for requests in (scheduler.waiting, scheduler.running)
            for request in requests
            if request.deadline_s <= now_s + step_s + CLOSING_S
            for sequence in request.sequences
            if sequence.finish_reason is None and sequence.is_due(now_s, step_s)
        ]
        for sequence in due:
            self._close(sequence)
            if sequence.finish_reason is None:
                self.finish(sequence, "deadline")
        return due

    def _close(self, sequence: SequenceState) -> None:
        """Appends what a text with a constraint needs to fit it, if it may end early. No step is
        needed for that: what closes a text is not for the model to choose.
        """
        state, request = sequence.constraint, sequence.request
        enough = sequence.generated >= max(1, request.promised_tokens)
        if state is None or request.on_deadline != "finish" or not enough:
            return
        tokens = state.closing(min(MAX_CLOSING_TOKENS, request.max_tokens - sequence.generated))
        if tokens is None:
            self._fail(request, RuntimeFailure("the answer could not be closed by its deadline"))
        else:
            sequence.tokens += tokens

    def warm(self, pages: int) -> None:
        """Has the system give the memory of the first `pages` KV pages of every cache group, by
        writing those that are free; steps prefer them from now on. To be called between steps: a
        page that is touched first in a step delays it, on a virtual machine by 2 to 20 ms for each
        2 MiB.
        """
        for group, pool in enumerate(self.pages.pools):
            for page in range(pool.warm if pool.warm < pool.size else 0, min(pages, pool.size)):
                if pool.is_free(page):
                    self.runner.copy_page(group, max(0, page - 1), page)
            pool.warm = min(pages, pool.size)

    def page_use(self) -> PageUse:
        """Where the KV pages are."""
        return page_use(self.pages)

    def cancel(self, request: Request) -> None:
        """Ends every text of the request that is still running, the first one last: an interrupt
        must not leave texts that would begin as its forks.
        """
        for sequence in reversed(request.sequences):
            if sequence.finish_reason is None:
                self.finish(sequence, "cancelled")

    def finish(self, sequence: SequenceState, reason: str) -> None:
        """Ends one text and gives its pages back; with its last text, the request ends."""
        sequence.finish_reason = reason
        sequence.sampler = sequence.constraint = None
        if sequence.tables:
            self._give_back(sequence)
        request = sequence.request
        if request.finished:
            request.finished_s = time.monotonic()
        self.scheduler.retire(sequence)

    def interrupt(self) -> None:
        """Ends the running call after the step that it is in (no call runs: the next one after its
        first step). May be called from any thread.
        """
        self.plan.stop()

    def reset(self) -> None:
        """Makes the engine whole after an exception that came from outside in the middle of a step
        (Ctrl-C): what ran fails, what waits goes on waiting, what was computed stays known. Can
        itself be interrupted, and done again.
        """
        scheduler = self.scheduler
        self.prefixes.rebuild()
        for request in list(scheduler.running):
            for sequence in request.sequences:
                if sequence.finish_reason is None and sequence.tables and sequence.entry:
                    self._publish_end(sequence)
                sequence.sampler, sequence.tables, sequence.entry = None, [], None
                if sequence.finish_reason is None:
                    sequence.finish_reason = "cancelled"
                    request.error = RuntimeFailure(
                        "the step that computed this text was interrupted; ask again"
                    )
            request.finished_s = time.monotonic()
            if request in scheduler.waiting:  # interrupted on its way from one to the other
                scheduler.waiting.remove(request)
            scheduler.running.remove(request)
        scheduler.unplaced = []
        scheduler.waiting = [request for request in scheduler.waiting if not request.finished]
        self.prefixes.rebuild()
        self.plan.clear_samplers()

    def has_room(self, tokens: int) -> bool:
        """Whether `logits` of so many tokens finds its KV pages: False while generations hold
        them.
        """
        need = self.pages.worst_case(tokens, tokens, 1, self.runner.max_rows)
        return all(
            pages <= pool.available for pages, pool in zip(need, self.pages.pools, strict=True)
        )

    def logits(self, token_ids: Sequence[int], out: memoryview[float]) -> None:
        """Logits after every token: float32 [len(token_ids) * vocab_size] into `out`. Tokens are
        checked ids, for which there is room (`has_room`). RuntimeFailure naming the first position
        whose logits are NaN or infinite.
        """
        all_logits(self.pages, self.plan, self.runner, token_ids, out)

    def _admit(self) -> None:
        """Places waiting texts, in order, while there are places and pages for them. What comes
        after a text doesn't stand in its way.
        """
        scheduler = self.scheduler
        while (text := scheduler.next_text()) is not None:
            while not scheduler.has_place(text):
                if not (scheduler.has_place(text, yielding=True) and self._make_room(text)):
                    return
            while True:
                most = known_positions(text)
                hit = self.prefixes.find(text.request.tenant, text.tokens, most)
                uses = self.prefixes.uses(hit)
                if scheduler.has_pages(text, uses):
                    break
                if not (scheduler.has_pages(text, uses, yielding=True) and self._make_room(text)):
                    return
            scheduler.place(text)
            self._start(text, hit)

    def _make_room(self, text: SequenceState) -> bool:
        """Preempts the last placed text if its request comes after this one's; whether it does."""
        last = self.scheduler.last_placed()
        if last is None or last.request.rank <= text.request.rank:
            return False
        self._preempt(last)
        return True

    def _start(self, text: SequenceState, hit: Hit) -> None:
        """Gives a text the pages of its known beginning; it goes on, or begins, behind them."""
        request = text.request
        text.entry = hit.entry
        text.publish_at = (hit.entry.depth + 1) * PAGE_POSITIONS
        text.tables = self.prefixes.open(hit)
        text.computed = hit.length
        if text.sampler is None:  # else it has counted the tokens that it chose
            text.sampler = self.runner.sampler(request, text.choice)
        if math.isnan(request.scheduled_s):
            request.scheduled_s = time.monotonic()
            request.cached_tokens = hit.length

    def _preempt(self, text: SequenceState) -> None:
        """Takes a text's pages; it waits, and is computed again as far as they are needed for
        others. Nothing that decides its next token is lost: its tokens, and the sampler's counts.
        """
        self._give_back(text)
        text.computed = 0
        self.scheduler.displace(text)

    def _give_back(self, text: SequenceState) -> None:
        """Gives back a text's pages, whose content stays known until they are needed."""
        self._publish_end(text)
        self.pages.close(text.tables)
        text.tables, text.entry = [], None

    def _publish(self, text: SequenceState) -> None:
        """Makes a text's full pages known."""
        if text.entry is not None:
            entry = self.prefixes.publish(text.entry, text.tokens, text.tables, text.computed)
            text.entry = entry
            text.publish_at = NEVER if entry.forgotten else (entry.depth + 1) * PAGE_POSITIONS

    def _publish_end(self, text: SequenceState) -> None:
        """Makes all pages known of a text that won't be written again."""
        if text.entry is not None and all(
            len(table.pages) * PAGE_POSITIONS >= text.computed for table in text.tables
        ):
            self.prefixes.publish_end(text.entry, text.tokens, text.tables, text.computed)

    def _supply(self, step: list[Work], max_steps: int) -> list[Work]:
        """Gives each sequence of a step the pages for the positions that the call stores. Where
        they run out, the last ones yield, and leave the step.
        """
        whole = True
        for work in step:
            text = work.sequence
            end = text.computed + work.size + max_steps - 1
            while text.tables and not self.pages.extend(text.tables, text.computed, end):
                self._preempt(self.scheduler.last_placed() or text)
                whole = False
        return step if whole else [work for work in step if work.sequence.tables]

    def _fill(self, step: Sequence[Work], scores: Scores) -> list[SequenceState]:
        """Writes the plan; the sequences that get a token, in the order of the rows, once a token
        that they may get. Behind them come the rows of `scores`.
        """
        rows: list[SequenceState] = []
        places: list[int] = []
        begin = 0
        for index, work in enumerate(step):
            sequence, count = work.sequence, work.count
            start = sequence.computed
            self.plan.set_sequence(
                index,
                [*sequence.tokens[start : start + count], *work.draft],
                position=start,
                begin=begin,
                tables=sequence.tables,
            )
            scores.add(self.runner, work, begin)
            begin += work.size
            if work.draft:
                rows += [sequence] * (1 + len(work.draft))
                places += range(begin - 1 - len(work.draft), begin)
            elif work.completes:
                choices = self._choices(sequence)
                rows += choices
                places += [begin - 1] * len(choices)
        samplers = [None if own.request.embeds else own.sampler for own in rows]
        self.plan.set_rows([*places, *scores.places], [*samplers, *scores.samplers])
        for sequence in rows:
            if sequence.constraint is not None:
                sequence.sampler.allow(sequence.constraint.mask())
        return rows

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
            sequence = work.sequence
            sequence.computed += work.count
            if sequence.computed >= sequence.publish_at:
                self._publish(sequence)
        for sequence in rows:
            first = sequence.request.sequences[0]
            if not sequence.tables:  # a fork begins
                sequence.tables = self.pages.fork(first.tables)
                sequence.computed = first.computed
                sequence.entry, sequence.publish_at = first.entry, first.publish_at
        now = time.monotonic()
        drafted = 0  # rows of the same text before
        for row, sequence in enumerate(rows):
            if sequence.generated == 0:
                sequence.request.first_token_s = now
            drafted = drafted + 1 if row and rows[row - 1] is sequence else 0
            self._accept(sequence, row, len(rows), done, drafted)
        for work in step:
            if work.sequence.tables:
                self.pages.slide(work.sequence.tables, work.sequence.computed)

    def _accept(
        self, sequence: SequenceState, row: int, rows: int, done: int, drafted: int
    ) -> None:
        """Appends the tokens chosen in a row, and ends the text if it has ended. drafted: rows of
        the text before this one. Of a draft's rows behind one that has chosen another token, none
        is.
        """
        request = sequence.request
        if sequence.finish_reason is not None:  # another text of its request has failed
            return
        if request.embeds:
            self._read_state(sequence, row)
            return
        wants_logprobs = request.params.logprobs is not None
        for index in range(done):
            token = self.plan.sampled[index * rows + row]
            if token < 0:
                break
            sequence.tokens.append(token)
            if sequence.constraint is not None:
                sequence.constraint.accept(token)
            if wants_logprobs:
                logprob, top = sequence.sampler.logprobs(index + drafted)
                sequence.logprobs.append(Logprob(token, logprob, tuple(top)))
        sequence.computed = len(sequence.tokens) - 1  # the last chosen token hasn't been computed
        if sequence.computed >= sequence.publish_at:
            self._publish(sequence)
        outcome = self.plan.finish[row]
        if outcome == STOP:
            self.finish(sequence, "stop")
        elif outcome == BROKEN:
            self._fail(request, not_finite(len(sequence.tokens) - 1))
        elif outcome == NONE_ALLOWED:
            self._fail(request, none_allowed(sequence))
        elif sequence.constraint is not None and sequence.constraint.complete:
            self.finish(sequence, "complete")
        elif sequence.generated >= request.max_tokens:
            self.finish(sequence, "length")
        else:
            self.pages.slide(sequence.tables, sequence.computed)

    def _read_state(self, sequence: SequenceState, row: int) -> None:
        try:
            sequence.request.state = self.runner.state(row)
        except SubsecondError as error:
            self._fail(sequence.request, error)
        else:
            self.finish(sequence, "stop")

    def _fail(self, request: Request, error: SubsecondError) -> None:
        """Ends a request by its own fault; the others go on."""
        request.error = error
        self.cancel(request)
