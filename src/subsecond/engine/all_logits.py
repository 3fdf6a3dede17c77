"""Logits after every token of a text, a step's rows at a time.

Owns: the steps, and the pages while they run. Does not know: requests, sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subsecond.engine.faults import not_finite
from subsecond.errors import RuntimeFailure

if TYPE_CHECKING:
    from subsecond.engine.pages import Pages
    from subsecond.engine.plan_writer import PlanWriter
    from subsecond.engine.runner import Runner


def all_logits(
    pages: Pages,
    plan: PlanWriter,
    runner: Runner,
    token_ids: Sequence[int],
    out: memoryview[float],
) -> None:
    """`Engine.logits`."""
    tables = pages.open()
    size, vocab = min(runner.max_rows, runner.max_tokens), runner.vocab_size
    try:
        for start in range(0, len(token_ids), size):
            chunk = token_ids[start : start + size]
            end = start + len(chunk)
            if not pages.extend(tables, start, end):
                raise RuntimeFailure(
                    "unfinished generations hold the KV cache; finish or close them first"
                )
            plan.set_sequence(0, chunk, position=start, begin=0, tables=tables)
            plan.set_rows(range(len(chunk)), [None] * len(chunk))
            runner.run(len(chunk), 1, len(chunk), 1)
            broken = runner.logits(out[start * vocab : end * vocab])
            if broken >= 0:
                raise not_finite(start + broken)
            pages.slide(tables, end)
    finally:
        pages.close(tables)
