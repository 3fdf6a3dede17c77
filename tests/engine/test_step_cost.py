"""The cost model: its fit, its correction, its margin, and files that can't be trusted."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_model import cost_model

from subsecond.engine.calibration import fit, nonnegative_least_squares
from subsecond.engine.cost import SPAN_S, Coefficients, CostModel, StepShape, shape_of
from subsecond.errors import InputError


def all_shapes() -> list[tuple[StepShape, int]]:
    """Steps that part what the model adds up, and how often each is measured: tokens of one
    sequence against tokens of many, short against long contexts, with one token and with many.
    """
    parts: list[tuple[list[tuple[int, int, int]], int]] = [
        ([(tokens, 0, 1)], 5 if tokens <= 4 else 3 if tokens <= 32 else 1)
        for tokens in (1, 2, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512)
    ]
    parts += [([(1, 63, 1)] * rows, 3) for rows in (2, 4, 6, 8, 12, 16)]
    parts += [([(1, 1024, 1)], 5), ([(1, 512, 1)] * 8, 3), ([(32, 992, 1)], 3)]
    parts += [([(24, 512, 1)] + [(1, 127, 1)] * 4, 3), ([(128, 896, 1)], 1)]
    return [(shape_of(step), repeats) for step, repeats in parts]


def test_a_shape_counts_positions_and_what_is_stored() -> None:
    assert shape_of([(3, 10, 0), (1, 7, 1)]) == StepShape(
        tokens=4, rows=1, sequences=2, positions=(11 + 12 + 13) + 8, stored=13 + 8
    )


def test_the_fit_finds_the_costs_that_made_the_measurements() -> None:
    true = cost_model()
    found = CostModel(fit([(s, true.seconds(s)) for s, n in all_shapes() for _ in range(n)]))
    for parts in ([(1, 500, 1)], [(1, 200, 1)] * 10, [(300, 0, 1)], [(20, 64, 0), (1, 9, 1)]):
        wanted = true.seconds(shape_of(parts))
        assert found.seconds(shape_of(parts)) == pytest.approx(wanted, rel=0.02)


def test_the_fit_bears_noise_and_stays_monotone() -> None:
    true, source = cost_model(), random.Random(3)
    measured = [
        (s, true.seconds(s) * source.uniform(0.9, 1.1)) for s, n in all_shapes() for _ in range(n)
    ]
    coefficients = fit(measured)
    seconds = [each for _, each in coefficients.curve]
    assert seconds == sorted(seconds)
    assert min(coefficients.position_s, coefficients.stored_s, coefficients.row_s) >= 0
    errors = [CostModel(coefficients).seconds(s) / true.seconds(s) - 1 for s, _ in all_shapes()]
    assert max(map(abs, errors)) < 0.12


@given(
    st.lists(
        st.tuples(st.integers(1, 600), st.integers(0, 3000), st.floats(1e-6, 10)),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_is_measured_gives_a_valid_monotone_model(
    runs: list[tuple[int, int, float]],
) -> None:
    coefficients = fit([(shape_of([(tokens, at, 1)]), s) for tokens, at, s in runs])
    coefficients.check()
    table = CostModel(coefficients, max_tokens=700).table
    assert table == sorted(table)
    assert len(table) == 701


def test_least_squares_without_negatives() -> None:
    assert nonnegative_least_squares([[1, 1], [1, 2], [1, 3]], [3, 2, 1]) == pytest.approx([2, 0])
    assert nonnegative_least_squares([[1, 0], [0, 1]], [2, 3]) == pytest.approx([2, 3])
    assert nonnegative_least_squares([[1, 1], [2, 2]], [1, 2]) == pytest.approx([1, 0])


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="measured step of 1 tokens"):
        fit([(StepShape(1, 1, 1, 1, 1), seconds)])
    with pytest.raises(InputError, match="no measured steps"):
        fit([])


def test_it_follows_a_slower_machine_but_not_a_stall() -> None:
    cost, shape = cost_model(margin=1.1), shape_of([(1, 100, 1)] * 4)
    usual = cost.predict(shape)
    cost.observe(shape, 100 * usual)
    assert cost.predict(shape) < 1.02 * usual
    for _ in range(500):
        cost.observe(shape, 1.5 * usual)
    assert cost.predict(shape) == pytest.approx(1.5 * usual, rel=0.01)


def test_the_margin_is_learnt_from_sums_of_steps() -> None:
    cost, shape, source = cost_model(margin=1.5), shape_of([(1, 100, 1)]), random.Random(1)
    base = cost.seconds(shape)
    for _ in range(int(300 * SPAN_S / base)):
        cost.observe(shape, base * source.uniform(0.7, 1.3))
    assert 1.01 < cost.margin < 1.15  # single steps would say 1.3
    assert cost.bound(shape) == pytest.approx(cost.margin * cost.predict(shape))


def test_nonsense_is_not_learnt() -> None:
    cost, shape = cost_model(), shape_of([(1, 1, 1)])
    for seconds in (0.0, -1.0, float("nan"), float("inf"), 1e9):
        cost.observe(shape, seconds)
    assert (cost.scale, cost.margin) == (1.0, 1.0)


def test_json_comes_back_the_same() -> None:
    cost = cost_model(margin=1.2)
    cost.observe(shape_of([(1, 1, 1)]), 0.004)
    again = CostModel.from_json(cost.to_json())
    assert again.coefficients == cost.coefficients
    assert (again.scale, again.margin) == (cost.scale, cost.margin)


BAD: dict[str, object] = {
    "format": 2,
    "scale": 0,
    "margin": 0.5,
    "coefficients.curve": [],
    "coefficients.curve ": [[2, 0.1]],
    "coefficients.curve  ": [[1, 0.2], [2, 0.1]],
    "coefficients.curve   ": [[1, 0.1], [1, 0.2]],
    "coefficients.curve    ": [[1, 0.1], [10**9, 0.2]],
    "coefficients.curve     ": [[n, 0.1] for n in range(1, 100)],
    "coefficients.curve      ": [[1, 1e9]],
    "coefficients.curve       ": [[1, 0]],
    "coefficients.row_s": -1e-9,
    "coefficients.stored_s": "much",
    "coefficients.position_s": None,
    "unknown": 1,
}


@pytest.mark.parametrize("key", BAD)
def test_a_bad_file_is_refused(key: str) -> None:
    kept = json.loads(cost_model().to_json())
    place, _, name = key.strip().rpartition(".")
    (kept[place] if place else kept)[name] = BAD[key]
    with pytest.raises(InputError, match="delete them"):
        CostModel.from_json(json.dumps(kept).encode())


@pytest.mark.parametrize(
    "data", [b"", b"[" * 60000, b"\xff\xfe", b"{}", b"NaN", b" " * 70000, b'{"format":1e999}']
)
def test_no_json_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="delete them"):
        CostModel.from_json(data)


def test_one_point_is_enough() -> None:
    cost = CostModel(Coefficients(((1, 0.01),), 0, 0, 0), max_tokens=8)
    assert cost.table[1] == 0.01
    assert cost.table[8] == pytest.approx(0.08)
    assert cost.predict(StepShape(100, 0, 1, 0)) == pytest.approx(1.0)
