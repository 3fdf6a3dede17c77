"""The engine on a fake model: every text equals the one computed alone, and the invariants hold
after every step.
"""

from __future__ import annotations

import random
from array import array
from typing import Any

import pytest
from engine_at_rest import assert_nothing_held, idle, run
from fake_runner import FakeRunner, reference

from subsecond.engine.engine import Engine
from subsecond.engine.invariants import check, snapshot
from subsecond.engine.pages import CacheGroup
from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams
from subsecond.errors import RequestError, RuntimeFailure

GROUPS = {
    "full": (CacheGroup(),),
    "window": (CacheGroup(70),),
    "both": (CacheGroup(), CacheGroup(70)),
}


def make_request(
    prompt: list[int],
    max_tokens: int,
    *,
    stop_ids: tuple[int, ...] = (),
    **params: Any,
) -> Request:
    return Request(prompt, SamplingParams(**params), max_tokens=max_tokens, stop_ids=stop_ids)


def make_prompt(seed: int, length: int) -> list[int]:
    return [random.Random(seed).randrange(97) for _ in range(length)]


def answer(request: Request, choice: int = 0) -> list[int]:
    return request.sequences[choice].tokens[len(request.prompt) :]


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("length", [1, 47, 48, 63, 64, 65, 130, 300])
def test_one_text_equals_the_reference(groups: tuple[CacheGroup, ...], length: int) -> None:
    engine = Engine(FakeRunner(groups=groups), context=512)
    prompt = make_prompt(length, length)
    request = make_request(prompt, 90)
    engine.submit(request)
    run(engine)
    assert answer(request) == reference(prompt, 90, groups=groups)
    assert request.sequences[0].finish_reason == "length"
    assert_nothing_held(engine)


def test_a_stop_token_ends_the_text_and_is_its_last_token() -> None:
    prompt = make_prompt(3, 20)
    stop = reference(prompt, 10)[5]
    engine = Engine(FakeRunner(), context=512)
    request = make_request(prompt, 50, stop_ids=(stop,))
    engine.submit(request)
    run(engine)
    assert answer(request) == reference(prompt, 50, stop_ids=(stop,))
    assert answer(request)[-1] == stop
    assert request.sequences[0].finish_reason == "stop"


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("length", [5, 64, 100])
def test_n_texts_share_the_prompt_and_part_by_copy_on_write(
    groups: tuple[CacheGroup, ...], length: int
) -> None:
    runner = FakeRunner(groups=groups)
    engine = Engine(runner, context=512)
    prompt = make_prompt(length, length)
    request = make_request(prompt, 80, n=3)
    engine.submit(request)
    run(engine)
    for choice in range(3):
        assert answer(request, choice) == reference(prompt, 80, choice=choice, groups=groups)
    assert (
        sum(call[0] for call in runner.calls[: -(-length // 48)]) == length
    )  # the prompt ran once
    assert_nothing_held(engine)


def test_decoding_alone_takes_several_steps_a_call_and_the_first_token_one() -> None:
    runner = FakeRunner()
    engine = Engine(runner, context=512, steps_per_call=8)
    engine.submit(make_request(make_prompt(1, 10), 18))
    run(engine)
    assert [call[3] for call in runner.calls] == [1, 8, 8, 1]


def test_a_request_that_waits_for_a_place_limits_calls_to_one_step() -> None:
    runner = FakeRunner(max_sequences=1)
    engine = Engine(runner, context=512)
    first, second = make_request([1, 2], 9), make_request([3], 9)
    engine.submit(first)
    engine.submit(second)
    while not first.finished:
        engine.step()
    assert {call[3] for call in runner.calls} == {1}
    run(engine)
    assert answer(second) == reference([3], 9)


def test_decode_rows_come_before_prompts() -> None:
    runner = FakeRunner(max_tokens=16)
    engine = Engine(runner, context=512)
    short = make_request([5], 30)
    engine.submit(short)
    engine.step()
    long_ = make_request(make_prompt(2, 100), 4)
    engine.submit(long_)
    before = short.sequences[0].generated
    engine.step()
    assert short.sequences[0].generated == before + 1
    assert long_.sequences[0].computed == 15
    run(engine)
    assert answer(long_) == reference(long_.prompt, 4)


def test_few_pages_delay_requests_but_all_finish() -> None:
    engine = Engine(FakeRunner(pages_per_group=4), context=256)
    requests = [make_request(make_prompt(i, 40 + 30 * i), 60) for i in range(5)]
    for request in requests:
        engine.submit(request)
    run(engine)
    for request in requests:
        assert answer(request) == reference(request.prompt, 60)
    assert_nothing_held(engine)


@pytest.mark.parametrize(
    ("length", "max_tokens", "n", "param"),
    [
        (512, 1, 1, "prompt"),
        (600, 10, 1, "prompt"),
        (10, 503, 1, "max_tokens"),
        (10, 10, 5, "n"),
        (10, 500, 4, "max_tokens"),
    ],
)
def test_what_can_never_run_is_refused_with_the_numbers(
    length: int, max_tokens: int, n: int, param: str
) -> None:
    engine = Engine(FakeRunner(), context=512)
    with pytest.raises(RequestError, match=r"\d+") as caught:
        engine.submit(make_request(make_prompt(0, length), max_tokens, n=n))
    assert caught.value.param == param
    assert idle(engine)


def test_a_failed_run_leaves_an_engine_that_can_go_on() -> None:
    runner = FakeRunner()
    engine = Engine(runner, context=512)
    request = make_request(make_prompt(4, 60), 20)
    engine.submit(request)
    engine.step()
    runner.fail_next = True
    with pytest.raises(RuntimeError, match="planted"):
        engine.step()
    assert check(snapshot(engine)) == []
    other = make_request([7], 5)
    engine.submit(other)
    run(engine)
    assert answer(request) == reference(request.prompt, 20)
    assert answer(other) == reference([7], 5)


@pytest.mark.parametrize(("fault", "error"), [(3, RuntimeFailure), (4, RequestError)])
def test_a_request_with_broken_logits_fails_alone(fault: int, error: type[Exception]) -> None:
    runner = FakeRunner()
    engine = Engine(runner, context=512)
    healthy, broken = make_request([1], 20), make_request([2], 20, n=2)
    engine.submit(healthy)
    engine.submit(broken)
    engine.step()
    runner.faults = {1: fault}
    engine.step()
    runner.faults = {}
    assert isinstance(broken.error, error)
    assert [s.finish_reason for s in broken.sequences] == ["cancelled", "cancelled"]
    run(engine)
    assert answer(healthy) == reference([1], 20)
    assert healthy.error is None
    assert_nothing_held(engine)


def test_logprobs_belong_to_their_tokens() -> None:
    engine = Engine(FakeRunner(), context=512)
    requests = [make_request([i], 13, logprobs=i) for i in range(3)]
    for request in requests:
        engine.submit(request)
    run(engine)
    for request in requests:
        entries = request.sequences[0].logprobs
        assert [entry.token_id for entry in entries] == answer(request)
        assert all(len(entry.top) == min(request.params.logprobs or 0, 2) for entry in entries)
        assert all(
            entry.top[0] == (entry.token_id, entry.logprob) for entry in entries if entry.top
        )


def test_logits_of_every_token_in_chunks() -> None:
    runner = FakeRunner(groups=GROUPS["both"])
    engine = Engine(runner, context=512)
    tokens = make_prompt(9, 150)
    out = memoryview(array("f", bytes(4 * 150 * 97)))
    engine.logits(tokens, out)
    for length in (1, 8, 9, 150):
        fresh = Engine(FakeRunner(groups=GROUPS["both"], max_rows=4), context=512)
        whole = memoryview(array("f", bytes(4 * length * 97)))
        fresh.logits(tokens[:length], whole)
        last = slice((length - 1) * 97, length * 97)
        assert out[last].tolist() == whole[last].tolist()
    assert_nothing_held(engine)


def test_an_interrupted_call_ends_after_its_step_and_loses_nothing() -> None:
    runner = FakeRunner()
    engine = Engine(runner, context=512)
    prompt = make_prompt(5, 20)
    request = make_request(prompt, 60)
    engine.submit(request)
    engine.step()
    engine.step()
    before = request.sequences[0].generated
    assert before > 2  # several steps a call
    engine.interrupt()
    engine.step()
    assert request.sequences[0].generated == before + 1
    engine.step()
    assert request.sequences[0].generated > before + 2  # only that one call
    run(engine)
    assert answer(request) == reference(prompt, 60)
    assert_nothing_held(engine)


@pytest.mark.parametrize(("broken", "place"), [(0, 16), (3, 19)])
def test_logits_that_are_not_finite_name_the_first_position(broken: int, place: int) -> None:
    runner = FakeRunner()  # 8 rows a step
    engine = Engine(runner, context=512)
    out = memoryview(bytearray(4 * 30 * runner.vocab_size)).cast("f")
    engine.logits(make_prompt(1, 30), out)
    logits, calls = runner.logits, [0]

    def third_is_broken(out: memoryview) -> int:
        calls[0] += 1
        runner.broken_row = broken if calls[0] == 3 else -1
        return logits(out)

    runner.logits = third_is_broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeFailure, match=rf"after token {place} .*NaN or infinite.*kv='f32'"):
        engine.logits(make_prompt(1, 30), out)
    assert calls == [3]
    assert_nothing_held(engine)
