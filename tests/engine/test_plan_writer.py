"""The plan's samplers: what an interrupt leaves in its rows."""

from __future__ import annotations

import pytest
from engine_at_rest import assert_nothing_held
from fake_runner import FakeRunner, FakeSampler

from subsecond.engine.engine import Engine
from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams


def test_a_reset_takes_back_a_sampler_that_was_set_when_the_interrupt_came() -> None:
    runner = FakeRunner()
    engine = Engine(runner, context=512)
    engine.submit(Request([1, 2], SamplingParams(), max_tokens=9, stop_ids=()))
    set_sampler = runner.plan.set_sampler

    def interrupted(row: int, sampler: FakeSampler | None) -> None:
        set_sampler(row, sampler)
        raise KeyboardInterrupt

    runner.plan.set_sampler = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    del runner.plan.set_sampler  # type: ignore[method-assign]
    assert runner.plan.samplers[0] is not None
    engine.reset()
    assert runner.plan.samplers == [None] * runner.max_rows  # else `logits` would go through it
    assert_nothing_held(engine)
