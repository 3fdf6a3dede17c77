"""One engine and several threads: who waits for whom, and who doesn't."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from engine_at_rest import assert_nothing_held, idle

from subsecond import LLM, RequestError, SamplingParams

LONG = SamplingParams(max_tokens=300, ignore_eos=True)


@contextmanager
def busy(llm: LLM) -> Iterator[None]:
    """Another thread is in a call."""
    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=lambda: llm._shared.use(lambda _: (entered.set(), leave.wait(60)))
    )
    thread.start()
    entered.wait(60)
    try:
        yield
    finally:
        leave.set()
        thread.join()


@pytest.fixture
def stops(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows when a running call is told to end after its step."""
    asked: list[str] = []
    interrupt = llm._parts.engine.interrupt

    def counted() -> None:
        asked.append("stop")
        interrupt()

    monkeypatch.setattr(llm._parts.engine, "interrupt", counted)
    return asked


def test_closing_a_stream_never_waits_and_ends_the_running_call(llm: LLM, stops: list[str]) -> None:
    stream = llm.stream("the sky", LONG)
    next(stream)
    with busy(llm):
        stream.close()  # type: ignore[attr-defined]
        assert stops
        assert not idle(llm._parts.engine)
    assert idle(llm._parts.engine)  # whoever had the engine has given the pages back
    assert_nothing_held(llm._parts.engine)


def test_a_new_request_ends_the_running_call_after_its_step(llm: LLM, stops: list[str]) -> None:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(llm.generate("x", LONG)))
    with busy(llm):
        thread.start()
        while not stops:
            assert thread.is_alive()
    thread.join()
    assert len(answers[0][0].token_ids) == 300


def test_a_call_of_several_steps_obeys_the_stop_at_once(llm: LLM) -> None:
    engine = llm._parts.engine
    stream = llm.stream("the sky", LONG)
    expected = [next(stream).token_id for _ in range(20)]
    done: list[int] = []
    run = engine.runner.run

    def counted(tokens: int, sequences: int, rows: int, max_steps: int) -> int:
        engine.interrupt()
        done.append(run(tokens, sequences, rows, max_steps))
        return done[-1]

    engine.runner.run = counted  # type: ignore[method-assign]
    try:
        again = llm.stream("the sky", LONG)
        assert [next(again).token_id for _ in range(20)] == expected
    finally:
        del engine.runner.run  # type: ignore[method-assign]
    assert set(done) == {1}
    again.close()  # type: ignore[attr-defined]
    stream.close()  # type: ignore[attr-defined]


def test_requests_of_closed_streams_leave_a_batch_that_runs(llm: LLM) -> None:
    engine = llm._parts.engine
    stream = llm.stream("the sky", SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    step, running = engine.step, list[int]()

    def closing() -> None:
        stream.close()  # type: ignore[attr-defined]
        step()
        running.append(len(engine.scheduler.running))

    engine.step = closing  # type: ignore[method-assign]
    try:
        llm.generate("hello", LONG)
    finally:
        del engine.step
    assert running[0] == 2
    assert set(running[1:-1]) == {1}


def test_a_request_that_is_cancelled_before_it_began_gives_nothing(llm: LLM) -> None:
    request = llm.request(llm.encode("x"), LONG)
    llm.cancel(request)
    assert [piece.text for piece in llm.stream_request(request)] == []
    assert request.sequences[0].finish_reason == "cancelled"


def test_logits_wait_for_streams_that_hold_the_cache(llm: LLM) -> None:
    engine = llm._parts.engine
    few = SamplingParams(max_tokens=engine.context - 10, ignore_eos=True)
    pool = engine.pages.pools[0]
    engine.prefixes.clear()
    hidden, pool.free = pool.free[:-8], pool.free[-8:]  # memory for one context
    expected = [piece.token_id for piece in llm.stream([1, 2], few)]
    streams = [llm.stream([1, 2], few) for _ in range(8)]
    for stream in streams:
        next(stream)
    ids = [1] * engine.context
    assert not engine.has_room(len(ids))
    assert len(llm.logits(ids)) == len(ids)
    assert [expected[0], *(piece.token_id for piece in streams[0])] == expected
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    pool.free += hidden
    assert_nothing_held(llm._parts.engine)


def test_a_call_out_of_a_running_call_is_refused_and_cancel_is_not(llm: LLM) -> None:
    engine, found = llm._parts.engine, list[str]()
    run = engine.runner.run
    stream = llm.stream("the sky", LONG)
    next(stream)

    def handler(*args: int) -> int:  # as a signal handler would
        try:
            llm.generate("x")
        except RequestError as error:
            found.append(str(error))
        stream.close()  # type: ignore[attr-defined]
        return run(*args)

    engine.runner.run = handler  # type: ignore[method-assign]
    try:
        llm.generate("hello", SamplingParams(max_tokens=2))
    finally:
        del engine.runner.run  # type: ignore[method-assign]
    assert "same thread" in found[0]
    assert_nothing_held(llm._parts.engine)


def test_closing_twice_at_once_is_one_close(tiny_artifact: Any) -> None:
    model = LLM(tiny_artifact, threads=1)
    shared = model._shared
    with busy(model):
        shared._loaded = None  # the other close has come as far as this
        shared._interrupt()
        closing = threading.Thread(target=model.close)
        closing.start()
    closing.join()
    with pytest.raises(RequestError, match="closed"):
        model.generate("x")
