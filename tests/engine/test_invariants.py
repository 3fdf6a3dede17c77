"""The invariants have teeth: every kind of damage to an engine's state is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_at_rest import idle
from fake_runner import FakeRunner

from subsecond.engine.engine import Engine
from subsecond.engine.invariants import check, snapshot
from subsecond.engine.pages import NO_PAGE, CacheGroup
from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams


def running_engine() -> Engine:
    engine = Engine(FakeRunner(groups=(CacheGroup(), CacheGroup(70))), context=512)
    engine.submit(Request([3] * 130, SamplingParams(), max_tokens=1, stop_ids=()))
    while not idle(engine):
        engine.step()
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


def lose_a_text(engine: Engine) -> None:
    engine._preempt(engine.scheduler.running[1].sequences[0])
    engine.scheduler.unplaced.clear()


def lose_pages_alone(engine: Engine) -> None:
    sequence = engine.scheduler.running[1].sequences[1]
    engine.pages.close(sequence.tables)
    sequence.tables = []


def wait_out_of_order(engine: Engine) -> None:
    engine.scheduler.running.reverse()


def make_an_unknown_page_idle(engine: Engine) -> None:
    pool = engine.pages.pools[0]
    pool.idle[pool.free.pop()] = None


def use_a_parent_less_than_its_successor(engine: Engine) -> None:
    pool = engine.pages.pools[0]
    pool.idle = dict.fromkeys(reversed(pool.idle))


def forget_where_a_page_leads(engine: Engine) -> None:
    engine.prefixes.entries[0].popitem()


def know_a_page_under_other_tokens(engine: Engine) -> None:
    root = engine.prefixes.roots[""]
    entry = engine.scheduler.running[0].sequences[0].entry
    assert entry is not None
    del root.children[entry.key]
    entry.key = bytes(256)
    root.children[entry.key] = entry
    root.keys = sorted(root.children)


def know_a_page_too_early(engine: Engine) -> None:
    sequence = engine.scheduler.running[0].sequences[0]
    sequence.computed = 60


def give_a_page_to_another_tenant(engine: Engine) -> None:
    engine.scheduler.running[0].tenant = "other"


def hold_an_equal_page(engine: Engine) -> None:
    table, pool = engine.scheduler.running[0].sequences[0].tables[0], engine.pages.pools[0]
    pool.give(table.pages[0])
    table.pages[0] = pool.take()


def know_a_full_page_in_one_group_alone(engine: Engine) -> None:
    entry = engine.scheduler.running[0].sequences[0].entry
    assert entry is not None
    engine.prefixes._disown(entry, 0)


def mislay_an_entry(engine: Engine) -> None:
    entry = engine.scheduler.running[0].sequences[0].entry
    assert entry is not None
    entry.depth = 7


def mix_up_the_keys(engine: Engine) -> None:
    engine.prefixes.roots[""].keys.reverse()


DAMAGES = [
    (lose_a_page, "group 0: page 8 isn't one of held, idle and free"),
    (free_twice, "group 0: a page is free twice"),
    (forget_a_reference, "group 0: page 5 has 1 references, 2 holders"),
    (give_back_too_early, "group 1: a page inside the window was given back"),
    (leave_a_hole, "group 0: given back pages are not the first ones"),
    (compute_without_pages, "group 0: computed positions without a page"),
    (keep_pages_after_the_end, "a finished sequence holds pages"),
    (run_a_finished_request, "a finished request runs"),
    (lose_the_prompt, "a sequence lost its prompt"),
    (lose_a_logprob, "tokens without log probabilities"),
    (wait_and_run, "a request waits and runs"),
    (lose_a_text, "a text of a running request is lost, or waits and runs"),
    (lose_pages_alone, "a text without pages has computed tokens"),
    (wait_out_of_order, "requests are out of order"),
    (make_an_unknown_page_idle, "group 0: page 8 is idle, but its content is unknown"),
    (use_a_parent_less_than_its_successor, "group 0: page 0 goes before 1, which follows it"),
    (forget_where_a_page_leads, "group 0: page 5 doesn't lead to its entry"),
    (know_a_page_under_other_tokens, "page 0 is known under other tokens than its text's"),
    (know_a_page_too_early, "page 0 is known before it is computed"),
    (give_a_page_to_another_tenant, "a text's pages are known to another tenant"),
    (hold_an_equal_page, "group 0: a text holds page 8 beside the known 3"),
    (know_a_full_page_in_one_group_alone, "group 0: an entry has no page"),
    (mislay_an_entry, "an entry isn't where it says"),
    (mix_up_the_keys, "an entry's keys are not its children's"),
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
