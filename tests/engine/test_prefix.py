"""The prefix cache: what is known is not computed again, and nothing else is taken for it."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from engine_at_rest import assert_nothing_held, run
from fake_runner import POISON, FakeRunner, assert_right

from subsecond.engine.engine import Engine
from subsecond.engine.invariants import check, snapshot
from subsecond.engine.pages import CacheGroup
from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams

GROUPS = {
    "full": (CacheGroup(),),
    "window": (CacheGroup(70),),
    "both": (CacheGroup(), CacheGroup(70)),
    "small window": (CacheGroup(16), CacheGroup(130)),
}
all_groups = pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)


def prompt_of(seed: int, length: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(97) for _ in range(length)]


def ask(engine: Engine, prompt: list[int], max_tokens: int = 20, **more: Any) -> Request:
    """Runs a request to its end; its texts are those of the unloaded model."""
    params = SamplingParams(n=more.pop("n", 1))
    request = Request(prompt, params, max_tokens=max_tokens, stop_ids=(), **more)
    engine.submit(request)
    run(engine)
    assert_right(engine, request)
    return request


def computed(engine: Engine) -> int:
    """Tokens that were computed since the last call."""
    calls: list[tuple[int, int, int, int]] = engine.runner.calls  # type: ignore[attr-defined]
    total = sum(call[0] for call in calls)
    calls.clear()
    return total


@all_groups
@pytest.mark.parametrize("length", [1, 63, 64, 65, 150, 191])
def test_the_next_turn_computes_no_earlier_token_again(
    groups: tuple[CacheGroup, ...], length: int
) -> None:
    engine = Engine(FakeRunner(groups=groups), context=512, steps_per_call=1)
    prompt = prompt_of(1, length)
    for turn in range(4):
        earlier = len(prompt) - (10 if turn else 0)  # of these the last was never computed
        request = ask(engine, prompt)
        assert request.cached_tokens == (earlier if turn else 0)
        assert computed(engine) == len(prompt) - request.cached_tokens + 19
        prompt = request.sequences[0].tokens + prompt_of(turn + 2, 9)
    assert_nothing_held(engine)


@all_groups
def test_an_equal_prompt_computes_its_last_token_alone(groups: tuple[CacheGroup, ...]) -> None:
    engine = Engine(FakeRunner(groups=groups), context=512, steps_per_call=1)
    for length in (1, 2, 64, 65, 128, 200):
        prompt = prompt_of(length, length)
        assert ask(engine, prompt, 1).cached_tokens == 0
        computed(engine)
        assert ask(engine, prompt, 1).cached_tokens == length - 1
        assert computed(engine) == 1


@pytest.mark.parametrize("common", [1, 63, 64, 65, 127, 128, 140])
def test_a_text_that_parts_shares_what_is_equal(common: int) -> None:
    engine = Engine(FakeRunner(), context=512)
    prompt = prompt_of(1, 150)
    ask(engine, prompt)
    branch = [*prompt[:common], (prompt[common] + 1) % 97, *prompt_of(2, 30)]
    assert ask(engine, branch).cached_tokens == common
    assert ask(engine, prompt).cached_tokens == 149  # which is still known
    assert ask(engine, branch).cached_tokens == len(branch) - 1
    assert_nothing_held(engine)


def test_running_texts_share_full_pages_that_others_compute() -> None:
    engine = Engine(FakeRunner(pages_per_group=8, max_tokens=64), context=512)
    prompt = prompt_of(1, 128)
    first = Request([*prompt, 1], SamplingParams(), max_tokens=60, stop_ids=())
    engine.submit(first)
    engine.step()
    engine.step()
    second = Request([*prompt, 2], SamplingParams(), max_tokens=60, stop_ids=())
    engine.submit(second)
    engine.step()
    assert second.cached_tokens == 128
    assert engine.page_use().free == 8 - 2 - 2  # two shared, one each of their own
    run(engine)
    assert_right(engine, first)
    assert_right(engine, second)


def test_texts_that_compute_the_same_at_once_end_with_the_same_pages() -> None:
    engine = Engine(FakeRunner(max_tokens=256), context=512)
    requests = [
        Request([*prompt_of(1, 70), last], SamplingParams(), max_tokens=70, stop_ids=())
        for last in (1, 1, 2)
    ]
    for request in requests:
        engine.submit(request)
    engine.step()
    assert check(snapshot(engine)) == []
    tables = [request.sequences[0].tables[0].pages for request in requests]
    assert len({pages[0] for pages in tables}) == 1
    assert len({pages[1] for pages in tables}) == 3
    run(engine)
    for request in requests:
        assert_right(engine, request)
    assert_nothing_held(engine)


def test_tenants_never_see_each_others_pages() -> None:
    engine = Engine(FakeRunner(), context=512)
    prompt = prompt_of(1, 150)
    assert ask(engine, prompt, tenant="a").cached_tokens == 0
    assert ask(engine, prompt, tenant="b").cached_tokens == 0
    assert ask(engine, prompt).cached_tokens == 0
    assert ask(engine, prompt, tenant="a").cached_tokens == 149
    assert_nothing_held(engine)


def test_the_least_recently_used_goes_first_and_leaves_before_parents() -> None:
    engine = Engine(FakeRunner(pages_per_group=8), context=512)
    old, used, new = prompt_of(1, 129), prompt_of(2, 129), prompt_of(3, 129)
    ask(engine, old, 1)
    ask(engine, used, 1)
    ask(engine, used[:100], 1)
    assert engine.page_use().cached == 6
    ask(engine, [*new, *prompt_of(4, 100)], 1)  # four pages: two free, two of the oldest
    assert engine.page_use().cached == 8
    known = [engine.prefixes.find("", prompt, 128).length for prompt in (old, used, new)]
    assert known == [64, 128, 128]
    assert_nothing_held(engine)


@pytest.mark.parametrize("most_idle", [0, 1, 4, 9])
def test_ended_texts_stay_known_in_little_more_memory_than_running_ones_need(
    most_idle: int,
) -> None:
    runner = FakeRunner(pages_per_group=200)
    engine = Engine(runner, context=512, most_idle=most_idle)
    for number in range(30):
        ask(engine, prompt_of(number, 150))  # three pages
    touched = sum(page[0] != POISON for page in runner.stores[0])
    assert touched == engine.page_use().cached == 3 + most_idle
    known = sum(
        engine.prefixes.find("", prompt_of(number, 150), 128).length == 128 for number in range(30)
    )
    assert known == (3 + most_idle) // 3
    assert_nothing_held(engine)


def test_one_conversation_needs_no_memory_to_stay_known() -> None:
    runner = FakeRunner(pages_per_group=200)
    engine = Engine(runner, context=512, most_idle=0)
    prompt = prompt_of(1, 150)
    for turn in range(8):
        request = ask(engine, prompt)
        assert request.cached_tokens == (len(prompt) - 10 if turn else 0)
        prompt = request.sequences[0].tokens + prompt_of(turn + 2, 9)
    touched = sum(page[0] != POISON for page in runner.stores[0])
    assert touched == -(-len(request.sequences[0].tokens) // 64) + 1  # a page while it is copied


@all_groups
def test_a_conversation_in_the_smallest_memory(groups: tuple[CacheGroup, ...]) -> None:
    """Every turn needs nearly all pages; the last one is taken over where none is left to copy
    it.
    """
    engine = Engine(FakeRunner(groups=groups, pages_per_group=4), context=256)
    prompt = prompt_of(1, 40)
    while len(prompt) + 20 <= 256:
        request = ask(engine, prompt)
        prompt = request.sequences[0].tokens + prompt_of(len(prompt), 9)
        assert len(request.prompt) == 40 or request.cached_tokens >= len(request.prompt) - 64
    assert_nothing_held(engine)


def test_an_evicted_window_page_shortens_the_hit() -> None:
    groups = (CacheGroup(), CacheGroup(70))
    engine = Engine(FakeRunner(groups=groups), context=512)
    prompt = prompt_of(1, 300)
    ask(engine, prompt, 1)
    window = engine.pages.pools[1]
    path = engine.prefixes.find("", prompt, 299).path
    engine.prefixes.forget(1, path[3].pages[1])  # positions 192 to 255
    assert check(snapshot(engine)) == []
    assert ask(engine, prompt, 1).cached_tokens == 192
    assert ask(engine, prompt, 1).cached_tokens == 299  # it was computed again, and is known
    assert len(window.free) + len(window.idle) == window.size
    assert_nothing_held(engine)


def test_forgetting_under_a_running_text_leaves_it_right() -> None:
    engine = Engine(FakeRunner(), context=512)
    request = Request(prompt_of(1, 100), SamplingParams(), max_tokens=200, stop_ids=())
    engine.submit(request)
    for step in range(12):
        engine.step()
        if step == 5:
            engine.prefixes.clear()
    run(engine)
    assert_right(engine, request)
    assert_nothing_held(engine)


@all_groups
def test_what_was_computed_before_an_interrupt_is_known_after_it(
    groups: tuple[CacheGroup, ...],
) -> None:
    engine = Engine(FakeRunner(groups=groups, max_tokens=64), context=512)
    prompt = prompt_of(1, 150)
    request = Request(prompt, SamplingParams(), max_tokens=20, stop_ids=())
    engine.submit(request)
    engine.step()
    engine.step()
    engine.reset()
    assert check(snapshot(engine)) == []
    assert request.error is not None and math.isfinite(request.finished_s)
    assert ask(engine, prompt).cached_tokens == 128
    assert_nothing_held(engine)
