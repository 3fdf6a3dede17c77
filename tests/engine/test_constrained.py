"""Requests with constraints in the engine: alone, in crowds, at deadlines, and in the process."""

from __future__ import annotations

import json
import math
import socket
import threading
from typing import Any

import fake_process
import pytest
from engine_at_rest import assert_nothing_held, run
from fake_runner import FakeRunner
from test_process import Front

from subsecond.engine.constraint import Constraint
from subsecond.engine.constraint_state import Compiled, Grammars, Vocabulary
from subsecond.engine.engine import Engine
from subsecond.engine.messages import (
    Cancel,
    Drain,
    Event,
    Load,
    LoadOptions,
    SamplingFields,
    Submit,
)
from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams
from subsecond.errors import RequestError

STOP = 1
TOKENS = [b"", b"", *(bytes([id]) for id in range(2, 97))]  # has digits and brackets
DIGITS = Constraint.json_schema(
    {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 9},
        "minItems": 3,
        "maxItems": 12,
    }
)
NOW_S = 1000.0


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(Vocabulary(TOKENS, control_ids=[0], stop_ids=[STOP]))


def engine_of(grammars: Grammars, **sizes: Any) -> Engine:
    engine = Engine(FakeRunner(**sizes), context=512, steps_per_call=8)
    engine.grammars = grammars
    return engine


def queued(
    engine: Engine,
    constraint: Compiled | None,
    prompt: list[int],
    max_tokens: int = 60,
    n: int = 1,
    **more: Any,
) -> Request:
    request = Request(
        prompt,
        SamplingParams(n=n),
        max_tokens=max_tokens,
        stop_ids=(STOP,),
        constraint=constraint,
        **more,
    )
    engine.submit(request)
    return request


def texts(request: Request) -> list[str]:
    return [
        b"".join(TOKENS[token] for token in text.tokens[len(request.prompt) :]).decode()
        for text in request.sequences
    ]


def fits(text: str) -> bool:
    value = json.loads(text)
    return 3 <= len(value) <= 12 and all(0 <= digit <= 9 for digit in value)


def test_texts_fit_whatever_the_model_wants_and_end_where_nothing_follows(
    grammars: Grammars,
) -> None:
    engine = engine_of(grammars)
    request = queued(engine, grammars.compile(DIGITS), [5, 6, 7], n=3)
    run(engine)
    assert [sequence.finish_reason for sequence in request.sequences] == ["complete"] * 3
    assert all(map(fits, texts(request)))
    assert len(set(texts(request))) > 1
    assert all(sequence.constraint is None for sequence in request.sequences)
    assert_nothing_held(engine)


def test_an_end_that_is_only_allowed_is_the_models(grammars: Grammars) -> None:
    engine = engine_of(grammars)
    request = queued(engine, grammars.compile(Constraint.regex("[0-9]+")), [9], max_tokens=400)
    run(engine)
    (sequence,) = request.sequences
    assert sequence.finish_reason == "stop" and sequence.tokens[-1] == STOP
    assert texts(request)[0].isdecimal()


def test_a_crowd_and_lost_pages_change_no_text(grammars: Grammars) -> None:
    def answers(together: bool, **sizes: Any) -> list[str]:
        engine = engine_of(grammars, **sizes)
        requests = []
        for index in range(6):
            constraint = grammars.compile(DIGITS) if index % 2 == 0 else None
            requests.append(queued(engine, constraint, [index] * (40 + index), 50))
            if not together:
                run(engine)
        run(engine)
        assert_nothing_held(engine)
        found = [request.sequences[0].tokens for request in requests]
        assert all(fits(texts(request)[0]) for request in requests[::2])
        return [str(tokens) for tokens in found]

    alone = answers(together=False)
    assert answers(together=True) == alone
    assert answers(together=True, pages_per_group=3) == alone


def test_a_text_is_closed_at_its_deadline_without_a_step(grammars: Grammars) -> None:
    engine = engine_of(grammars)
    begun = queued(engine, grammars.compile(DIGITS), [3], deadline_s=NOW_S, promised_tokens=2, n=2)
    plain = queued(engine, None, [3], deadline_s=NOW_S, promised_tokens=2)
    for _ in range(3):
        engine.step()
    calls = len(engine.runner.calls)  # type: ignore[attr-defined]
    assert engine.expire(NOW_S - 0.2, 0.1) == []
    due = engine.expire(NOW_S - 0.104, 0.1)
    assert due == begun.sequences, "closing takes some milliseconds, which are kept free"
    assert len(engine.runner.calls) == calls  # type: ignore[attr-defined]
    assert [sequence.finish_reason for sequence in due] == ["deadline"] * 2
    assert all(map(fits, texts(begun)))
    assert engine.expire(NOW_S - 0.1, 0.1) == plain.sequences
    assert_nothing_held(engine)


def test_what_is_promised_in_full_or_not_yet_there_is_not_closed(grammars: Grammars) -> None:
    engine = engine_of(grammars)
    compiled = grammars.compile(DIGITS)
    full = queued(engine, compiled, [3], deadline_s=NOW_S, promised_tokens=60, on_deadline="full")
    short = queued(engine, compiled, [4], deadline_s=NOW_S, promised_tokens=50)
    engine.step()
    engine.step()
    assert len(engine.expire(NOW_S, 0.0)) == 2
    for request in (full, short):
        assert len(texts(request)[0]) == 2


def test_what_cant_be_closed_ends_with_an_error(grammars: Grammars) -> None:
    engine = engine_of(grammars)
    forced = Constraint.regex("(12)+3")  # the server would have promised it in full
    request = queued(engine, grammars.compile(forced), [3], deadline_s=NOW_S, promised_tokens=1)
    for _ in range(3):
        engine.step()
    assert engine.expire(NOW_S, 0.1) == request.sequences
    assert "could not be closed" in str(request.error)
    assert_nothing_held(engine)


def test_a_constraint_that_became_too_costly_ends_its_request_alone(grammars: Grammars) -> None:
    engine = engine_of(grammars)
    costly = Constraint.regex("((((1{1,50}){1,50}){1,50}){1,50}){1,50}2")
    request = queued(engine, grammars.compile(costly), [3], max_tokens=400)
    other = queued(engine, grammars.compile(DIGITS), [4])
    run(engine)
    assert fits(texts(other)[0])
    if request.error is not None:  # else it ended before it became costly
        assert isinstance(request.error, RequestError)
        assert request.error.param == "constraint"
    assert_nothing_held(engine)


# In the process.


class Slow(Grammars):
    """Makes constraints when the test says so."""

    def __init__(self) -> None:
        super().__init__(Vocabulary(TOKENS, control_ids=[0], stop_ids=[STOP]))
        self.gate = threading.Event()

    def compile(self, constraint: Constraint) -> Compiled:
        self.gate.wait(60)
        return super().compile(constraint)


class ConstrainedFront(Front):
    def __init__(self, grammars: Grammars | None) -> None:
        self.grammars = grammars
        super().__init__()
        self.send(Load("m", "{}", LoadOptions()))
        self.receive()

    def load(self, path: str, options: LoadOptions) -> tuple[Engine, str]:
        engine, executor = fake_process.load(path, options)
        engine.grammars = self.grammars
        return engine, executor

    def ask(self, id: int, constraint: Constraint | None = DIGITS, max_tokens: int = 60) -> None:
        fields = SamplingFields(max_tokens, [STOP])
        self.send(Submit(id, "m", [5, 6], fields, constraint=constraint))

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        assert self.end() == 0
        self.socket.close()

    def text(self, id: int) -> str:
        return b"".join(TOKENS[token] for token in self.tokens(id)).decode()


def last(front: Front, id: int) -> Event:
    return front.events[id][-1]


def test_others_go_on_while_a_constraint_is_made() -> None:
    grammars = Slow()
    front = ConstrainedFront(grammars)
    front.ask(1)
    front.ask(2, None, 6)
    front.finish(2)
    assert not front.ended(1)
    grammars.gate.set()
    front.finish(1)
    assert fits(front.text(1)) and last(front, 1).finish_reason == "complete"
    front.ask(3)  # known by now
    front.finish(3)
    assert front.text(3) == front.text(1)
    front.close()


def test_a_cancel_meanwhile_ends_it_once() -> None:
    grammars = Slow()
    front = ConstrainedFront(grammars)
    front.ask(1)
    front.send(Cancel(1))
    front.ask(2, None, 6)
    front.finish(2)
    grammars.gate.set()
    front.finish(1)
    assert last(front, 1).finish_reason == "cancelled"
    assert front.tokens(1) == []
    front.close()


def test_a_drain_waits_for_what_is_being_made() -> None:
    grammars = Slow()
    front = ConstrainedFront(grammars)
    front.ask(1)
    front.send(Drain())
    front.ask(2)
    front.finish(2)
    assert front.refused[2].error.kind == "EngineUnavailable"
    grammars.gate.set()
    front.finish(1)
    assert fits(front.text(1))
    assert front.end() == 0
    front.socket.close()


def test_refusals_in_the_process() -> None:
    front = ConstrainedFront(Slow())
    front.grammars.gate.set()  # type: ignore[union-attr]
    front.ask(1, Constraint.regex("(a"))
    front.ask(2)
    front.finish(1, 2)
    assert (front.refused[1].error.kind, front.refused[1].error.param) == (
        "RequestError",
        "constraint",
    )
    assert fits(front.text(2))
    front.close()
    front = ConstrainedFront(None)
    front.ask(1)
    front.finish(1)
    assert front.refused[1].error.kind == "RuntimeFailure"
    front.close()


def test_no_deadline_is_no_reason_to_close(grammars: Grammars) -> None:
    engine = engine_of(grammars)
    queued(engine, grammars.compile(DIGITS), [3], deadline_s=math.inf)
    engine.step()
    assert engine.expire(1e18, 5.0) == []
    run(engine)
