"""The engine process's loop, in a thread of the test, over a real socket pair."""

from __future__ import annotations

import random
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import fake_process
import pytest
from fake_runner import reference
from serving_model import cost_model

from subsecond.engine.constraint import Constraint
from subsecond.engine.engine import Engine
from subsecond.engine.framing import FrameReader, frame
from subsecond.engine.messages import (
    Cancel,
    Costs,
    Drain,
    Draining,
    EngineMessage,
    Event,
    Fatal,
    Load,
    Loaded,
    LoadFailed,
    LoadOptions,
    Ping,
    Pong,
    Refused,
    SamplingFields,
    StepDone,
    Submit,
    Unload,
    Unloaded,
    Warm,
    engine_decoder,
)
from subsecond.engine.process import CLEAN, FAILED, EngineProcess
from subsecond.errors import RequestError

PATIENCE_S = 60  # no test waits so long unless it fails


class Front:
    """The other end: sends messages, keeps what arrives."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE_S)
        self.gate = threading.Event()
        self.gate.set()
        self.code: int | None = None
        self.process = EngineProcess(theirs, self.load)
        self._reader = FrameReader(engine_decoder())
        self._queue: list[EngineMessage] = []
        self.events: dict[int, list[Event]] = defaultdict(list)
        self.refused: dict[int, Refused] = {}
        self.last: dict[str, StepDone] = {}

        def run() -> None:
            with theirs:
                self.code = self.process.run()

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def load(self, path: str, options: LoadOptions) -> tuple[Engine, str]:
        self.gate.wait(PATIENCE_S)
        return fake_process.load(path, options)

    def send(self, *messages: Any) -> None:
        for message in messages:
            self.socket.sendall(frame(message))

    def submit(self, id: int, prompt: list[int], max_tokens: int = 6, **more: Any) -> None:
        model = more.pop("model", "m")
        self.send(Submit(id, model, prompt, SamplingFields(max_tokens), **more))

    def receive(self) -> EngineMessage:
        while not self._queue:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError
            self._queue += self._reader.feed(data)
        message = self._queue.pop(0)
        if isinstance(message, StepDone):
            self.last[message.model] = message
            for event in message.events:
                self.events[event.id].append(event)
        elif isinstance(message, Refused):
            self.refused[message.id] = message
        return message

    def until(self, kind: type) -> Any:
        while not isinstance(message := self.receive(), kind):
            pass
        return message

    def finish(self, *ids: int) -> None:
        """Receives until the requests have ended."""
        while not all(self.ended(id) for id in ids):
            self.receive()

    def ended(self, id: int) -> bool:
        events = self.events[id]
        return id in self.refused or bool(events and events[-1].ends_request)

    def tokens(self, id: int) -> list[int]:
        return [token for event in self.events[id] for token in event.tokens]

    def end(self) -> int | None:
        """The loop's exit code; what was sent before it is received."""
        try:
            while True:
                self.receive()
        except (EOFError, OSError):
            pass
        self._thread.join(PATIENCE_S)
        return self.code

    def close(self) -> None:
        self.gate.set()
        self.socket.close()
        self._thread.join(PATIENCE_S)


@pytest.fixture
def front() -> Iterator[Front]:
    front = Front()
    yield front
    front.close()


def loaded(front: Front, name: str = "m", path: str = "{}") -> None:
    front.send(Load(name, path, LoadOptions()))
    assert isinstance(front.until(Loaded), Loaded)


def test_it_answers_pings_idle_and_while_a_model_loads(front: Front) -> None:
    front.send(Ping(1))
    assert front.receive() == Pong(1)
    front.gate.clear()
    front.send(Load("m", "{}", LoadOptions()), Ping(2))
    assert front.receive() == Pong(2)
    front.gate.set()
    message = front.receive()
    assert isinstance(message, Loaded)
    info = message.info
    assert (info.context, info.vocab_size, info.pages_total) == (512, 97, 24)


def test_answers_are_the_engines(front: Front) -> None:
    loaded(front)
    prompts = {id: [id, id + 1, *range(id * 7 % 60)] for id in range(12)}
    for id, prompt in prompts.items():
        front.submit(id, prompt, 10)
    front.finish(*prompts)
    for id, prompt in prompts.items():
        assert front.tokens(id) == reference(prompt, 10)
        assert front.events[id][-1].finish_reason == "length"


def test_a_load_that_fails_says_why_and_leaves_the_name_free(front: Front) -> None:
    front.send(Load("m", '{"error": "no such folder"}', LoadOptions()))
    failed = front.until(LoadFailed)
    assert (failed.model, failed.message, failed.kind) == ("m", "no such folder", "ModelError")
    loaded(front)
    front.send(Load("m", "{}", LoadOptions()))
    assert "unload it first" in front.until(LoadFailed).message


def test_what_loading_raises_by_mistake_is_not_told_to_clients(front: Front) -> None:
    front.send(Load("m", "/secret is no JSON", LoadOptions()))
    failed = front.until(LoadFailed)
    assert failed.kind == "RuntimeFailure"
    assert "JSON" not in failed.message


def test_a_model_that_is_unloaded_while_it_loads_does_not_appear(front: Front) -> None:
    front.gate.clear()
    front.send(Load("m", "{}", LoadOptions()), Unload("m"))
    front.until(Unloaded)
    front.gate.set()
    assert "unloaded" in front.until(LoadFailed).message
    loaded(front)


def test_unloading_ends_the_models_requests_and_no_others(front: Front) -> None:
    loaded(front, "a", '{"step_s": 0.002}')
    loaded(front, "b", '{"step_s": 0.002}')
    front.submit(1, [1, 2], 300, model="a")
    front.submit(2, [1, 2], 30, model="b")
    while not front.events[1]:
        front.receive()
    front.send(Unload("a"))
    front.until(Unloaded)
    error = front.events[1][-1].error
    assert error is not None and error.kind == "EngineUnavailable"
    front.finish(2)
    assert front.tokens(2) == reference([1, 2], 30)
    front.submit(3, [1], model="a")
    front.finish(3)
    assert front.refused[3].error.kind == "EngineUnavailable"


def test_a_bad_request_is_refused_and_the_others_go_on(front: Front) -> None:
    loaded(front)
    front.submit(1, [1, 2])
    front.submit(2, [1, 500])
    front.submit(3, [1], 600)
    front.submit(1, [3])  # an id that is taken
    front.finish(1, 2, 3)
    assert front.refused[2].error.param == "prompt"
    assert front.refused[3].error.param == "max_tokens"
    while 1 not in front.refused or not (front.events[1] and front.events[1][-1].ends_request):
        front.receive()  # the second of that id is refused, the first goes on
    assert front.tokens(1) == reference([1, 2], 6)
    front.submit(4, [9])
    front.finish(4)
    assert front.tokens(4) == reference([9], 6)


def test_a_step_that_fails_ends_everything_and_the_process(front: Front) -> None:
    loaded(front, "a", '{"step_s": 0.002}')
    loaded(front, "b", '{"step_s": 0.002}')
    front.submit(1, [1, 2], 400, model="a")
    front.submit(2, [1, 2], 400, model="b")
    front.submit(3, fake_process.FAIL, model="b")
    fatal = front.until(Fatal)
    assert "'b'" in fatal.message and "planted failure" in fatal.message
    for id in (1, 2, 3):
        assert front.ended(id)
        error = front.events[id][-1].error
        assert error is not None and error.kind == "EngineUnavailable"
        assert "planted" not in error.message
    assert front.end() == FAILED


def test_draining_ends_what_there_is_and_refuses_the_rest(front: Front) -> None:
    loaded(front, path='{"step_s": 0.002}')
    front.submit(1, [1, 2], 40)
    while not front.events[1]:
        front.receive()
    front.process.drain()  # as the signal handler does
    front.until(Draining)
    front.submit(2, [1, 2])
    front.finish(2)
    assert front.refused[2].error.kind == "EngineUnavailable"
    assert front.end() == CLEAN
    assert front.tokens(1) == reference([1, 2], 40)


def test_draining_when_idle_ends_at_once(front: Front) -> None:
    front.send(Drain())
    assert front.end() == CLEAN


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_when_the_front_is_gone(front: Front, busy: bool) -> None:
    if busy:
        loaded(front, path='{"step_s": 0.002}')
        front.submit(1, [1, 2], 400)
    front.socket.shutdown(socket.SHUT_WR)
    assert front.end() == CLEAN


@pytest.mark.parametrize("garbage", [b"\xff" * 64, b"\x01\x00\x00\x00\xc1", b"\x09\x00\x00\x00ab"])
def test_garbage_ends_the_connection(front: Front, garbage: bytes) -> None:
    front.socket.sendall(garbage)
    front.socket.shutdown(socket.SHUT_WR)
    assert front.end() == FAILED


def test_cancel_before_the_model_has_a_step_of_it(front: Front) -> None:
    loaded(front, path='{"step_s": 0.002, "max_sequences": 1}')
    front.submit(1, [1, 2], 60)
    front.submit(2, [1, 2], 60)
    front.send(Cancel(2), Cancel(77))
    front.finish(2)
    assert front.events[2][-1].finish_reason == "cancelled"
    assert not front.ended(1)
    front.finish(1)


def test_two_models_share_the_process(front: Front) -> None:
    loaded(front, "a", '{"step_s": 0.001}')
    loaded(front, "b", '{"step_s": 0.001}')
    front.submit(1, [1, 2], 200, model="a")
    while len(front.events[1]) < 3:
        front.receive()
    front.submit(2, [3, 4], 20, model="b")
    front.finish(2)
    assert not front.ended(1)  # its turns came in between
    front.finish(1)
    assert front.tokens(1) == reference([1, 2], 200)
    assert front.tokens(2) == reference([3, 4], 20)


@pytest.mark.parametrize("seed", range(3))
def test_random_lives_end_once_and_leave_no_page(front: Front, seed: int) -> None:
    rng = random.Random(seed)
    loaded(front, path='{"pages_per_group": 12}')
    prompts: dict[int, tuple[list[int], int]] = {}
    for id in range(60):
        prompt = [rng.randrange(97) for _ in range(rng.randint(1, 120))]
        prompts[id] = (prompt, rng.randint(1, 40))
        late_s = rng.choice([float("inf"), float("inf"), 0.0])
        front.submit(id, *prompts[id], deadline_s=late_s, promised_tokens=rng.randint(0, 9))
        if rng.random() < 0.4:
            front.send(Cancel(rng.randint(0, id), reason=rng.choice(["cancelled", "stop"])))
    front.finish(*prompts)
    for id, (prompt, max_tokens) in prompts.items():
        events = front.events[id]
        assert sum(event.ends_request for event in events) == 1
        whole = reference(prompt, max_tokens)
        tokens = front.tokens(id)
        assert tokens == whole[: len(tokens)]
        if events[-1].finish_reason == "length":
            assert tokens == whole
    front.send(Ping(1))
    front.until(Pong)
    stats = front.last["m"].stats
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.pages_free + stats.pages_cached == stats.pages_total == 12


class SlowGrammars:
    """No constraint is ready before the gate opens, and none can be followed then."""

    def __init__(self, gate: threading.Event) -> None:
        self._gate = gate

    def known(self, constraint: Constraint) -> None:
        return None

    def compile(self, constraint: Constraint) -> Any:
        self._gate.wait(PATIENCE_S)
        raise RequestError("it can't be followed", "constraint")


def test_an_id_whose_constraint_is_being_prepared_is_taken(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, load = threading.Event(), fake_process.load

    def slow(path: str, options: LoadOptions) -> tuple[Engine, str]:
        engine, executor = load(path, options)
        engine.grammars = SlowGrammars(gate)  # type: ignore[assignment]
        return engine, executor

    monkeypatch.setattr(fake_process, "load", slow)
    loaded(front)
    choice = Constraint.choice(["a"])
    front.submit(1, [1], constraint=choice)
    for again in (choice, None):
        front.submit(1, [2], constraint=again)
        refused = front.until(Refused)
        assert (refused.id, refused.error.kind) == (1, "RuntimeFailure")
    front.submit(2, [1, 2])
    front.finish(2)
    assert front.tokens(2) == reference([1, 2], 6)
    gate.set()
    refused = front.until(Refused)
    assert (refused.id, refused.error.kind) == (1, "RequestError")
    assert not front.events[1]
    front.submit(1, [1, 2, 3])
    front.until(StepDone)
    while not front.events[1] or not front.events[1][-1].ends_request:
        front.receive()
    assert front.tokens(1) == reference([1, 2, 3], 6)


def test_costs_and_warming_are_taken_between_steps(front: Front) -> None:
    """Bad costs, and those of a model that isn't there, change nothing."""
    loaded(front)
    front.send(Costs("m", b"nonsense"), Costs("x", b""), Warm("x", 1), Warm("m", 7))
    front.submit(1, [1, 2])
    front.finish(1)
    front.send(Costs("m", cost_model().to_json()))
    front.submit(2, list(range(60)))
    front.finish(2)
    assert front.tokens(1) == reference([1, 2], 6)
    assert front.tokens(2) == reference(list(range(60)), 6)
