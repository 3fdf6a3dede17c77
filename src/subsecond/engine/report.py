"""What an engine says about a step and about its pages.

Owns: the reports and how they are counted. Does not know: what they are used for (cost models,
metrics, messages).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from subsecond.engine.cost import StepShape, shape_of
from subsecond.engine.pages import Pages
from subsecond.engine.request import SequenceState
from subsecond.engine.scoring import choosing_rows, scored_rows
from subsecond.engine.sharing import Work


@dataclass(frozen=True)
class StepReport:
    """What one call into the runtime was.

    shape: of its first step. steps: that were done. elapsed_s: the engine's own time included.
    chosen: sequences that have new tokens, or have ended by their own fault. begun: sequences of
    whose prompts a part was computed, and a part is left. drafted, accepted: tokens of drafts that
    the step has checked, and of them those that were chosen.
    """

    shape: StepShape
    steps: int
    elapsed_s: float
    chosen: Sequence[SequenceState]
    begun: Sequence[SequenceState] = ()
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class PageUse:
    """KV pages of all cache groups together. cached: held by nobody, and kept for texts that begin
    like the one they hold.
    """

    free: int
    cached: int
    total: int


def step_shape(step: Sequence[Work]) -> StepShape:
    """The shape of a step that is about to run. Positions are counted as if no layer had a
    window.
    """
    return shape_of(
        [
            (
                work.size,
                work.sequence.computed,
                choosing_rows(work) + len(work.draft) + scored_rows(work),
            )
            for work in step
        ]
    )


def page_use(pages: Pages) -> PageUse:
    """Counts pages."""
    return PageUse(
        free=sum(len(pool.free) for pool in pages.pools),
        cached=sum(len(pool.idle) for pool in pages.pools),
        total=sum(pool.size for pool in pages.pools),
    )
