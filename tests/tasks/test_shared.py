"""One engine and several threads: who waits for whom, and who doesn't."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from subsecond import LLM, RequestError, SamplingParams

LONG = SamplingParams(max_tokens=300, ignore_eos=True)


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
    with llm._shared._lock:  # another thread is in a call
        stream.close()  # type: ignore[attr-defined]
        assert stops
        assert not llm._parts.engine.idle
    llm.generate("x", SamplingParams(max_tokens=1))
    assert llm._parts.engine.idle


def test_a_new_request_ends_the_running_call_after_its_step(llm: LLM, stops: list[str]) -> None:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(llm.generate("x", LONG)))
    with llm._shared._lock:
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


def test_a_stream_of_a_closed_model_says_so(llm: LLM) -> None:
    request = llm.request(llm.encode("x"), LONG)
    llm.cancel(request)  # before it began
    assert [piece.text for piece in llm.stream_request(request)] == []
    assert request.sequences[0].finish_reason == "cancelled"
    with pytest.raises(RequestError, match="n is 2"):
        llm.request([1], SamplingParams(n=2), keep=True)
