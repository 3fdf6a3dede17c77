"""Prompts whose own tokens are scored: alone, in crowds, in pieces, and computed again."""

from __future__ import annotations

import random
import zlib
from typing import Any

import pytest
from engine_at_rest import assert_nothing_held
from engine_at_rest import run as run_to_rest
from fake_runner import FakeRunner, reference, score

from subsecond.engine.engine import Engine
from subsecond.engine.report import StepReport
from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams


def engine_of(**sizes: Any) -> Engine:
    return Engine(FakeRunner(**sizes), context=512, steps_per_call=8)


def queued(engine: Engine, prompt: list[int], *, scored: bool, n: int = 1) -> Request:
    params = SamplingParams(logprobs=2, n=n)
    request = Request(prompt, params, max_tokens=6, stop_ids=(), score_prompt=scored)
    engine.submit(request)
    return request


def run(engine: Engine) -> int:
    return run_to_rest(engine, after=assert_rows)


def assert_rows(engine: Engine, report: StepReport | None) -> None:
    if report is not None:
        assert report.shape.rows == engine.runner.calls[-1][2]  # type: ignore[attr-defined]
        assert report.shape.rows <= engine.runner.max_rows


def scores(prompt: list[int]) -> list[float]:
    """What the fake model says of each token from the second on."""
    return [
        score(zlib.crc32(repr(prompt[:place]).encode(), 0), prompt[place])
        for place in range(1, len(prompt))
    ]


def assert_scored(request: Request) -> None:
    found = request.prompt_logprobs
    assert [own.token_id for own in found] == request.prompt[1:]
    assert [own.logprob for own in found] == scores(request.prompt)
    assert all(len(own.top) == 2 for own in found)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 40, 150])
def test_every_token_of_a_prompt_is_scored_once(length: int) -> None:
    engine = engine_of()
    prompt = [token % 90 for token in range(length)]
    request = queued(engine, prompt, scored=True, n=3 if length > 1 else 1)
    run(engine)
    assert_scored(request)
    for sequence in request.sequences:
        expected = reference(prompt, 6, choice=sequence.choice)
        assert sequence.tokens[length:] == expected
    assert_nothing_held(engine)


def test_others_texts_stay_the_same_and_lost_pages_change_nothing() -> None:
    source = random.Random(1)
    prompts = [[source.randrange(97) for _ in range(30 + 13 * index)] for index in range(6)]
    for sizes in ({}, {"pages_per_group": 4}, {"max_rows": 4}, {"max_tokens": 5}):
        engine = engine_of(**sizes)
        requests = [
            queued(engine, prompt, scored=index % 2 == 0) for index, prompt in enumerate(prompts)
        ]
        run(engine)
        for index, request in enumerate(requests):
            assert request.sequences[0].tokens[len(request.prompt) :] == reference(
                prompts[index], 6
            )
            if index % 2 == 0:
                assert_scored(request)
            else:
                assert request.prompt_logprobs == []
        assert_nothing_held(engine)


def test_what_is_cached_is_computed_again_for_its_scores() -> None:
    engine = engine_of()
    prompt = [token % 97 for token in range(140)]
    queued(engine, prompt, scored=False)
    run(engine)
    request = queued(engine, prompt, scored=True)
    run(engine)
    assert request.cached_tokens == 0
    assert_scored(request)
    again = queued(engine, prompt, scored=False)
    run(engine)
    assert again.cached_tokens >= 128


def test_a_preempted_prompt_keeps_its_scores() -> None:
    """Each row is computed once, whoever takes the pages meanwhile, and what others have left of
    the scored part isn't computed again.
    """
    engine = engine_of(max_tokens=16)
    runner, made = engine.runner, list[int]()
    scorer = runner.scorer

    def counting(target: int, top: int) -> Any:
        made.append(target)
        return scorer(target, top)

    runner.scorer = counting  # type: ignore[method-assign]
    prompt = [token * 7 % 97 for token in range(150)]
    request = queued(engine, prompt, scored=True)
    while not request.prompt_logprobs:
        engine.step()
    for _ in range(4):
        engine.step()
        engine._preempt(request.sequences[0])
    engine.runner.calls.clear()  # type: ignore[attr-defined]
    run(engine)
    assert_scored(request)
    assert made == prompt[1:]
    assert request.sequences[0].tokens[150:] == reference(prompt, 6)
    tokens = sum(call[0] for call in engine.runner.calls)  # type: ignore[attr-defined]
    assert tokens < 150
    assert_nothing_held(engine)
