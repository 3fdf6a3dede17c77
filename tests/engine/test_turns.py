"""Which model goes next."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subsecond.engine.turns import Turn, next_turn, slack_s


def test_without_deadlines_models_take_turns() -> None:
    last = [0, 0, 0]
    order = []
    for number in range(1, 8):
        chosen = next_turn([Turn(math.inf, 0.02, turn) for turn in last])
        last[chosen] = number
        order.append(chosen)
    assert order == [0, 1, 2, 0, 1, 2, 0]


def test_a_step_that_would_make_another_late_waits() -> None:
    slow, urgent = Turn(math.inf, 0.5, 1), Turn(0.3, 0.01, 2)
    assert next_turn([slow, urgent]) == 1
    assert next_turn([slow, Turn(0.6, 0.01, 2)]) == 0


def test_the_least_slack_goes_first_among_the_urgent() -> None:
    assert next_turn([Turn(0.2, 0.5, 1), Turn(0.1, 0.5, 2), Turn(0.3, 0.5, 3)]) == 1


def test_what_is_late_anyway_urges_nobody() -> None:
    assert next_turn([Turn(math.inf, 0.5, 1), Turn(-9.0, 0.01, 2)]) == 0


def test_nothing_to_do_is_an_error() -> None:
    with pytest.raises(ValueError, match="no model"):
        next_turn([])


def test_slack_is_what_remains_after_the_promised_tokens() -> None:
    assert slack_s(10.0, 8.0, 3, 0.5) == 0.5
    assert slack_s(math.inf, 8.0, 3, 0.5) == math.inf


turns = st.builds(
    Turn, st.floats(-1, 1) | st.just(math.inf), st.floats(0, 0.5), st.integers(0, 100)
)


@given(st.lists(turns, min_size=1, max_size=5))
def test_the_choice_costs_nobody_a_deadline_that_a_more_urgent_choice_keeps(
    given: list[Turn],
) -> None:
    chosen = given[next_turn(given)]
    longest = min(given, key=lambda turn: turn.last)
    if chosen.last != longest.last:  # out of turn only because the one in turn would harm
        assert chosen.slack_s < longest.step_s
    assert all(
        chosen.slack_s <= turn.slack_s or turn.slack_s < -turn.step_s
        for turn in given
        if turn is not chosen and turn.slack_s < longest.step_s and chosen.last != longest.last
    )
