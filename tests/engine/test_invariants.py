"""The invariants have teeth: every kind of damage to an engine's state is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_at_rest import idle
from fake_runner import FakeRunner

from subsecond.engine.engine import Engine
from subsecond.engine.invariants import check, snapshot
from subsecond.engine.pages import NO_PAGE, CacheGroup
from subsecond.engine.request import Request, SamplingParams


def running_engine() -> Engine:
    engine = Engine(FakeRunner(groups=(CacheGroup(), CacheGroup(70))), context=512)
    for seed, choices in ((1, 1), (2, 2)):
        prompt = [(seed * i) % 97 for i in range(100)]
        params = SamplingParams(n=choices, logprobs=1)
        engine.submit(Request(prompt, params, max_tokens=100, stop_ids=()))
    for _ in range(8):
        engine.step()
    assert check(snapshot(engine)) == []
    return engine


def lose_a_page(engine: Engine) -> None:
    engine.pages.pools[0].free.pop()


def free_twice(engine: Engine) -> None:
    engine.pages.pools[0].free.append(engine.pages.pools[0].free[0])


def forget_a_reference(engine: Engine) -> None:
    table = engine.scheduler.running[1].sequences[0].tables[0]
    engine.pages.pools[0].references[table.pages[0]] -= 1


def give_back_too_early(engine: Engine) -> None:
    table = engine.scheduler.running[0].sequences[0].tables[1]
    engine.pages.pools[1].give(table.pages[table.first])
    table.pages[table.first] = NO_PAGE
    table.first += 1


def leave_a_hole(engine: Engine) -> None:
    table = engine.scheduler.running[0].sequences[0].tables[0]
    engine.pages.pools[0].give(table.pages[0])
    table.pages[0] = NO_PAGE


def compute_without_pages(engine: Engine) -> None:
    sequence = engine.scheduler.running[0].sequences[0]
    sequence.tokens += [0] * 200
    sequence.computed += 190


def break_a_promise(engine: Engine) -> None:
    engine.pages.pools[0].promised += 1


def promise_too_little(engine: Engine) -> None:
    request = engine.scheduler.running[0]
    engine.pages.withdraw(request.promise)
    request.promise = [1, 1]
    engine.pages.promise(request.promise)


def keep_pages_after_the_end(engine: Engine) -> None:
    engine.scheduler.running[1].sequences[1].finish_reason = "stop"


def run_a_finished_request(engine: Engine) -> None:
    engine.scheduler.running[0].sequences[0].finish_reason = "stop"


def lose_the_prompt(engine: Engine) -> None:
    engine.scheduler.running[0].sequences[0].tokens[3] += 1


def lose_a_logprob(engine: Engine) -> None:
    engine.scheduler.running[0].sequences[0].logprobs.pop()


def wait_and_run(engine: Engine) -> None:
    engine.scheduler.waiting.append(engine.scheduler.running[0])


DAMAGES = [
    (lose_a_page, "group 0: page 5 is free and held, or neither"),
    (free_twice, "group 0: a page is free twice"),
    (forget_a_reference, "group 0: page 2 has 1 references, 2 holders"),
    (give_back_too_early, "group 1: a page inside the window was given back"),
    (leave_a_hole, "group 0: given back pages are not the first ones"),
    (compute_without_pages, "group 0: computed positions without a page"),
    (break_a_promise, "group 0: 12 pages are promised, requests hold 11"),
    (promise_too_little, "group 0: 2 pages held, 1 promised"),
    (keep_pages_after_the_end, "a finished sequence holds pages"),
    (run_a_finished_request, "a finished request runs"),
    (lose_the_prompt, "a sequence lost its prompt"),
    (lose_a_logprob, "tokens without log probabilities"),
    (wait_and_run, "a request waits and runs"),
]


@pytest.mark.parametrize(("damage", "named"), DAMAGES)
def test_damage_is_named(damage: Callable[[Engine], None], named: str) -> None:
    engine = running_engine()
    damage(engine)
    assert named in check(snapshot(engine))


def test_the_fake_model_notices_a_page_that_is_not_copied() -> None:
    """Without copy on write, texts of one prompt would overwrite each other: the answer changes."""
    answers = []
    for broken in (False, True):
        runner = FakeRunner()
        engine = Engine(runner, context=512)
        if broken:
            engine.pages._copy_page = lambda group, source, destination: None
        request = Request([5] * 70, SamplingParams(n=2), max_tokens=10, stop_ids=())
        engine.submit(request)
        while not idle(engine):
            engine.step()
        answers.append([sequence.tokens for sequence in request.sequences])
    assert answers[0] != answers[1]
