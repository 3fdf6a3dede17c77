"""Several steps in one call: the same tokens as step by step, who stops when, and what broken
logits do.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from native_driver import ISAS, Driver, Packed, pack
from test_same_bits import VOCAB, model

from subsecond.runtime.native import Sampler

STEPS = 16


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    rng = np.random.default_rng(3)
    program = model(window=20)
    weights = {
        spec.name: (
            np.abs(rng.standard_normal(spec.shape)) * 0.3 + 0.1
            if spec.kind == "vector"
            else rng.standard_normal(spec.shape) * 2 / np.sqrt(spec.k)
        ).astype(np.float32)
        for spec in program.tensors
    }
    formats = {spec.name: "int8" for spec in program.tensors if spec.kind == "matrix"}
    return pack(tmp_path_factory.mktemp("decode") / "weights.bin", program, weights, formats)


def _driver(packed: Packed, **options: object) -> Driver:
    return Driver(model(window=20), packed, isa=ISAS[-1], threads=2, kv="bf16", **options)  # type: ignore[arg-type]


PROMPTS = [[5, 6, 7], [9], list(range(40))]


def _one_by_one(packed: Packed, prompt: list[int], sampler: Sampler, steps: int) -> list[int]:
    driver = _driver(packed)
    sequence, tokens, result = driver.sequence(128), prompt, []
    for _ in range(steps):
        total = driver.fill([(sequence, tokens)])
        driver.plan.set_sampler(0, sampler)
        driver.model.run(driver.plan, total, 1, 1, 1)
        sequence.length += len(tokens)
        tokens = [driver.plan.sampled[0]]
        result += tokens
        if driver.plan.finish[0]:
            break
    return result


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_many_steps_equal_one_by_one(packed: Packed, temperature: float) -> None:
    driver = _driver(packed)
    total = driver.fill([(driver.sequence(128), prompt) for prompt in PROMPTS])
    for row in range(3):
        driver.plan.set_sampler(row, Sampler(temperature=temperature, seed=row))
    assert driver.model.run(driver.plan, total, 3, 3, STEPS) == STEPS
    sampled = np.array(driver.plan.sampled[: 3 * STEPS]).reshape(STEPS, 3)
    for row, prompt in enumerate(PROMPTS):
        sampler = Sampler(temperature=temperature, seed=row)
        assert sampled[:, row].tolist() == _one_by_one(packed, prompt, sampler, STEPS)
    assert list(driver.plan.finish[:3]) == [0, 0, 0]


def test_a_row_that_stops_leaves_the_others_alone(packed: Packed) -> None:
    expected = [_one_by_one(packed, p, Sampler(temperature=1.0, seed=1), STEPS) for p in PROMPTS]
    stop = expected[1][4]
    length = expected[1].index(stop) + 1
    driver = _driver(packed)
    total = driver.fill([(driver.sequence(128), prompt) for prompt in PROMPTS])
    for row in range(3):
        stop_ids = [stop] if row == 1 else []
        driver.plan.set_sampler(row, Sampler(temperature=1.0, seed=1, stop_ids=stop_ids))
    assert driver.model.run(driver.plan, total, 3, 3, STEPS) == STEPS
    sampled = np.array(driver.plan.sampled[: 3 * STEPS]).reshape(STEPS, 3)
    assert list(driver.plan.finish[:3]) == [0, 1, 0]
    assert sampled[:length, 1].tolist() == expected[1][:length]
    assert (sampled[length:, 1] == -1).all()
    for row in (0, 2):
        assert sampled[:, row].tolist() == expected[row]


def test_a_call_ends_when_all_rows_have_stopped(packed: Packed) -> None:
    driver = _driver(packed)
    total = driver.fill([(driver.sequence(128), [1, 2])])
    driver.plan.set_sampler(0, Sampler(stop_ids=list(range(VOCAB))))
    assert driver.model.run(driver.plan, total, 1, 1, STEPS) == 1
    assert driver.plan.finish[0] == 1


def test_stop_ends_the_call_after_a_step(packed: Packed) -> None:
    driver = _driver(packed)
    total = driver.fill([(driver.sequence(128), [1, 2])])
    driver.plan.set_sampler(0, Sampler())
    driver.plan.stop()
    assert driver.model.run(driver.plan, total, 1, 1, STEPS) == 1  # at least one step is done
    driver.plan.set_sampler(0, Sampler())
    assert driver.model.run(driver.plan, total, 1, 1, STEPS) == STEPS  # and the request is spent


def test_stop_from_another_thread(packed: Packed) -> None:
    """The GIL is free during a run, and a model runs one plan at a time."""
    driver = _driver(packed, steps=1000)
    total = driver.fill([(driver.sequence(1024), [1, 2])])
    driver.plan.set_sampler(0, Sampler())
    steps: list[int] = []
    thread = threading.Thread(
        target=lambda: steps.append(driver.model.run(driver.plan, total, 1, 1, 1000))
    )
    thread.start()
    while driver.plan.sampled[0] < 0:
        time.sleep(0)
    driver.plan.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert 1 <= steps[0] <= 1000
    assert all(token >= 0 for token in driver.plan.sampled[: steps[0]])


def test_logprobs(packed: Packed) -> None:
    driver = _driver(packed)
    sequence = driver.sequence(128)
    logits = driver.step([(sequence, [1, 2])])[0].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    sequence.length = 0
    total = driver.fill([(sequence, [1, 2])])
    sampler = Sampler(logprobs=3)
    driver.plan.set_sampler(0, sampler)
    assert driver.model.run(driver.plan, total, 1, 1, 2) == 2
    logprob, top = sampler.logprobs(0)
    best = np.argsort(-expected)[:3]
    assert [token for token, _ in top] == best.tolist()
    np.testing.assert_allclose([value for _, value in top], expected[best], atol=1e-4)
    assert driver.plan.sampled[0] == best[0]
    np.testing.assert_allclose(logprob, expected[best[0]], atol=1e-4)
    assert len(sampler.logprobs(1)[1]) == 3


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_no_token_comes_from_broken_logits(broken: float, tmp_path: Path) -> None:
    """The neighbour of a broken row goes on."""
    program = model(window=20)
    rng = np.random.default_rng(4)
    weights = {
        spec.name: (rng.standard_normal(spec.shape) / 8).astype(np.float32)
        for spec in program.tensors
    }
    weights["embedding"][7] = broken
    driver = Driver(program, pack(tmp_path / "w", program, weights, {}), threads=2)
    # The tied output matrix makes the logit of token 7 broken everywhere; a bias cannot save it.
    total = driver.fill([(driver.sequence(64), [1]), (driver.sequence(64), [7])])
    for row in range(2):
        driver.plan.set_sampler(row, Sampler())
    assert driver.model.run(driver.plan, total, 2, 2, 4) == 1
    assert list(driver.plan.finish[:2]) == [3, 3]
    assert list(driver.plan.sampled[:2]) == [-1, -1]


def test_a_row_in_which_every_token_is_forbidden(packed: Packed) -> None:
    driver = _driver(packed)
    total = driver.fill([(driver.sequence(64), [1]), (driver.sequence(64), [2])])
    driver.plan.set_sampler(0, Sampler(stop_ids=list(range(VOCAB)), min_tokens=4))
    driver.plan.set_sampler(1, Sampler())
    assert driver.model.run(driver.plan, total, 2, 2, 4) == 4
    assert list(driver.plan.finish[:2]) == [4, 0]
    assert driver.plan.sampled[0] == -1
    assert all(driver.plan.sampled[2 * step + 1] >= 0 for step in range(4))
