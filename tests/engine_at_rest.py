"""An engine that has nothing to do: what tests of several rooms ask of it."""

from __future__ import annotations

from subsecond.engine.engine import Engine
from subsecond.engine.invariants import check, snapshot


def idle(engine: Engine) -> bool:
    """Whether no request waits or runs."""
    return not engine.scheduler.waiting and not engine.scheduler.running


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
