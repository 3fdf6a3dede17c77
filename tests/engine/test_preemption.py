"""When pages run out: who yields, that all finish, and that nobody's text shows it."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from engine_at_rest import assert_nothing_held, idle
from engine_at_rest import run as run_to_rest
from fake_runner import FakeRunner, assert_right
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupts import interrupted_at

from subsecond.engine import engine as engine_module
from subsecond.engine import pages as pages_module
from subsecond.engine import prefix, scheduler
from subsecond.engine.engine import Engine
from subsecond.engine.invariants import check, snapshot
from subsecond.engine.pages import NO_PAGE, CacheGroup
from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams
from subsecond.errors import RequestError

GROUPS = {
    "full": (CacheGroup(),),
    "window": (CacheGroup(70),),
    "both": (CacheGroup(), CacheGroup(70)),
    "small windows": (CacheGroup(16), CacheGroup(130)),
    "two full": (CacheGroup(), CacheGroup(), CacheGroup(40)),
}


MODULES = {engine_module, pages_module, prefix, scheduler}


def prompt_of(seed: int, length: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(97) for _ in range(length)]


def queued(engine: Engine, prompt: list[int], max_tokens: int, n: int = 1, **more: Any) -> Request:
    params = SamplingParams(n=n, logprobs=1)
    request = Request(prompt, params, max_tokens=max_tokens, stop_ids=(), **more)
    engine.submit(request)
    return request


def step(engine: Engine) -> None:
    engine.step()
    assert check(snapshot(engine)) == []
    assert_pages_hold_their_keys(engine)


def run(engine: Engine, most: int = 5000) -> None:
    run_to_rest(engine, most, lambda own, _: assert_pages_hold_their_keys(own))


def assert_pages_hold_their_keys(engine: Engine) -> None:
    """The fake model's pages hold token ids: those that the cache says."""
    for index, entries in enumerate(engine.prefixes.entries):
        for page, entry in entries.items():
            ids = memoryview(entry.key).cast("i").tolist()
            store: list[int] = engine.runner.stores[index][page]  # type: ignore[attr-defined]
            assert page != NO_PAGE and store[: len(ids)] == ids


def placed(request: Request) -> bool:
    return any(sequence.tables for sequence in request.sequences)


def test_the_last_arrival_yields_and_all_texts_are_right() -> None:
    engine = Engine(FakeRunner(pages_per_group=4), context=256, steps_per_call=1)
    first, second = queued(engine, [1], 200), queued(engine, [2], 200)
    yielded = False
    while not first.finished:
        step(engine)
        assert first.finished or placed(first)
        yielded = yielded or (second.sequences[0].generated > 0 and not placed(second))
    assert yielded
    assert second.sequences[0].generated > 60
    run(engine)
    for request in (first, second):
        assert_right(engine, request)
        assert len(request.sequences[0].logprobs) == 200
    assert_nothing_held(engine)


def test_cached_pages_go_before_running_texts() -> None:
    engine = Engine(FakeRunner(pages_per_group=6), context=384, steps_per_call=1)
    queued(engine, prompt_of(1, 190), 1)
    run(engine)
    assert engine.page_use().cached == 3
    requests = [queued(engine, [index], 130) for index in range(2)]
    while not all(request.finished for request in requests):
        step(engine)
        assert all(request.finished or placed(request) for request in requests)
    for request in requests:
        assert_right(engine, request)


@pytest.mark.parametrize("reason", ["priority", "deadline"])
def test_who_comes_first_takes_the_place_of_others(reason: str) -> None:
    engine = Engine(FakeRunner(pages_per_group=4, max_sequences=2), context=256, steps_per_call=1)
    others = [queued(engine, [index], 100, priority=5 * (reason == "deadline")) for index in (1, 2)]
    for _ in range(70):
        step(engine)
    assert all(map(placed, others))
    more: dict[str, Any] = {"priority": 1} if reason == "priority" else {"deadline_s": 1e12}
    urgent = queued(engine, prompt_of(3, 150), 60, **more)
    while not urgent.finished:
        step(engine)
        assert urgent.finished or placed(urgent)
    run(engine)
    for request in (*others, urgent):
        assert_right(engine, request)
    assert others[0].finished_s < others[1].finished_s
    assert_nothing_held(engine)


@pytest.mark.parametrize(("pages", "sequences"), [(8, 4), (24, 2)])
def test_nobody_yields_where_that_helps_nobody(pages: int, sequences: int) -> None:
    """The second doesn't fit beside the first, whatever the third gives."""
    engine = Engine(
        FakeRunner(pages_per_group=pages, max_sequences=sequences), context=512, steps_per_call=1
    )
    first = queued(engine, prompt_of(1, 300), 40, priority=2)
    third = queued(engine, prompt_of(2, 60), 80)
    while not first.sequences[0].generated:
        step(engine)
    second = queued(engine, prompt_of(3, 300), 10, n=2, priority=1)
    while not first.finished:
        step(engine)
        assert placed(third) and (first.finished or not placed(second))
    run(engine)
    for request in (first, second, third):
        assert_right(engine, request)
    assert_nothing_held(engine)


def test_work_with_a_deadline_never_yields_to_work_without() -> None:
    engine = Engine(FakeRunner(pages_per_group=4), context=256, steps_per_call=1)
    promised = queued(engine, [1], 200, deadline_s=1e12, priority=-3)
    eager = queued(engine, prompt_of(2, 100), 100, priority=9)
    while not promised.finished:
        step(engine)
        assert promised.finished or placed(promised)
    run(engine)
    assert_right(engine, promised)
    assert_right(engine, eager)


def test_texts_of_one_request_yield_one_by_one() -> None:
    """Four texts need four pages each of their own beside the prompt's two; there are eight."""
    engine = Engine(
        FakeRunner(groups=GROUPS["both"], pages_per_group=18), context=512, steps_per_call=1
    )
    request = queued(engine, prompt_of(1, 130), 200, n=4)
    engine.pages.pools[0].free[:] = engine.pages.pools[0].free[-8:]
    most = 0
    while not idle(engine):
        engine.step()
        most = max(most, len(engine.scheduler.unplaced))
    assert most > 0
    assert_right(engine, request)


def test_what_never_fits_alone_is_refused() -> None:
    engine = Engine(FakeRunner(pages_per_group=3), context=512)
    with pytest.raises(RequestError, match="needs 4 KV pages"):
        queued(engine, [1], 193)
    assert_right(engine, _ran(engine, queued(engine, [1], 192)))


def _ran(engine: Engine, request: Request) -> Request:
    run(engine)
    return request


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    groups=st.sampled_from(sorted(GROUPS)),
    pages=st.integers(5, 14),
    max_tokens=st.integers(4, 64),
)
def test_random_arrivals_in_a_quarter_of_the_memory(
    data: st.DataObject, groups: str, pages: int, max_tokens: int
) -> None:
    runner = FakeRunner(groups=GROUPS[groups], pages_per_group=pages, max_tokens=max_tokens)
    engine = Engine(
        runner,
        context=384,
        steps_per_call=data.draw(st.integers(1, 8)),
        most_idle=data.draw(st.sampled_from([None, 0, 3])),
    )
    requests: list[Request] = []
    for _ in range(data.draw(st.integers(4, 30))):
        action = data.draw(
            st.sampled_from(["submit"] * 4 + ["step"] * 5 + ["cancel", "finish", "reset", "next"])
        )
        if action in ("submit", "next"):
            prompt = prompt_of(data.draw(st.integers(0, 1)), data.draw(st.integers(1, 200)))
            if action == "next" and requests:
                prompt = data.draw(st.sampled_from(requests)).sequences[0].tokens + prompt[:9]
            request = Request(
                prompt,
                SamplingParams(n=data.draw(st.sampled_from([1, 1, 1, 2, 3])), logprobs=0),
                max_tokens=data.draw(st.integers(1, 120)),
                stop_ids=tuple(data.draw(st.lists(st.integers(0, 96), max_size=1))),
                priority=data.draw(st.sampled_from([0, 0, 0, 1])),
                tenant=data.draw(st.sampled_from(["", "", "b"])),
                deadline_s=data.draw(st.sampled_from([math.inf, math.inf, 1e12])),
            )
            try:
                engine.submit(request)
                requests.append(request)
            except RequestError:
                pass
        elif action == "step":
            for _ in range(data.draw(st.sampled_from([1, 1, 10, 50]))):
                step(engine)
                assert_the_first_goes_on(engine)
        elif action == "reset":
            if data.draw(st.booleans()):
                engine.reset()
        elif requests:
            request = data.draw(st.sampled_from(requests))
            if action == "cancel":
                engine.cancel(request)
            else:
                for sequence in request.sequences:
                    if sequence.generated and sequence.finish_reason is None:
                        engine.finish(sequence, "stop")
                        break
        assert check(snapshot(engine)) == []
        assert_pages_hold_their_keys(engine)
    run(engine)
    for request in requests:
        cut = any(sequence.finish_reason == "stop" for sequence in request.sequences)
        assert_right(engine, request, cut=cut)
    assert_nothing_held(engine)


def assert_the_first_goes_on(engine: Engine) -> None:
    """Between two steps: whoever comes first of all has pages, or will be given them next."""
    running, waiting = engine.scheduler.running, engine.scheduler.waiting
    if running and (not waiting or running[0].rank < waiting[0].rank):
        assert placed(running[0])


@pytest.mark.parametrize("groups", ["full", "both"])
def test_every_line_of_a_crowded_engine_may_be_interrupted(groups: str) -> None:
    """Among them those that evict, preempt, copy and publish. What is known afterwards is true."""
    line, came = 1, True
    while came:
        engine = Engine(
            FakeRunner(groups=GROUPS[groups], pages_per_group=6, max_tokens=64), context=256
        )
        prompts = [prompt_of(1, 70), prompt_of(1, 100), prompt_of(2, 66)]
        requests = [
            queued(engine, prompt, 66, n) for prompt, n in zip(prompts, (1, 2, 1), strict=True)
        ]
        for _ in range(5):
            engine.step()
        came = interrupted_at(line, MODULES, lambda engine=engine: run_plainly(engine))
        if came:
            engine.reset()
        assert check(snapshot(engine)) == []
        assert_pages_hold_their_keys(engine)
        again = [queued(engine, prompt, 3) for prompt in prompts]
        run(engine)
        for request in again:
            assert_right(engine, request)
        for request in requests:
            assert_right(engine, request)
        assert_nothing_held(engine)
        line += 1 + line // 40
    assert line > 1000


def test_every_line_of_a_cancellation_may_be_interrupted() -> None:
    """Of a request that waits, has begun, or was preempted: the others are answered."""
    for steps in (0, 2, 120):
        line, came = 1, True
        while came:
            engine = Engine(FakeRunner(pages_per_group=9), context=256, steps_per_call=1)
            other = queued(engine, prompt_of(1, 60), 190)
            request = queued(engine, prompt_of(2, 60), 130, n=3)
            for _ in range(steps):
                engine.step()
            came = interrupted_at(line, MODULES, lambda: engine.cancel(request))  # noqa: B023
            if came:
                engine.reset()
            assert check(snapshot(engine)) == []
            run_plainly(engine)
            for each in (other, request):
                assert each.finished
                assert_right(engine, each)
            assert_nothing_held(engine)
            line += 1 + steps // 20
        assert line > 10


@pytest.mark.parametrize("length", [128, 150])
def test_every_line_may_be_interrupted_while_a_text_gets_known_pages(length: int) -> None:
    known = prompt_of(1, length)
    line, came = 1, True
    while came:
        engine = Engine(FakeRunner(max_tokens=192), context=256)
        queued(engine, known, 1)
        run_plainly(engine)
        queued(engine, [*known, 1, 2], 2)
        came = interrupted_at(line, MODULES, engine.step)
        if came:
            engine.reset()
        assert check(snapshot(engine)) == []
        again = queued(engine, [*known, 3, 4], 2)
        run(engine)
        assert_right(engine, again)
        assert again.cached_tokens == length
        assert_nothing_held(engine)
        line += 1
    assert line > 50


def run_plainly(engine: Engine) -> None:
    while not idle(engine):
        engine.step()
