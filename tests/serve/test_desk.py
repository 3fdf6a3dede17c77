"""What the desk knows of the engine, and what it promises by that; no process, no clock."""

from __future__ import annotations

import math
from typing import Any

import pytest
from promises import LIMITS, cost_model

from subsecond.engine.cost import StepShape
from subsecond.engine.messages import Event, SamplingFields, StepStats, Usage
from subsecond.serve.desk import LEAST_SENDING_S, MOST_SENDING_S, Costs, Desk, Entry

NOW_S = 1000.0


def desk_of(*models: str) -> Desk:
    return Desk(costs={name: Costs(cost_model(), LIMITS) for name in models or ("m",)})


def entry(
    desk: Desk, prompt: int = 140, new: int = 48, within_s: float = 1.0, **more: Any
) -> Entry:
    given = {"promised_tokens": new, "priority": 0, "arrival_s": NOW_S, **more}
    model = given.pop("model", "m")
    fields = SamplingFields(new, n=given.pop("n", 1))
    return desk.entry(model, prompt, fields, deadline_s=NOW_S + within_s, **given)


def taken(desk: Desk, stream: int, **more: Any) -> Entry:
    own = entry(desk, **more)
    assert desk.take([own], NOW_S).promised
    desk.bind(own, stream)
    return own


def stats(ended_s: float, prompts: list[tuple[int, int]] = [], **more: Any) -> StepStats:  # noqa: B006
    given = {"running": 1, "waiting": 0, "pages_free": 8, "pages_total": 10, "pages_cached": 1}
    shape = StepShape(30, 0, 1, 465, 30)
    fields = {"shape": shape, "elapsed_s": 0.015, "steps": 1, **given, **more}
    return StepStats(ended_s=ended_s, prompts=prompts, **fields)  # type: ignore[arg-type]


def test_progress_of_prompts_makes_room() -> None:
    desk = desk_of()
    held = [taken(desk, stream) for stream in range(5)]
    while (last := entry(desk)) and desk.take([last], NOW_S).promised:
        held.append(last)
    assert desk.judge([entry(desk)], NOW_S).reason == "busy"
    assert (held[0].item.prompt_left, held[0].item.context) == (140, 0)
    for stream in range(4):
        desk.on_step("m", stats(NOW_S, [(stream, 2)]), NOW_S)
    assert (held[0].item.prompt_left, held[0].item.context) == (2, 138)
    assert desk.judge([entry(desk)], NOW_S).promised


def test_tokens_and_ends_are_taken_in() -> None:
    desk = desk_of()
    own = taken(desk, 3, n=2, new=10)
    own.observe(Event(3, 0, [5]))
    assert (own.item.prompt_left, own.item.context, own.item.promised_tokens) == (0, 140, 10)
    own.observe(Event(3, 1, [6, 7]))
    assert (own.item.promised_tokens, own.item.choices) == (9, 2)
    own.observe(Event(3, 0, [], "stop"))
    assert (own.item.promised_tokens, own.item.choices) == (8, 1)
    own.observe(Event(3, 1, [8], "length", usage=Usage(140, 4)))
    assert own.ended and not desk.entries and not desk.streams
    desk.on_step("m", stats(NOW_S, [(3, 9)]), NOW_S)  # news of what has ended
    own.close()
    desk.bind(own, 3)
    assert not desk.streams


def test_judging_takes_nothing() -> None:
    desk = desk_of()
    own = entry(desk)
    assert desk.judge([own], NOW_S).promised
    assert not desk.entries
    assert desk.judge([entry(desk, within_s=0.1)], NOW_S).reason == "too_short"


def test_what_has_no_deadline_is_taken_as_it_is() -> None:
    desk = desk_of()
    free = entry(desk, within_s=math.inf, promised_tokens=0)
    assert not desk.take([free], NOW_S).promised
    assert desk.entries == [free]


def test_several_prompts_are_promised_together_or_not_at_all() -> None:
    desk = desk_of()
    many = [entry(desk) for _ in range(30)]
    assert not desk.take(many, NOW_S).promised
    assert not desk.entries
    assert desk.take(many[:3], NOW_S).promised
    assert desk.entries == many[:3]


def test_the_step_that_runs_now_is_waited_for_and_credited() -> None:
    """It began when the last one ended, with what was known then."""
    desk, alone = desk_of(), desk_of()
    taken(desk, 1, prompt=400)
    now_s = NOW_S + 0.010  # of a step of 20 ms
    desk.on_step("m", stats(NOW_S + 0.001, [(1, 370)]), NOW_S + 0.001)
    later = desk.judge([entry(desk, within_s=3)], now_s).finish_s
    assert later > alone.judge([entry(alone, within_s=3)], now_s).finish_s + 0.1
    (item,), free_s = desk._after_step("m", desk.costs["m"], now_s)
    assert 300 < item.prompt_left < 345 and item.prompt_left + item.context == 400
    assert desk.entries[0].item.prompt_left == 370  # the engine's news alone change that
    assert NOW_S + 0.015 < free_s <= NOW_S + 0.001 + LIMITS.step_s
    late_s = NOW_S + 1.0  # no news for a second: the step is over, nothing is known of it
    (item,), free_s = desk._after_step("m", desk.costs["m"], late_s)
    assert (item.prompt_left, free_s) == (370, late_s)


def test_the_time_that_news_take_is_learnt() -> None:
    desk = desk_of()
    assert desk.sending_s() == LEAST_SENDING_S
    for _ in range(200):
        desk.on_step("m", stats(NOW_S), NOW_S + 0.0001)
    assert desk.sending_s() == LEAST_SENDING_S
    for _ in range(10):
        desk.on_step("m", stats(NOW_S), NOW_S + 0.012)
    assert desk.sending_s() == pytest.approx(0.024)
    for _ in range(10):
        desk.on_step("m", stats(NOW_S), NOW_S + 9)
    assert desk.sending_s() == MOST_SENDING_S
    for _ in range(600):
        desk.on_step("m", stats(NOW_S), NOW_S)
    assert desk.sending_s() == LEAST_SENDING_S


def test_the_cost_model_learns_from_single_steps_alone() -> None:
    desk = desk_of()
    cost = desk.costs["m"].cost
    desk.on_step("m", stats(NOW_S, steps=4), NOW_S)
    desk.on_step("m", stats(NOW_S, shape=None), NOW_S)
    desk.on_step("x", stats(NOW_S), NOW_S)
    assert cost.scale == 1.0
    desk.on_step("m", stats(NOW_S, elapsed_s=1.0), NOW_S)
    assert cost.scale > 1.0


def test_no_model_makes_anothers_promises_late() -> None:
    desk = desk_of("a", "b")
    tight = entry(desk, model="a", within_s=0.4)
    assert desk.take([tight], NOW_S).promised
    assert desk.judge([entry(desk, model="b", prompt=600)], NOW_S).reason == "busy"
    assert desk.take([entry(desk, model="b", prompt=20, new=4)], NOW_S).promised


def test_while_the_machine_is_taken_nothing_is_promised_that_cannot_wait() -> None:
    desk = desk_of()
    desk.taken_until_s = NOW_S + 0.8
    assert not desk.judge([entry(desk)], NOW_S).promised
    assert desk.judge([entry(desk, within_s=2)], NOW_S).promised
