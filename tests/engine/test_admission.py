"""Promises: given only if they can be kept, and kept whatever comes later."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from serving_model import LIMITS, Server, cost_model, mixed, request, usual

from subsecond.engine.admission import ROUNDING, decide
from subsecond.engine.capacity import capacity, trial
from subsecond.engine.cost import Coefficients, CostModel
from subsecond.engine.forecast import forecast
from subsecond.engine.policy import Item, StepLimits

Make = Callable[[random.Random, int, float], Item]


def drive(
    make: Make, *, rate: float, seed: int, arrivals: int, least: float, cancel: float
) -> Server:
    """Poisson arrivals at a server whose steps take `least` to 1 of their bound."""
    source, costs = random.Random(seed), random.Random(seed + 1)
    server = Server(cost_model(), LIMITS, lambda: costs.uniform(least, 1.0))
    moment = 0.0
    for id_ in range(arrivals):
        moment += source.expovariate(rate)
        server.run_until(moment)
        server.offer(make(source, id_, moment))
        if source.random() < cancel and server.items:
            server.items.pop(source.randrange(len(server.items)))
    server.run_until(math.inf)
    return server


@pytest.mark.parametrize("rate", [5, 12, 40])
@pytest.mark.parametrize("least", [1.0, 0.6])
@pytest.mark.parametrize(("make", "cancel"), [(usual, 0.0), (usual, 0.1), (mixed, 0.1)])
def test_no_promise_is_broken(make: Make, rate: float, least: float, cancel: float) -> None:
    for seed in range(3):
        server = drive(make, rate=rate, seed=seed, arrivals=150, least=least, cancel=cancel)
        assert server.broken == []
        assert len(server.kept) >= 20


def test_overload_answers_as_many_as_full_load() -> None:
    kept = {}
    for rate in (10, 14, 28):
        server = drive(usual, rate=rate, seed=1, arrivals=60 * rate, least=1.0, cancel=0.0)
        kept[rate] = len(server.kept) / 60
    assert min(kept.values()) >= 0.9 * max(kept.values())


def test_an_idle_server_promises_and_predicts_what_happens() -> None:
    server = Server(cost_model(), LIMITS)
    decision = server.offer(request())
    assert (decision.promised, decision.reason, decision.retry_after_s) == (True, "", 0.0)
    server.run_until(math.inf)
    assert server.now_s == pytest.approx(decision.finish_s / ROUNDING, rel=0.01)
    assert server.kept == [0]


def test_what_an_idle_machine_cannot_do_is_declined_for_ever() -> None:
    decision = decide(request(deadline_s=0.1), [], 0.0, cost_model(), LIMITS)
    assert (decision.promised, decision.reason) == (False, "too_short")
    assert decision.finish_s > 0.2
    assert decision.retry_after_s == math.inf


def test_a_deadline_in_the_past_is_declined() -> None:
    assert not decide(request(deadline_s=5.0), [], 9.0, cost_model(), LIMITS).promised


def test_a_full_machine_says_when_to_come_again() -> None:
    server, id_ = Server(cost_model(), LIMITS), 0
    while (decision := server.offer(request(id_))).promised:
        id_ += 1
    assert decision.reason == "busy"
    assert 0 < decision.retry_after_s < 1.0
    assert decision.finish_s == pytest.approx(1.0 + decision.retry_after_s)
    server.run_until(decision.retry_after_s + 0.05)
    again = server.offer(request(id_, deadline_s=server.now_s + 1.0, arrival_s=server.now_s))
    assert again.promised


def test_full_promises_less_than_finish() -> None:
    """Half of the tokens promised: more requests have room. The rest comes as far as it fits."""
    promised = {}
    for tokens in (24, 48):
        server = Server(cost_model(), LIMITS)
        promised[tokens] = sum(
            server.offer(request(id_, promised_tokens=tokens)).promised for id_ in range(30)
        )
        server.run_until(math.inf)
        assert server.broken == []
    assert promised[24] > promised[48] > 3


def test_places_and_positions_are_promised_too() -> None:
    few = StepLimits(tokens=512, sequences=2, rows=2)
    held = [request(id_, deadline_s=20.0) for id_ in (1, 2)]
    decision = decide(request(3, deadline_s=30.0), held, 0.0, cost_model(), few)
    assert (decision.promised, decision.reason) == (False, "full")
    assert 0 < decision.retry_after_s < 1.0
    small = StepLimits(tokens=512, sequences=64, rows=64, positions=512)
    assert decide(request(3), held[:1], 0.0, cost_model(), small).promised
    assert decide(request(3), held, 0.0, cost_model(), small).reason == "full"
    large = decide(request(3, prompt_left=1000), [], 0.0, cost_model(), small)
    assert (large.reason, large.retry_after_s) == ("too_large", math.inf)


def test_more_texts_than_a_step_holds_are_told_when_to_come_again() -> None:
    few = StepLimits(tokens=16, sequences=16, rows=16)
    cost = CostModel(Coefficients(((1, 0.004), (16, 0.008)), 0.0, 0.0, 0.0), max_tokens=16)
    held = [
        request(id_, prompt_left=prompt, choices=choices, deadline_s=20.0 + id_)
        for id_, prompt, choices in ((1, 1, 8), (2, 1, 7), (3, 60, 1))
    ]
    new = request(4, prompt_left=1, choices=16, deadline_s=20.0)
    decision = decide(new, held, 0.0, cost, few)
    assert (decision.promised, decision.reason) == (False, "full")
    assert 0 < decision.retry_after_s < 1.0


def test_the_step_that_runs_now_counts() -> None:
    new = request(deadline_s=0.3)
    assert decide(new, [], 0.0, cost_model(), LIMITS).promised
    assert not decide(new, [], 0.0, cost_model(), LIMITS, free_s=0.2).promised


def test_low_priority_leaves_a_reserve() -> None:
    promised = {}
    for priority in (0, -1):
        server = Server(cost_model(), LIMITS)
        offers = [server.offer(request(id_, priority=priority)) for id_ in range(20)]
        promised[priority] = sum(offer.promised for offer in offers)
    assert promised[-1] < promised[0]


def test_a_lost_promise_does_not_close_the_door() -> None:
    lost = request(1, deadline_s=0.05)
    assert decide(request(2), [lost], 0.0, cost_model(), LIMITS).promised


def test_the_closed_form_of_decoding_is_exact() -> None:
    cost = cost_model()
    server = Server(cost, LIMITS)
    for id_ in range(4):
        tokens = 300 + id_
        item = request(id_, prompt_left=0, context=100, decode_left=tokens, deadline_s=1e4)
        item.promised_tokens = tokens
        server.items.append(item)
    wanted = forecast(server.items, 0.0, cost, LIMITS).finish_s
    server.run_until(math.inf)
    assert wanted[3] == pytest.approx(server.now_s, rel=1e-9)


def test_capacity_is_what_a_server_can_promise() -> None:
    def stated(cost: CostModel) -> float:
        found = capacity(cost, LIMITS, prompt_tokens=140, new_tokens=48, within_s=1.0, arrivals=300)
        assert 0 < found.alone_s < found.p99_s <= 1.0
        return found.requests_per_s

    fast, careful = stated(cost_model()), stated(cost_model(margin=1.3))
    assert 5.0 < fast < 9.0
    assert careful < 0.95 * fast


def test_capacity_of_the_impossible_is_none() -> None:
    found = capacity(cost_model(), LIMITS, prompt_tokens=2000, new_tokens=48, within_s=0.2)
    assert found.requests_per_s == 0.0
    assert found.alone_s > 0.2


def test_a_trial_loses_nobody() -> None:
    def make(index: int, now_s: float) -> Item:
        return request(index, deadline_s=now_s + 1.0, arrival_s=now_s)

    found = trial(cost_model(), LIMITS, make, rate=20.0, arrivals=300)
    assert found.late == 0
    assert found.declined + len(found.latencies_s) == found.arrivals == 300
    assert found.latencies_s[-1] <= 1.0
