"""An engine that has nothing to do, and the way there: what tests of several rooms ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from subsecond.engine.engine import Engine
from subsecond.engine.invariants import check, snapshot
from subsecond.engine.report import StepReport


def idle(engine: Engine) -> bool:
    """Whether no request waits or runs."""
    return not engine.scheduler.waiting and not engine.scheduler.running


After: TypeAlias = Callable[[Engine, StepReport | None], object]
"""What else must hold after a step, which is given with its report."""


def run(engine: Engine, most: int = 5000, after: After | None = None) -> int:
    """Steps until there is nothing to do; how many. The invariants hold after each."""
    for steps in range(most):
        if idle(engine):
            return steps
        report = engine.step()
        assert check(snapshot(engine)) == []
        if after is not None:
            after(engine, report)
    raise AssertionError("no end")


def assert_nothing_held(engine: Engine) -> None:
    """Nothing runs and nobody holds a page; all are free when what they hold is forgotten."""
    assert idle(engine)
    assert check(snapshot(engine)) == []
    assert not any(any(pool.references) for pool in engine.pages.pools)
    engine.prefixes.clear()
    assert check(snapshot(engine)) == []
    assert [len(pool.free) for pool in engine.pages.pools] == [
        pool.size for pool in engine.pages.pools
    ]
