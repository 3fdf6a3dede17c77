"""Requests on one model, without a process: events, ends and deadlines at chosen times."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from engine_at_rest import assert_nothing_held
from fake_runner import FakeRunner, reference
from serving_model import cost_model

from subsecond.engine.engine import Engine
from subsecond.engine.messages import Cancel, Event, SamplingFields, Submit
from subsecond.engine.served_model import ServedModel, StepTimes
from subsecond.errors import InputError, RequestError

LONG = list(range(80))  # more tokens than a step of the fake runner holds
NOW_S = 1000.0


class Steady(StepTimes):
    """Every step takes as long as the last."""

    def expected_s(self, *, prompts: bool) -> float:
        return 0.25


def served(**sizes: Any) -> ServedModel:
    model = ServedModel("fake", Engine(FakeRunner(**sizes), context=512, steps_per_call=1), "fake")
    model.times = Steady()
    return model


def submit(
    model: ServedModel, id: int, prompt: list[int], max_tokens: int = 6, **more: Any
) -> None:
    fields = {
        name: more.pop(name) for name in list(more) if name in SamplingFields.__struct_fields__
    }
    model.submit(Submit(id, "fake", prompt, SamplingFields(max_tokens, **fields), **more))


def take(model: ServedModel) -> list[Event]:
    message = model.take_message()
    return [] if message is None else message.events


def run(model: ServedModel, now_s: float = NOW_S) -> list[Event]:
    """Steps until nothing is left."""
    events = take(model)
    while model.in_flight:
        model.expire(now_s)
        model.step()
        events += take(model)
    return events


def tokens_of(events: list[Event], id: int, choice: int = 0) -> list[int]:
    return [t for event in events if (event.id, event.choice) == (id, choice) for t in event.tokens]


def ends_of(events: list[Event], id: int) -> list[Event]:
    return [event for event in events if event.id == id and event.ends_request]


def test_each_step_tells_of_all_streams_at_once() -> None:
    model = served()
    prompts = {1: [1, 2, 3], 2: [4, 5]}
    for id, prompt in prompts.items():
        submit(model, id, prompt)
    model.step()
    message = model.take_message()
    assert message is not None
    assert [(event.id, len(event.tokens)) for event in message.events] == [(1, 1), (2, 1)]
    assert message.stats.shape is not None
    assert (message.stats.shape.tokens, message.stats.shape.rows) == (5, 2)
    assert message.stats.shape.positions == 1 + 2 + 3 + 1 + 2
    assert (message.stats.running, message.stats.waiting) == (2, 0)
    events = message.events + run(model)
    for id, prompt in prompts.items():
        assert tokens_of(events, id) == reference(prompt, 6)
    assert_nothing_held(model.engine)


def test_the_last_event_counts_and_dates_the_request() -> None:
    model = served()
    submit(model, 1, [1, 2, 3], n=2)
    events = run(model)
    (end,) = ends_of(events, 1)
    assert end.usage is not None and end.timing is not None
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (3, 12)
    timing = end.timing
    assert timing.received_s <= timing.scheduled_s <= timing.first_token_s <= timing.finished_s
    assert sum(event.finish_reason == "length" for event in events) == 2
    assert [tokens_of(events, 1, choice) for choice in (0, 1)] == [
        reference([1, 2, 3], 6, choice=choice) for choice in (0, 1)
    ]


def test_logprobs_come_with_their_tokens() -> None:
    model = served()
    submit(model, 1, [1, 2], logprobs=1)
    events = run(model)
    assert all(len(event.logprobs or []) == len(event.tokens) for event in events)
    assert sum(len(event.logprobs or []) for event in events) == 6


@pytest.mark.parametrize("stage", ["queue", "prefill", "decode"])
def test_cancel_ends_a_request_at_once(stage: str) -> None:
    model = served(max_sequences=1) if stage == "queue" else served()
    if stage == "queue":
        submit(model, 1, [1, 2])
        model.step()
    submit(model, 2, LONG if stage == "prefill" else [3, 4])
    model.step()
    before = take(model)
    assert model.cancel(Cancel(2))
    calls = len(model.engine.runner.calls)  # type: ignore[attr-defined]
    (end,) = ends_of(take(model), 2)
    assert (end.finish_reason, end.tokens) == ("cancelled", [])
    assert len(tokens_of(before, 2)) == (1 if stage == "decode" else 0)
    assert len(model.engine.runner.calls) == calls  # type: ignore[attr-defined]
    assert not model.cancel(Cancel(2))
    run(model)
    assert_nothing_held(model.engine)


def test_one_text_of_several_ends_alone() -> None:
    model = served()
    submit(model, 1, [1, 2, 3], n=3)
    model.step()
    model.cancel(Cancel(1, 1, "stop"))
    events = run(model)
    ends = {event.choice: event.finish_reason for event in events if event.finish_reason}
    assert ends == {0: "length", 1: "stop", 2: "length"}
    assert len(ends_of(events, 1)) == 1
    assert_nothing_held(model.engine)


def test_a_text_that_has_not_begun_ends_with_its_request() -> None:
    model = served()
    submit(model, 1, LONG, n=2)
    model.step()
    model.cancel(Cancel(1, 0))
    assert len(ends_of(take(model), 1)) == 1
    assert_nothing_held(model.engine)


@pytest.mark.parametrize("stage", ["queue", "prefill", "decode"])
def test_an_expired_request_ends_before_anything_is_spent_on_it(stage: str) -> None:
    model = served(max_sequences=1) if stage == "queue" else served()
    if stage == "queue":
        submit(model, 1, [1, 2])
        model.step()
    submit(model, 2, LONG if stage == "prefill" else [3, 4], deadline_s=NOW_S, promised_tokens=6)
    model.expire(NOW_S - 0.01)  # fewer tokens than promised: not yet
    model.step()
    assert not ends_of(take(model), 2)
    model.expire(NOW_S)
    (end,) = ends_of(take(model), 2)
    assert end.finish_reason == "deadline"
    run(model)
    assert_nothing_held(model.engine)


def test_a_request_that_comes_too_late_computes_nothing() -> None:
    model = served()
    submit(model, 1, [1, 2], deadline_s=NOW_S - 1)
    model.expire(NOW_S)
    assert ends_of(take(model), 1)[0].finish_reason == "deadline"
    assert model.engine.runner.calls == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("on_deadline", "promised", "early"),
    [("finish", 1, True), ("finish", 5, False), ("full", 1, False)],
)
def test_an_answer_ends_in_time_once_the_promise_is_kept(
    on_deadline: str, promised: int, early: bool
) -> None:
    model = served()
    submit(model, 1, [1, 2], deadline_s=NOW_S, promised_tokens=promised, on_deadline=on_deadline)
    model.step()
    model.step()
    model.expire(NOW_S - 0.2)  # the next step would take 0.25 s
    assert bool(ends_of(take(model), 1)) == early
    model.expire(NOW_S)
    assert not model.in_flight


@pytest.mark.parametrize(
    ("prompt", "more", "param"),
    [
        ([1, 97], {}, "prompt"),
        ([1], {"max_tokens": 512}, "max_tokens"),
        ([1], {"n": 5}, "n"),
        ([1], {"min_tokens": 9}, "min_tokens"),
        ([1], {"temperature": math.nan}, "temperature"),
        ([1], {"top_p": 0.0}, "top_p"),
        ([1], {"logit_bias": {97: 1.0}}, "logit_bias"),
        ([1], {"stop_ids": [97]}, "stop_token_ids"),
    ],
)
def test_a_bad_value_is_that_requests_fault_alone(
    prompt: list[int], more: dict[str, Any], param: str
) -> None:
    model = served()
    submit(model, 1, [5, 6])
    with pytest.raises(RequestError) as caught:
        submit(model, 2, prompt, **more)
    assert caught.value.param == param
    assert tokens_of(run(model), 1) == reference([5, 6], 6)


def test_a_fault_in_a_step_ends_only_its_request() -> None:
    model = served()
    runner: Any = model.engine.runner
    submit(model, 1, [1, 2])
    submit(model, 2, [3, 4])
    runner.faults = {1: 3}  # the second row's logits are not finite
    model.step()
    runner.faults = {}
    events = run(model)
    (end,) = ends_of(events, 2)
    assert end.error is not None and end.error.kind == "RuntimeFailure"
    assert tokens_of(events, 1) == reference([1, 2], 6)
    assert_nothing_held(model.engine)


def test_step_times_keep_prompts_and_decoding_apart() -> None:
    from subsecond.engine.cost import StepShape
    from subsecond.engine.report import StepReport

    times = StepTimes()
    assert times.expected_s(prompts=True) == 0.0
    times.observe(StepReport(StepShape(2, 2, 2, 9), 1, 0.25, []))
    assert times.expected_s(prompts=True) == times.expected_s(prompts=False) == 0.25
    times.observe(StepReport(StepShape(40, 2, 2, 99), 1, 2.0, []))
    assert (times.expected_s(prompts=True), times.expected_s(prompts=False)) == (2.0, 0.25)


def test_steps_say_what_is_left_of_prompts_and_when_they_ended() -> None:
    model = served()
    submit(model, 7, LONG)
    submit(model, 8, [1])
    model.step()
    message = model.take_message()
    assert message is not None
    assert message.stats.prompts == [(7, 80 - 47)]
    assert 0 < message.stats.elapsed_s < message.stats.ended_s
    model.step()
    message = model.take_message()
    assert message is not None and message.stats.prompts == []
    run(model)


def test_what_passed_before_a_step_counts_as_its_own() -> None:
    model = served()
    submit(model, 1, [1])
    model.step(time.monotonic() - 5.0)
    message = model.take_message()
    assert message is not None and message.stats.elapsed_s >= 5.0


def test_costs_are_learnt_from_and_bad_ones_refused() -> None:
    model = served()
    with pytest.raises(InputError, match="delete them"):
        model.keep_promises(b"{}")
    assert model.engine.scheduler.sharing is None
    model.keep_promises(cost_model(margin=1.5).to_json())
    sharing = model.engine.scheduler.sharing
    assert sharing is not None and sharing.cost.margin == 1.5
    assert (sharing.limits.tokens, sharing.limits.sequences, sharing.limits.rows) == (48, 4, 8)
    submit(model, 1, LONG)
    events = run(model)
    assert tokens_of(events, 1) == reference(LONG, 6)
    assert sharing.cost.scale != 1.0


def test_a_text_that_may_end_early_ends_before_the_step_that_it_has_no_time_for() -> None:
    model = served()
    model.keep_promises(cost_model().to_json())
    submit(model, 1, [1, 2], deadline_s=NOW_S, promised_tokens=1)
    model.step()
    model.expire(NOW_S - 0.025)  # the next step takes 3.4 ms at most, and 20 are for what follows
    assert not ends_of(take(model), 1)
    submit(model, 2, LONG)
    model.step()
    model.expire(NOW_S - 0.025)  # with the prompt, it may take 20
    assert ends_of(take(model), 1)[0].finish_reason == "deadline"


def test_warming_touches_free_pages_alone_and_ends() -> None:
    model = served()
    runner: Any = model.engine.runner
    submit(model, 1, list(range(70)))
    model.step()
    copied: list[int] = []
    copy = runner.copy_page
    runner.copy_page = lambda group, source, page: (copied.append(page), copy(group, source, page))
    assert [model.warm() for _ in range(26)] == [True] * 24 + [False] * 2
    held = {page for page in range(24) if not model.engine.pages.pools[0].is_free(page)}
    assert held and sorted(copied) == sorted(set(range(24)) - held)
    assert not model.warm(9)
    assert tokens_of(run(model), 1)[-5:] == reference(list(range(70)), 6)[-5:]
    assert_nothing_held(model.engine)


def test_pages_that_have_memory_are_used_again_before_others_are_touched() -> None:
    model = served()
    model.warm(3)
    for id in range(4):
        submit(model, id, [id, *range(80)])  # two pages, which stay known
        run(model)
    pool = model.engine.pages.pools[0]
    assert max(pool.idle) == 2 and len(pool.free) == 21
    model.warm(21)
    for id in range(4, 9):
        submit(model, id, [id, *range(80)])
        run(model)
    assert len(pool.idle) > 8
    assert_nothing_held(model.engine)


def test_pages_are_counted_free_cached_or_in_use() -> None:
    model = served()
    submit(model, 1, list(range(70)))
    model.step()
    model.step()
    message = model.take_message()
    assert message is not None
    stats = message.stats
    assert (stats.pages_free, stats.pages_cached, stats.pages_total) == (22, 0, 24)
    run(model)
    use = model.engine.page_use()
    assert use.free + use.cached == use.total == 24
