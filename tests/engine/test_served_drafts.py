"""Drafts in the engine process: none while steps are measured, several tokens an event afterwards,
and costs that are learnt from steps without.
"""

from __future__ import annotations

import math

import pytest
from engine_at_rest import assert_nothing_held
from fake_runner import FakeRunner, reference
from serving_model import cost_model
from test_served_model import submit, take, tokens_of

from subsecond.engine.cost import StepShape
from subsecond.engine.engine import Engine
from subsecond.engine.messages import Event, StepStats
from subsecond.engine.served_model import ServedModel

PROMPT = [3, 1, 4, 1, 5]
NEW = 60


class Known:
    """Guesses right."""

    text = PROMPT + reference(PROMPT, NEW)

    def propose(self, tokens: list[int], most: int) -> list[int]:
        return self.text[len(tokens) : len(tokens) + most]


def served() -> ServedModel:
    runner = FakeRunner(max_tokens=64, max_rows=64)
    engine = Engine(runner, context=512, steps_per_call=1, proposer=Known)
    return ServedModel("fake", engine, "fake")


def run(model: ServedModel) -> tuple[list[Event], list[StepStats]]:
    events, stats = [], []
    while model.in_flight:
        model.step()
        message = model.take_message()
        assert message is not None
        events += message.events
        stats.append(message.stats)
    return events, stats


def test_steps_are_measured_without_drafts() -> None:
    model = served()
    submit(model, 1, PROMPT, NEW)
    events, stats = run(model)
    assert len(events) == len(stats) == NEW
    assert sum(own.drafted for own in stats) == 0


@pytest.mark.parametrize("deadline_s", [math.inf, 1e12])
def test_several_tokens_come_in_one_event(
    deadline_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = served()
    model.keep_promises(cost_model().to_json())
    sharing = model.engine.scheduler.sharing
    assert sharing is not None
    seen: list[StepShape] = []
    monkeypatch.setattr(sharing.cost, "observe", lambda shape, seconds: seen.append(shape))
    # A fake step takes what looking at it takes: rows would never pay.
    assert model.engine.drafting is not None
    monkeypatch.setattr(model.engine.drafting.costs, "drafted", lambda *_: None)
    promised = 0 if deadline_s == math.inf else NEW
    submit(model, 1, PROMPT, NEW, deadline_s=deadline_s, promised_tokens=promised)
    events, stats = run(model)
    assert tokens_of(events, 1) == Known.text[len(PROMPT) :]
    assert len(events) == len(stats) < NEW / 2
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == NEW
    drafted = [own for own in stats if own.drafted]
    assert sum(own.accepted for own in drafted) == NEW - len(stats)
    for own in drafted:
        assert own.shape is not None
        assert own.shape.tokens == own.shape.rows == 1 + own.drafted
    assert len(seen) == len(stats) - len(drafted)
    assert take(model) == []
    assert_nothing_held(model.engine)
