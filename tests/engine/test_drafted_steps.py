"""Steps with drafts on a fake model: every text equals the one of plain decoding, nobody's page is
lost, and no page is known that holds what wasn't chosen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from eager_drafts import make_eager
from engine_at_rest import assert_nothing_held, idle
from fake_runner import FakeRunner, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from test_preemption import GROUPS, assert_pages_hold_their_keys, assert_right, prompt_of

from subsecond.engine.engine import Engine
from subsecond.engine.invariants import check, snapshot
from subsecond.engine.pages import CacheGroup
from subsecond.engine.request import Request, SamplingParams
from subsecond.errors import RequestError, RuntimeFailure


def made(
    prompt: list[int], max_tokens: int, stop_ids: tuple[int, ...] = (), **params: Any
) -> Request:
    params = {"logprobs": 1, **params}
    return Request(prompt, SamplingParams(**params), max_tokens=max_tokens, stop_ids=stop_ids)


def texts_of(requests: list[Request], groups: tuple[CacheGroup, ...]) -> list[list[int]]:
    return [
        request.prompt + reference(request.prompt, request.max_tokens, choice=choice, groups=groups)
        for request in requests
        for choice in range(request.params.n)
    ]


def step(engine: Engine) -> None:
    engine.step()
    assert check(snapshot(engine)) == []
    assert_pages_hold_their_keys(engine)


def run(engine: Engine) -> None:
    for _ in range(4000):
        if idle(engine):
            return
        step(engine)
    raise AssertionError("no end")


def assert_logprobs_fit(request: Request) -> None:
    for text in request.sequences:
        chosen = text.tokens[len(request.prompt) :]
        assert [own.token_id for own in text.logprobs] == chosen
        assert [own.top[0][0] for own in text.logprobs] == chosen


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("length", [1, 47, 63, 64, 130])
def test_a_text_equals_the_reference(groups: tuple[CacheGroup, ...], length: int) -> None:
    runner = FakeRunner(groups=groups, max_rows=32)
    engine = Engine(runner, context=512)
    request = made(prompt_of(length, length), 150)
    drafting = make_eager(engine, texts_of([request], groups), length)
    engine.submit(request)
    run(engine)
    assert_right(engine, request)
    assert_logprobs_fit(request)
    assert_nothing_held(engine)
    assert 0 < drafting.accepted < drafting.drafted
    assert (request.drafted_tokens, request.accepted_tokens) == (
        drafting.drafted,
        drafting.accepted,
    )
    assert len(runner.calls) < 150


@pytest.mark.parametrize("place", range(12))
def test_a_stop_token_inside_a_draft_ends_the_text(place: int) -> None:
    prompt = prompt_of(3, 20)
    whole = reference(prompt, 30)
    engine = Engine(FakeRunner(max_rows=32), context=512)
    request = made(prompt, 50, (whole[place],))
    make_eager(engine, [prompt + reference(prompt, 50)], place)  # which goes on behind it
    engine.submit(request)
    run(engine)
    assert_right(engine, request)
    assert request.sequences[0].finish_reason == "stop"
    assert_logprobs_fit(request)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 16, 17])
def test_max_tokens_inside_a_draft(max_tokens: int) -> None:
    prompt = prompt_of(4, 30)
    engine = Engine(FakeRunner(max_rows=32), context=512)
    request = made(prompt, max_tokens)
    make_eager(engine, [prompt + reference(prompt, 60)], max_tokens)
    engine.submit(request)
    run(engine)
    assert_right(engine, request)
    assert request.sequences[0].finish_reason == "length"


@pytest.mark.parametrize("seed", range(6))
def test_min_tokens_count_what_was_chosen_in_the_same_step(seed: int) -> None:
    prompt = prompt_of(5, 20)
    free = reference(prompt, 40)

    def answer(*, eager: bool) -> list[int]:
        engine = Engine(FakeRunner(max_rows=32), context=512)
        request = made(prompt, 40, (free[4], free[9]), min_tokens=8)
        if eager:
            make_eager(engine, [prompt + plain], seed)
        engine.submit(request)
        run(engine)
        return request.sequences[0].tokens[len(prompt) :]

    plain: list[int] = []
    plain = answer(eager=False)
    assert len(plain) >= 8
    assert answer(eager=True) == plain


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from(sorted(GROUPS)),
    st.integers(3, 12),
    st.sampled_from([1, 8]),
)
def test_whatever_happens_texts_and_pages_are_right(
    seed: int, kind: str, pages: int, steps: int
) -> None:
    """Random arrivals, cancels, forks and shared beginnings, in too few pages."""
    source, groups = random.Random(seed), GROUPS[kind]
    rows = source.choice([4, 9, 40])
    runner = FakeRunner(groups=groups, pages_per_group=pages, max_rows=rows)
    engine = Engine(runner, context=512, steps_per_call=steps)
    most = min(200, 16 * pages)
    waiting: list[Request] = []
    for _ in range(6):
        prompt = prompt_of(source.randrange(3), source.randint(1, most))
        n = source.choice([1, 1, 2])
        waiting.append(made(prompt, source.randint(1, most), n=n))
    make_eager(engine, texts_of(waiting, groups), seed)
    requests: list[Request] = []
    while waiting or not idle(engine):
        if waiting and (idle(engine) or source.random() < 0.2):
            requests.append(waiting.pop())
            try:
                engine.submit(requests[-1])
            except RequestError:
                assert any(size > pages for size in engine.scheduler.need(requests.pop()))
        if requests and source.random() < 0.02:
            engine.cancel(source.choice(requests))
        step(engine)
    for request in requests:
        assert_right(engine, request)
        assert_logprobs_fit(request)
    assert_nothing_held(engine)


def test_texts_of_a_step_have_drafts_of_their_own_lengths() -> None:
    runner = FakeRunner(max_rows=32)
    engine = Engine(runner, context=512)
    requests = [made(prompt_of(seed, 10), 60) for seed in range(3)]
    make_eager(engine, texts_of(requests, runner.groups))
    for request in requests:
        engine.submit(request)
    run(engine)
    for request in requests:
        assert_right(engine, request)
    assert any(call[1] == 3 and call[2] > 8 and call[3] == 1 for call in runner.calls)


def test_a_report_names_each_text_once_and_counts_drafts() -> None:
    engine = Engine(FakeRunner(max_rows=32), context=512)
    request = made(prompt_of(1, 10), 60)
    drafting = make_eager(engine, texts_of([request], engine.pages.groups))
    engine.submit(request)
    drafted = accepted = 0
    while not idle(engine):
        report = engine.step()
        assert report is not None
        assert list(report.chosen) == [request.sequences[0]]
        if report.drafted:
            assert report.steps == 1
            assert report.shape.tokens == report.shape.rows == 1 + report.drafted
            assert report.shape.sequences == 1
        drafted, accepted = drafted + report.drafted, accepted + report.accepted
    assert (drafted, accepted) == (drafting.drafted, drafting.accepted)
    assert accepted > 0


def test_a_row_whose_logits_are_broken_fails_the_request_alone() -> None:
    runner = FakeRunner(max_rows=32)
    engine = Engine(runner, context=512)
    prompt = prompt_of(1, 10)
    request, other = made(prompt, 40), made(prompt_of(2, 10), 40)
    make_eager(engine, texts_of([request, other], runner.groups))
    engine.submit(request)
    engine.submit(other)
    step(engine)
    step(engine)
    runner.faults = {0: 3}
    step(engine)
    runner.faults = {}
    run(engine)
    assert isinstance(request.error, RuntimeFailure)
    assert_right(engine, other)
    assert_nothing_held(engine)


def without_checking(runner: FakeRunner) -> None:
    """Takes a draft's rows without looking at what was chosen before."""
    inner = runner.plan.drafted

    def drafted(sequences: int, rows: int) -> list[bool]:
        return [False] * len(inner(sequences, rows))

    runner.plan.drafted = drafted  # type: ignore[method-assign]


def counting_the_draft_as_computed(engine: Engine) -> None:
    inner = engine._commit

    def commit(step: Any, rows: Any, done: int) -> None:
        for work in step:
            work.sequence.computed += len(work.draft)
        inner(step, rows, done)

    engine._commit = commit  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[Engine], None]] = {
    "an unchecked row": lambda engine: without_checking(engine.runner),  # type: ignore[arg-type]
    "a published draft": counting_the_draft_as_computed,
}


@pytest.mark.parametrize("name", PLANTS)
def test_planted_violations_are_found(name: str) -> None:
    engine = Engine(FakeRunner(max_rows=32), context=512)
    request = made(prompt_of(1, 50), 100, logprobs=None)
    make_eager(engine, texts_of([request], engine.pages.groups))
    PLANTS[name](engine)
    engine.submit(request)
    with pytest.raises(AssertionError):
        run(engine)
        assert_right(engine, request)
