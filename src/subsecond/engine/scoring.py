"""Log probabilities of a prompt's own tokens: rows that choose nothing.

Owns: which rows a part of a prompt gets for them, how much of it fits beside the rows of others,
and where the numbers go. Does not know: who asks.

A prompt that is scored is computed from its first token that isn't, whatever the prefix cache
knows: what is cached has keys and values, no logits. What a text that was preempted has of them
stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from subsecond.engine.request import Logprob, SequenceState
from subsecond.engine.sharing import Work

if TYPE_CHECKING:
    from subsecond.engine.runner import Runner, Sampler


def scored_rows(work: Work) -> int:
    """Rows that a part of a prompt needs for log probabilities that aren't known."""
    return len(_places(work.sequence, work.count))


def choosing_rows(work: Work) -> int:
    """Rows in which tokens are chosen after a sequence's part of a step: forks begin after the
    prompt.
    """
    if not work.completes:
        return 0
    return 1 if work.sequence.generated else work.sequence.request.params.n


def trimmed(step: list[Work], max_rows: int) -> list[Work]:
    """The step with as much of scored prompts as there are rows for; in later steps come the
    others. Each sequence of a step could have a row.
    """
    if not any(_is_scored(work.sequence) for work in step):
        return step
    free = max_rows - sum(choosing_rows(work) for work in step if not _is_scored(work.sequence))
    own: list[Work] = []
    for work in step:
        if _is_scored(work.sequence):
            work = _fitting(work, free)  # noqa: PLW2901
            free -= scored_rows(work) + choosing_rows(work)
        if work.count:
            own.append(work)
    return own


def known_positions(sequence: SequenceState) -> int:
    """How many of a sequence's positions may be taken from the prefix cache at most."""
    known = len(sequence.tokens) - 1
    if sequence.request.score_prompt:
        known = min(known, len(sequence.request.prompt_logprobs))
    return known


class Scores:
    """The rows of one step that score tokens."""

    def __init__(self) -> None:
        self.samplers: list[Sampler] = []
        self.places: list[int] = []
        self._targets: list[tuple[SequenceState, int]] = []

    def __len__(self) -> int:
        return len(self.places)

    def add(self, runner: Runner, work: Work, begin: int) -> None:
        """The rows of a sequence's part of the step, which begins at token `begin` of it."""
        sequence = work.sequence
        top = sequence.request.params.logprobs or 0
        for offset in _places(sequence, work.count):
            position = sequence.computed + offset + 1
            self.samplers.append(runner.scorer(sequence.tokens[position], top))
            self.places.append(begin + offset)
            self._targets.append((sequence, position))

    def commit(self) -> None:
        """Takes the numbers of the run."""
        for sampler, (sequence, position) in zip(self.samplers, self._targets, strict=True):
            logprob, top = sampler.logprobs(0)
            own = Logprob(sequence.tokens[position], logprob, tuple(top))
            sequence.request.prompt_logprobs.append(own)


def _is_scored(sequence: SequenceState) -> bool:
    request = sequence.request
    return request.score_prompt and len(request.prompt_logprobs) + 1 < len(request.prompt)


def _places(sequence: SequenceState, count: int) -> Sequence[int]:
    """Which of the next `count` tokens have a token of the prompt behind them that has no score."""
    request = sequence.request
    if not request.score_prompt:
        return ()
    first = max(0, len(request.prompt_logprobs) - sequence.computed)
    return range(first, min(count, len(request.prompt) - 1 - sequence.computed))


def _fitting(work: Work, free: int) -> Work:
    while work.count and scored_rows(work) + choosing_rows(work) > free:
        work = replace(work, count=min(work.count - 1, max(free, 0)))
    return work
