"""The plan of a step, written through views of the runtime's memory.

Owns: what stands in the plan, and which sampler is in which row. Does not know: requests, who owns
the pages, when a step runs.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subsecond.engine.pages import PageTable
    from subsecond.engine.runner import Runner, Sampler


class PlanWriter:
    """Writes a runner's plan; `sampled` and `finish` are what the last run wrote into it."""

    def __init__(self, runner: Runner) -> None:
        plan = self._plan = runner.plan
        # The views are made once: every access makes a new one.
        self.tokens, self.sequence_start, self.position = (
            plan.tokens,
            plan.sequence_start,
            plan.position,
        )
        self.row, self.sampled, self.finish = plan.row, plan.sampled, plan.finish
        self.tables = [plan.page_table(index) for index in range(len(runner.groups))]
        self._pages = runner.max_pages_per_sequence
        self._samplers: list[Sampler | None] = [None] * runner.max_rows

    def set_sequence(
        self,
        index: int,
        tokens: Sequence[int],
        *,
        position: int,
        begin: int,
        tables: Sequence[PageTable],
    ) -> None:
        """Sequence `index`: its tokens, from place `begin` of the step on, of which the first has
        `position` in the text; `tables` hold pages for all positions that the step stores.
        """
        self.tokens[begin : begin + len(tokens)] = array("i", tokens)
        self.sequence_start[index] = begin
        self.sequence_start[index + 1] = begin + len(tokens)
        self.position[index] = position
        start = index * self._pages
        for view, table in zip(self.tables, tables, strict=True):
            view[start : start + len(table.pages)] = array("i", table.pages)

    def set_rows(self, places: Sequence[int], samplers: Sequence[Sampler | None]) -> None:
        """Row i has the logits after the token at places[i], from which samplers[i] chooses. A
        sampler is in one row at a time, so rows that change are emptied first.
        """
        self.row[: len(places)] = array("i", places)
        changed = [row for row, new in enumerate(samplers) if new is not self._samplers[row]]
        for row in [*changed, *range(len(samplers), len(self._samplers))]:
            if self._samplers[row] is not None:
                self._set_sampler(row, None)
        for row in changed:
            self._set_sampler(row, samplers[row])

    def clear_samplers(self) -> None:
        """Empties every row, whatever was interrupted while it was written."""
        for row in range(len(self._samplers)):
            self._set_sampler(row, None)

    def stop(self) -> None:
        """Ends the running call after the step that it is in. May be called from any thread."""
        self._plan.stop()

    def _set_sampler(self, row: int, sampler: Sampler | None) -> None:
        self._plan.set_sampler(row, sampler)
        self._samplers[row] = sampler
