"""Which item gets how many tokens: invariants over random work, and the cases by name."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_model import LIMITS, Server, cost_model, request, shape

from subsecond.engine.policy import HURRY_S, Item, StepLimits, next_step
from subsecond.errors import InputError

SMALL = StepLimits(tokens=32, sequences=6, rows=5)


@st.composite
def items(draw: st.DrawFn) -> list[Item]:
    def item(id_: int) -> Item:
        left = draw(st.integers(1, 60))
        return Item(
            id=id_,
            prompt_left=draw(st.integers(0, 200)),
            decode_left=left,
            context=draw(st.integers(0, 500)),
            deadline_s=draw(st.sampled_from([0.01, 0.2, 1.0, 5.0, math.inf])),
            promised_tokens=draw(st.integers(0, left)),
            priority=draw(st.integers(-2, 2)),
            arrival_s=draw(st.floats(-10, 0)),
            choices=draw(st.sampled_from([1, 1, 2, 4])),
        )

    return [item(id_) for id_ in range(draw(st.integers(1, 12)))]


@given(items(), st.sampled_from([LIMITS, SMALL]), st.randoms())
def test_every_step_is_possible_deterministic_and_not_empty(
    work: list[Item], limits: StepLimits, shuffle: random.Random
) -> None:
    cost = cost_model(margin=1.1)
    step = next_step(work, 0.0, cost, limits)
    assert step
    assert len({item.id for item, _ in step}) == len(step)
    assert sum(count for _, count in step) <= limits.tokens
    assert sum(item.choices for item, _ in step) <= limits.sequences
    assert shape(step).rows <= limits.rows
    for item, count in step:
        assert 0 < count <= (item.prompt_left or item.choices)
        assert item.prompt_left or count == item.choices
    again = list(work)
    shuffle.shuffle(again)
    assert [(item.id, n) for item, n in next_step(again, 0.0, cost, limits)] == [
        (item.id, n) for item, n in step
    ]


@given(items())
def test_prompts_keep_to_the_time_budget(work: list[Item]) -> None:
    cost = cost_model(margin=1.1)
    step = next_step(work, 0.0, cost, LIMITS)
    decoding = [(item, count) for item, count in step if not item.prompt_left]
    if len(decoding) < len(step) and (len(step) > 1 or step[0][1] > 1):
        one = cost.bound(shape(decoding)) if decoding else cost.factor * cost.table[1]
        hurried = any(item.deadline_s < HURRY_S for item in work)
        budget = max(LIMITS.step_s if hurried else LIMITS.free_step_s, 1.5 * one)
        assert cost.bound(shape(step)) <= budget * (1 + 1e-9) + 1e-4


@given(items(), st.integers(0, 2**32))
def test_all_work_ends(work: list[Item], seed: int) -> None:
    """Nothing starves, whatever is cancelled meanwhile."""
    source = random.Random(seed)
    server = Server(cost_model(), SMALL)
    server.items = work
    steps = 0
    while server.items:
        assert server.step()
        steps += 1
        if source.random() < 0.02 and server.items:
            server.items.pop(source.randrange(len(server.items)))
        assert steps < 12 * 260


@given(items(), st.integers(0, 2**32))
def test_unpromised_work_makes_no_promise_late(work: list[Item], seed: int) -> None:
    """What is promised by an admission that doesn't see the rest is kept beside it."""
    source = random.Random(seed)
    server = Server(cost_model(), LIMITS)
    server.items = [item for item in work if not item.promised]
    for id_ in range(100, 120):
        server.run_until(server.now_s + source.expovariate(6.0))
        server.offer(
            request(
                id_,
                deadline_s=server.now_s + source.choice([0.4, 1.0, 3.0]),
                promised_tokens=source.choice([24, 48]),
                arrival_s=server.now_s,
            )
        )
    server.run_until(math.inf)
    assert server.broken == []


def test_unpromised_work_uses_what_is_left() -> None:
    """A chat without deadline goes on beside promised ones, in most of their steps."""
    server = Server(cost_model(), LIMITS)
    chat = Item(id=1, prompt_left=100, decode_left=100)
    server.items = [chat]
    assert server.offer(request(2)).promised
    server.run_until(0.9)
    assert chat.decode_left < 70
    assert server.broken == []


def test_nothing_waits_for_ever_behind_higher_priority() -> None:
    server = Server(cost_model(), StepLimits(tokens=64, sequences=2, rows=2, aging_s=1.0))
    low = Item(id=0, prompt_left=64, decode_left=20, priority=0)
    server.items = [low]
    id_ = 1
    while low.decode_left and server.now_s < 10:
        if len(server.items) < 5:
            arrival = server.now_s
            server.items.append(
                Item(id=id_, prompt_left=64, decode_left=20, priority=2, arrival_s=arrival)
            )
            id_ += 1
        server.step()
    assert low.decode_left == 0
    assert server.now_s < 4.0  # two levels are worth two seconds
    assert server.order.index(0) > 2


def test_the_earlier_deadline_is_computed_first() -> None:
    late = request(1, deadline_s=5.0, prompt_left=400)
    soon = request(2, deadline_s=1.0, prompt_left=400)
    step = next_step([late, soon], 0.0, cost_model(), LIMITS)
    assert [item.id for item, _ in step] == [2]


def test_steps_get_short_for_an_item_in_a_hurry() -> None:
    """12 tokens in 100 ms less the guard: steps of 7.5 ms, though 20 are allowed."""
    cost = cost_model()
    hurried = Item(
        id=1, prompt_left=0, decode_left=12, context=50, deadline_s=0.1, promised_tokens=12
    )
    other = request(2, deadline_s=5.0, prompt_left=400)
    step = next_step([hurried, other], 0.0, cost, LIMITS)
    assert [item.id for item, _ in step] == [1, 2]
    assert 0.006 < cost.bound(shape(step)) <= 0.0076


def test_what_is_lost_does_not_take_others_down() -> None:
    lost = Item(id=1, prompt_left=0, decode_left=500, deadline_s=0.1, promised_tokens=500)
    server = Server(cost_model(), LIMITS)
    server.items = [lost, request(2, deadline_s=0.45)]
    server.run_until(math.inf)
    assert server.kept == [2]


def test_one_decode_step_longer_than_the_budget_lets_prompts_go_on() -> None:
    cost = cost_model()
    limits = StepLimits(tokens=512, sequences=64, rows=64, step_s=0.001)
    step = next_step([request(1), request(2, prompt_left=0)], 0.0, cost, limits)
    assert [item.id for item, _ in step] == [2, 1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens", 0), ("rows", -1), ("step_s", 0.0), ("guard_s", -1.0), ("step_s", math.nan)],
)
def test_impossible_limits_are_refused(name: str, value: float) -> None:
    given_limits = {"tokens": 1, "sequences": 1, "rows": 1, name: value}
    with pytest.raises(InputError, match=name):
        StepLimits(**given_limits)  # type: ignore[arg-type]
