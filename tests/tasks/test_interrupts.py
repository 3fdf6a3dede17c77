"""Ctrl-C at the worst moments: the model stays usable and holds nothing.

An interrupt is planted: an exception that a call raises after its work is done, as CPython raises
KeyboardInterrupt between a call and what follows it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from engine_at_rest import assert_nothing_held
from interrupts import interrupted_at

from subsecond import LLM, Chat, RuntimeFailure, SamplingParams
from subsecond.engine import engine, pages, plan_writer, prefix, scheduler
from subsecond.engine.invariants import check, snapshot
from subsecond.tasks import shared

FEW = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1, max_tokens_per_step=64, max_sequences=4) as model:
        yield model


class InterruptedLock:
    """A lock whose acquisition is interrupted once, just after it."""

    def __init__(self, lock: Any, *, blocking: bool) -> None:
        self.lock, self.blocking, self.armed = lock, blocking, True

    def acquire(self, blocking: bool = True) -> bool:
        taken = bool(self.lock.acquire(blocking))
        if self.armed and blocking == self.blocking:
            self.armed = False
            raise KeyboardInterrupt
        return taken

    def release(self) -> None:
        self.lock.release()


@pytest.mark.parametrize("blocking", [True, False])
def test_an_interrupt_after_the_lock_was_taken_leaves_it_free(llm: LLM, blocking: bool) -> None:
    lock = llm._shared._lock
    llm._shared._lock = InterruptedLock(lock, blocking=blocking)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        list(llm.stream("x", FEW))
    llm._shared._lock = lock
    assert answered_elsewhere(llm) == list(llm.generate("the sky", FEW)[0].token_ids)
    assert_nothing_held(llm._parts.engine)


def test_every_line_of_the_engine_may_be_interrupted(llm: LLM) -> None:
    """The interrupt comes at one line after the other, of all that runs under the lock."""
    modules = {engine, pages, plan_writer, prefix, scheduler, shared}
    prompt = llm.encode("the sky is high and wide")
    expected = list(llm.generate([prompt], FEW)[0].token_ids)
    calls: list[Callable[[], object]] = [
        lambda: llm.generate([prompt], SamplingParams(max_tokens=2, n=2, seed=1, temperature=1.0)),
        lambda: next(llm.stream([1, 2, 3], FEW)),
        lambda: llm.logits(prompt * 20),
    ]
    for call in calls:
        line, came = 0, True
        while came:
            line += 1
            came = interrupted_at(line, modules, call, under_lock)
            assert check(snapshot(llm._parts.engine)) == []
            if line % 40 == 0:
                assert list(llm.generate([prompt], FEW)[0].token_ids) == expected
        assert line > 50
        assert answered_elsewhere(llm) == list(llm.generate("the sky", FEW)[0].token_ids)
        assert_nothing_held(llm._parts.engine)


def test_an_interrupted_turn_keeps_what_was_computed(llm: LLM) -> None:
    chat = Chat(llm, params=FEW)
    run, calls = llm._parts.engine.runner.run, list[int]()

    def interrupted(*args: int) -> int:
        done = run(*args)
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return done

    llm._parts.engine.runner.run = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        chat.send("the sky")
    del llm._parts.engine.runner.run  # type: ignore[method-assign]
    assert check(snapshot(llm._parts.engine)) == []
    ids = llm.encode_chat([{"role": "user", "content": "the sky"}])
    assert llm._parts.engine.prefixes.find("", [*ids, 0], len(ids)).length == len(ids)


def test_an_interrupted_step_fails_the_texts_of_other_threads_aloud(llm: LLM) -> None:
    other = llm.stream("the sky", FEW)
    next(other)
    run = llm._parts.engine.runner.run

    def interrupted(*args: int) -> int:
        run(*args)
        raise KeyboardInterrupt

    llm._parts.engine.runner.run = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        llm.generate("x", FEW)
    del llm._parts.engine.runner.run  # type: ignore[method-assign]
    with pytest.raises(RuntimeFailure, match="was interrupted; ask again"):
        list(other)
    assert_nothing_held(llm._parts.engine)


def under_lock(frame: FrameType | None) -> bool:
    """Whether it runs inside `_settled`; that one's own bookkeeping is one line at a time."""
    while frame is not None:
        if frame.f_code.co_name in ("to_the_end", "wait_and_score", "more", "submit"):
            return True
        frame = frame.f_back
    return False


def answered_elsewhere(llm: LLM) -> list[int]:
    """Another thread's answer: it would wait for ever for a lock that was left locked."""
    answers: list[list[int]] = []
    thread = threading.Thread(
        target=lambda: answers.append(list(llm.generate("the sky", FEW)[0].token_ids)), daemon=True
    )
    thread.start()
    thread.join(60)
    assert answers, "the lock is held"
    return answers[0]
