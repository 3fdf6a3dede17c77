"""Promises on the whole engine: the policy's steps, real pages and a prefix cache, on a clock that
the fake model moves by what its steps cost.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from engine_at_rest import assert_nothing_held, idle
from fake_runner import FakeRunner, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_model import cost_model

from subsecond.engine import engine as engine_module
from subsecond.engine import request as request_module
from subsecond.engine.admission import Decision, decide
from subsecond.engine.cost import CostModel, StepShape
from subsecond.engine.engine import Engine
from subsecond.engine.invariants import check, snapshot
from subsecond.engine.policy import Item, StepLimits, longest_s
from subsecond.engine.report import StepReport
from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams
from subsecond.engine.sharing import Sharing, item_of

PAGES = 24
LIMITS = StepLimits(tokens=48, sequences=4, rows=8, positions=PAGES * 64)


@dataclass
class Clock:
    now_s: float = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    yield from _clock(monkeypatch)


def _clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(engine_module, "time", clock)
    monkeypatch.setattr(request_module, "time", clock)
    yield clock


class Server:
    """An engine that keeps promises, and what an admission that sees it all decides. took: seconds
    of a step over the model's bound, least and most.
    """

    def __init__(self, clock: Clock, seed: int = 0, least: float = 1.0) -> None:
        self.clock = clock
        self.cost = cost_model(margin=1.0)
        self.runner = FakeRunner(pages_per_group=PAGES)
        self.engine = Engine(self.runner, context=512, steps_per_call=1)
        self.engine.keep_promises(Sharing(self.cost, LIMITS))
        self.requests: list[Request] = []
        self.cancelled: set[Request] = set()
        self._source, self._least = random.Random(seed), least
        self._run = self.runner.run
        self.runner.run = self._timed  # type: ignore[method-assign]

    def request(self, prompt: list[int], max_tokens: int, **more: Any) -> Request:
        params = SamplingParams(n=more.pop("n", 1))
        return Request(prompt, params, max_tokens=max_tokens, stop_ids=(), **more)

    def submit(self, prompt: list[int], max_tokens: int, **more: Any) -> Request:
        request = self.request(prompt, max_tokens, **more)
        self.engine.submit(request)
        self.requests.append(request)
        return request

    def offer(self, prompt: list[int], max_tokens: int, within_s: float, **more: Any) -> Decision:
        """A request that is submitted if its deadline can be promised in full."""
        given = {"promised_tokens": max_tokens, "on_deadline": "full", **more}
        deadline_s = self.clock.now_s + within_s
        request = self.request(prompt, max_tokens, deadline_s=deadline_s, **given)
        (new,) = self._items([request])
        scheduler = self.engine.scheduler
        held = self._items([*scheduler.running, *scheduler.waiting])
        decision = decide(new, held, self.clock.now_s, self.cost, LIMITS)
        if decision.promised or deadline_s == math.inf:
            self.engine.submit(request)
            self.requests.append(request)
        return decision

    def step(self) -> StepReport | None:
        self.engine.expire(self.clock.now_s, 0.0)
        report = self.engine.step()
        assert check(snapshot(self.engine)) == []
        return report

    def run(self, most: int = 3000) -> None:
        for _ in range(most):
            if idle(self.engine):
                return
            self.step()
        raise AssertionError("no end")

    def cancel(self, request: Request) -> None:
        self.engine.cancel(request)
        self.cancelled.add(request)

    def assert_all_right(self) -> None:
        for request in self.requests:
            if request in self.cancelled:
                continue
            for choice, sequence in enumerate(request.sequences):
                got = sequence.tokens[len(request.prompt) :]
                assert got == reference(request.prompt, request.max_tokens, choice=choice)
                assert sequence.finish_reason == "length"
            assert request.finished_s <= request.deadline_s
        assert_nothing_held(self.engine)

    def _items(self, requests: list[Request]) -> list[Item]:
        """One item a request, as the front has it: it doesn't see texts one by one."""
        found = []
        for number, request in enumerate(requests):
            open_ = [text for text in request.sequences if text.finish_reason is None]
            item = item_of(max(open_, key=lambda text: text.wanted), number)
            item.id = id(request)
            item.choices = request.params.n
            found.append(item)
        return found

    def _timed(self, tokens: int, sequences: int, rows: int, max_steps: int) -> int:
        plan, positions, stored = self.runner.plan, 0, 0
        for index in range(sequences):
            count = plan.sequence_start[index + 1] - plan.sequence_start[index]
            positions += count * plan.position[index] + count * (count + 1) // 2
            stored += plan.position[index] + count
        shape = StepShape(tokens, rows, sequences, positions, stored)
        self.clock.now_s += self.cost.bound(shape) * self._source.uniform(self._least, 1.0)
        return self._run(tokens, sequences, rows, max_steps)


def prompt_of(seed: int, length: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(97) for _ in range(length)]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16), least=st.sampled_from([0.5, 0.9, 1.0]))
def test_what_was_promised_is_kept_whatever_comes(
    data: st.DataObject, seed: int, least: float
) -> None:
    """Random arrivals, lengths, deadlines and cancels, beside work that nothing was promised."""
    with pytest.MonkeyPatch.context() as patch:
        (clock,) = _clock(patch)
        server = Server(clock, seed, least)
        for _ in range(data.draw(st.integers(5, 40))):
            action = data.draw(st.sampled_from(["offer"] * 4 + ["free", "cancel"] + ["step"] * 4))
            prompt = prompt_of(data.draw(st.integers(0, 3)), data.draw(st.integers(1, 300)))
            most = data.draw(st.integers(1, 60))
            n = data.draw(st.sampled_from([1, 1, 1, 2]))
            if action == "offer":
                within_s = data.draw(st.sampled_from([0.1, 0.3, 0.6, 1.0, 3.0]))
                server.offer(prompt, most, within_s, n=n)
            elif action == "free":
                server.submit(prompt, most, n=n, priority=data.draw(st.integers(-2, 2)))
            elif action == "cancel" and server.requests:
                server.cancel(data.draw(st.sampled_from(server.requests)))
            else:
                for _ in range(data.draw(st.integers(1, 40))):
                    server.step()
            assert check(snapshot(server.engine)) == []
        server.run()
        server.assert_all_right()


def test_overload_keeps_what_it_promises(clock: Clock) -> None:
    server = Server(clock, least=0.7)
    source, promised, declined = random.Random(4), 0, 0
    moment_s = clock.now_s
    for number in range(120):
        moment_s += source.expovariate(20.0)
        while clock.now_s < moment_s and not idle(server.engine):
            server.step()
        clock.now_s = max(clock.now_s, moment_s)
        if server.offer(prompt_of(number, 100), 24, 0.6).promised:
            promised += 1
        else:
            declined += 1
    server.run()
    server.assert_all_right()
    assert promised > 20 and declined > 20


def test_the_one_in_a_hurry_comes_first(clock: Clock) -> None:
    server = Server(clock)
    patient = server.submit(
        prompt_of(1, 200), 8, deadline_s=clock.now_s + 9, promised_tokens=8, on_deadline="full"
    )
    hurried = server.submit(
        prompt_of(2, 90), 8, deadline_s=clock.now_s + 0.3, promised_tokens=8, on_deadline="full"
    )
    server.run()
    assert hurried.first_token_s < patient.first_token_s
    server.assert_all_right()


def test_the_step_is_as_long_as_the_budget_says(clock: Clock) -> None:
    server = Server(clock)
    server.offer(prompt_of(1, 300), 4, 3.0)
    before_s = clock.now_s
    server.step()
    assert 0.015 < clock.now_s - before_s <= LIMITS.step_s
    assert server.requests[0].sequences[0].computed < 48
    server.run()
    for number, within_s in enumerate((math.inf, 30.0), 1):  # nothing is in a hurry
        server.offer(prompt_of(1 + number, 300), 4, within_s)
        before_s = clock.now_s
        server.step()  # as much as a step of the model holds
        assert LIMITS.step_s < clock.now_s - before_s <= LIMITS.free_step_s
        assert server.requests[number].sequences[0].computed == 48
        server.run()


def test_without_sharing_steps_are_first_come_first_served(clock: Clock) -> None:
    engine = Engine(FakeRunner(), context=512)
    late, soon = (
        Request(prompt_of(seed, 60), SamplingParams(), max_tokens=4, stop_ids=()) for seed in (1, 2)
    )
    engine.submit(late)
    engine.submit(soon)
    engine.step()
    assert (late.sequences[0].computed, soon.sequences[0].computed) == (48, 0)


def test_low_priority_waits_but_not_for_ever(clock: Clock) -> None:
    """A level of priority is worth five seconds of arrival."""
    server = Server(clock)
    for seed in range(4):
        server.submit(prompt_of(seed, 10), 30)
    low = server.submit(prompt_of(9, 10), 5, priority=-1)
    others = []
    while not low.finished:
        if len(server.engine.scheduler.waiting) < 3:
            others.append(server.submit(prompt_of(len(others), 10), 30))
        server.step()
        assert clock.now_s < 1007.0
    assert clock.now_s > 1005.0
    server.run()
    server.assert_all_right()


def test_the_longest_next_step(clock: Clock) -> None:
    cost: CostModel = cost_model(margin=1.2)
    sharing = Sharing(cost, LIMITS)
    server = Server(clock)
    assert sharing.longest_s([], clock.now_s) == 0.0
    request = server.submit(prompt_of(1, 60), 9)
    server.step()
    assert sharing.longest_s(server.engine.scheduler.active(), clock.now_s) == LIMITS.free_step_s
    request.deadline_s = clock.now_s + 11
    assert sharing.longest_s(server.engine.scheduler.active(), clock.now_s) == LIMITS.free_step_s
    request.deadline_s = clock.now_s + 9
    assert sharing.longest_s(server.engine.scheduler.active(), clock.now_s) == LIMITS.step_s
    while request.sequences[0].generated == 0:
        server.step()
    decode = sharing.longest_s(server.engine.scheduler.active(), clock.now_s)
    assert decode == cost.bound(StepShape(1, 1, 1, 61, 61))
    slow = StepShape(40, 40, 40, 0, 0)
    assert longest_s(slow, cost, LIMITS) == 1.5 * cost.bound(slow) > LIMITS.step_s


def test_a_text_ends_in_time_and_is_told_so(clock: Clock) -> None:
    server = Server(clock)
    deadline_s = clock.now_s + 0.1
    request = server.submit([1, 2, 3], 400, deadline_s=deadline_s, promised_tokens=5)
    while not request.finished:
        scheduler = server.engine.scheduler
        assert scheduler.sharing is not None
        step_s = scheduler.sharing.longest_s(scheduler.active(), clock.now_s)
        server.engine.expire(clock.now_s, step_s)
        server.engine.step()
    text = request.sequences[0]
    assert text.finish_reason == "deadline"
    assert text.generated > 20
    assert deadline_s - 0.005 < clock.now_s <= deadline_s
