"""An engine that has nothing to do: what tests of several rooms ask of it."""

from __future__ import annotations

from subsecond.engine.engine import Engine
from subsecond.engine.invariants import check, snapshot


def idle(engine: Engine) -> bool:
    """Whether no request waits or runs."""
    return not engine.scheduler.waiting and not engine.scheduler.running


def assert_nothing_held(engine: Engine) -> None:
    """Nothing runs, and pages are held by kept texts alone; those are dropped."""
    assert idle(engine)
    assert check(snapshot(engine)) == []
    while engine.kept:
        engine._drop(engine.kept[0])
    assert [(len(pool.free), pool.promised) for pool in engine.pages.pools] == [
        (pool.size, 0) for pool in engine.pages.pools
    ]
