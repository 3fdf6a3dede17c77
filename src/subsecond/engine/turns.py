"""Which model has the next step, where one process holds several.

Owns: the choice. Does not know: engines, clocks, what a step holds (that is the scheduler's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """A model that has work. slack_s: seconds that its most urgent request could lose and still be
    in time, inf without deadlines. step_s: what its next step is expected to take. last: number of
    the turn that it had last.
    """

    slack_s: float
    step_s: float
    last: int


def next_turn(turns: Sequence[Turn]) -> int:
    """The index of the model that has the next step.

    In turn, whoever waited longest first, as long as its step costs no other model its deadline;
    where it would, the model with the least slack goes first. So no model starves, and none without
    deadlines makes another late. A request that is late by more than a step urges nobody, and its
    model comes in turn.
    """
    if not turns:
        raise ValueError("no model has work")
    in_turn = min(range(len(turns)), key=lambda index: turns[index].last)
    step_s = turns[in_turn].step_s
    urgent = [
        index
        for index, turn in enumerate(turns)
        if index != in_turn and -turn.step_s <= turn.slack_s < step_s
    ]
    if not urgent:
        return in_turn
    own = turns[in_turn]
    if -own.step_s <= own.slack_s:
        urgent.append(in_turn)
    return min(urgent, key=lambda index: (turns[index].slack_s, turns[index].last))


def slack_s(deadline_s: float, now_s: float, steps_left: int, step_s: float) -> float:
    """Seconds that a request could wait: what remains after `steps_left` steps of `step_s`."""
    return deadline_s - now_s - steps_left * step_s
