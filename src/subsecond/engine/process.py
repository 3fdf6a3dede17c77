"""The engine process: one loop that holds all loaded models and answers one front.

Owns: the order of messages and steps, the turns of models, how the process ends. Does not know: how
a model is loaded (it is given a function), HTTP, text, how it was started.

A thread reads the socket, so that whatever arrives during a call of several steps can end the call
early; one thread a load, so that other models go on. Everything else happens in the loop's thread,
between steps.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from subsecond.engine.engine import Engine
from subsecond.engine.framing import FrameReader, frame
from subsecond.engine.messages import (
    Cancel,
    Costs,
    Drain,
    Draining,
    EngineMessage,
    ErrorInfo,
    Fatal,
    FrontMessage,
    Load,
    Loaded,
    LoadFailed,
    LoadOptions,
    Ping,
    Pong,
    Refused,
    Submit,
    Unload,
    Unloaded,
    Warm,
    error_info,
    front_decoder,
)
from subsecond.engine.served_model import ServedModel
from subsecond.engine.turns import next_turn
from subsecond.errors import EngineUnavailable, InputError, ProtocolError, RuntimeFailure

if TYPE_CHECKING:
    from subsecond.engine.constraint_state import Compiled

log = logging.getLogger(__name__)

CLEAN, FAILED = 0, 1
"""Exit codes: drained, or the front is gone; a step or the connection failed."""

_READ_BYTES = 1 << 16

LoadEngine: TypeAlias = Callable[[str, LoadOptions], tuple[Engine, str]]
"""Makes a model's engine of its path, and says what executes it. Runs in a thread of its own."""


@dataclass(frozen=True)
class _Made:
    """A load has ended."""

    name: str
    outcome: ServedModel | BaseException


@dataclass(frozen=True)
class _Ready:
    """The constraint of a request is ready, or can't be followed."""

    message: Submit
    outcome: Compiled | BaseException


@dataclass(frozen=True)
class _Closed:
    """Nothing more will arrive. error: None where the front just closed its end."""

    error: ProtocolError | None


class EngineProcess:
    """Serves one connection until the front closes it, `drain` is done, or a step fails.

    leave: called with the exit code, from the reading thread, when the connection ends; it may end
    the process at once, so that a front that died leaves no orphan behind, whatever the loop does.
    """

    def __init__(
        self,
        connection: socket.socket,
        load: LoadEngine,
        *,
        leave: Callable[[int], None] | None = None,
    ) -> None:
        self._connection = connection
        self._load = load
        self._leave = leave
        self._inbox: queue.SimpleQueue[FrontMessage | _Made | _Ready | _Closed] = (
            queue.SimpleQueue()
        )
        self._models: dict[str, ServedModel] = {}
        self._loading: dict[str, bool] = {}  # name -> still wanted
        self._preparing: dict[int, Cancel | None] = {}  # id -> what has ended it meanwhile
        # One at a time: the processors are the steps'.
        self._constraints = ThreadPoolExecutor(1, "subsecond-constraint")
        self._stepping: Engine | None = None  # read by the other thread
        self._draining = False
        self._exit: int | None = None
        self._over = False
        self._turns = 0
        self._free_s = 0.0  # since when there was nothing else to do than the next step

    def run(self) -> int:
        """Runs until the end; the exit code."""
        threading.Thread(target=self._read, name="subsecond-messages", daemon=True).start()
        try:
            while self._exit is None:
                if not self._take_messages():
                    break
                self._turn()
        except OSError as error:  # of `_send` alone: a step's errors are handled where they arise
            log.warning("the connection to the front process broke: %s", error)
            return CLEAN
        finally:
            self._over = True
            self._constraints.shutdown(wait=False, cancel_futures=True)
            with contextlib.suppress(OSError):  # lets the reading thread go
                self._connection.shutdown(socket.SHUT_RDWR)
        return CLEAN if self._exit is None else self._exit

    def drain(self) -> None:
        """Takes no new requests, ends those that there are, and ends `run`. May be called from
        signal handlers and other threads.
        """
        self._inbox.put(Drain())

    def _read(self) -> None:
        """The reading thread."""
        reader = FrameReader(front_decoder())
        error: ProtocolError | None = None
        try:
            while data := self._connection.recv(_READ_BYTES):
                for message in reader.feed(data):
                    self._inbox.put(message)
                    stepping = self._stepping
                    if stepping is not None and not isinstance(message, Ping):
                        stepping.interrupt()
            reader.finish()
        except ProtocolError as broken:
            log.error("%s", broken)
            error = broken
        except OSError:  # reset: as good as closed
            pass
        self._inbox.put(_Closed(error))
        if self._leave is not None and not self._over:
            self._leave(CLEAN if error is None else FAILED)

    def _take_messages(self) -> bool:
        """Handles what has arrived, waits for it while there is no work; False at the end."""
        while True:
            in_flight = any(model.in_flight for model in self._models.values())
            untold = any(model.has_events for model in self._models.values())
            if self._draining and not in_flight and not untold and not self._preparing:
                return False
            idle = not in_flight and not untold
            try:
                warming = idle and any(model.warm() for model in self._models.values())
                message = self._inbox.get(block=idle and not warming)
            except queue.Empty:
                if warming:
                    continue
                return True
            if idle:
                self._free_s = time.monotonic()
            self._handle(message)
            if self._exit is not None:
                return False

    def _handle(self, message: FrontMessage | _Made | _Ready | _Closed) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Cancel():
                self._cancel(message)
            case Ping():
                self._send(Pong(message.n))
            case Load():
                self._begin_load(message)
            case _Ready():
                self._end_prepare(message)
            case _Made():
                self._end_load(message)
            case Costs():
                self._keep_promises(message)
            case Warm():
                if (model := self._models.get(message.model)) is not None:
                    model.warm(message.pages)
            case Unload():
                self._unload(message.model)
            case Drain():
                if not self._draining:
                    self._draining = True
                    self._send(Draining())
            case _Closed():
                self._exit = CLEAN if message.error is None else FAILED

    def _submit(self, message: Submit) -> None:
        model = self._models.get(message.model)
        try:
            if self._draining:
                raise EngineUnavailable("the server is stopping; ask another one, or later")
            if model is None:
                raise EngineUnavailable(f"the model {message.model!r} is not loaded")
            if message.id in self._preparing:
                raise ValueError(f"request {message.id} exists already")
            if message.constraint is None:
                model.submit(message)
            else:
                self._prepare(model, message)
        except Exception as error:  # whatever is wrong with a request ends that request only
            self._refuse(message, error)

    def _refuse(self, message: Submit, error: Exception) -> None:
        info = error_info(error)
        if info.kind == RuntimeFailure.__name__:
            log.error("request %d was refused", message.id, exc_info=error)
        self._send(Refused(message.id, info))

    def _prepare(self, model: ServedModel, message: Submit) -> None:
        """Submits a request with a constraint when that is ready, which takes milliseconds in a
        thread unless it was used before.
        """
        grammars, constraint = model.engine.grammars, message.constraint
        if grammars is None or constraint is None:
            raise RuntimeFailure("this model was loaded without its vocabulary")
        known = grammars.known(constraint)
        if known is not None:
            model.submit(message, known)
            return

        def make() -> None:
            try:
                outcome: Compiled | BaseException = grammars.compile(constraint)
            except BaseException as error:  # the loop tells it
                outcome = error
            self._inbox.put(_Ready(message, outcome))

        self._preparing[message.id] = None
        self._constraints.submit(make)

    def _end_prepare(self, ready: _Ready) -> None:
        message, outcome = ready.message, ready.outcome
        ended = self._preparing.pop(message.id)
        model = self._models.get(message.model)
        try:
            if model is None:
                raise EngineUnavailable(f"the model {message.model!r} was unloaded meanwhile")
            if isinstance(outcome, BaseException):
                raise outcome
            model.submit(message, outcome)
        except Exception as error:
            self._refuse(message, error)
            return
        if ended is not None:
            model.cancel(ended)

    def _cancel(self, message: Cancel) -> None:
        if message.id in self._preparing:
            self._preparing[message.id] = message
        else:
            any(model.cancel(message) for model in self._models.values())

    def _keep_promises(self, message: Costs) -> None:
        model = self._models.get(message.model)
        if model is not None:  # else it was unloaded meanwhile
            try:
                model.keep_promises(message.data)
            except InputError as error:
                log.error("the costs of the model %r can't be used: %s", message.model, error)

    def _turn(self) -> None:
        """Ends what is due, gives one model a step, and tells the front."""
        now_s = time.monotonic()
        models = list(self._models.values())
        for model in models:
            if model.in_flight:
                model.expire(now_s)
        ready = [model for model in models if model.in_flight]
        if ready:
            model = ready[0]
            if len(ready) > 1:
                model = ready[next_turn([each.turn(now_s) for each in ready])]
            self._turns += 1
            model.last_turn = self._turns
            self._step(model)
        self._tell_all()

    def _step(self, model: ServedModel) -> None:
        self._stepping = model.engine
        try:
            model.step(self._free_s)
            self._free_s = time.monotonic()
        except Exception as error:
            # Half a step may have happened: pages and sequences can't be trusted any more.
            log.exception("a step of the model %r failed", model.name)
            failure = ErrorInfo(
                EngineUnavailable.__name__,
                "the engine failed while it computed this answer; it starts again, so ask again",
            )
            for each in self._models.values():
                each.fail(failure)
            self._tell_all()
            self._send(Fatal(f"a step of the model {model.name!r} failed: {_in_short(error)}"))
            self._exit = FAILED
        finally:
            self._stepping = None

    def _tell_all(self) -> None:
        for model in self._models.values():
            done = model.take_message()
            if done is not None:
                self._send(done)

    def _begin_load(self, message: Load) -> None:
        name = message.model
        if name in self._models or name in self._loading:
            error = InputError(f"the model {name!r} is loaded already; unload it first")
            self._send(LoadFailed(name, str(error), type(error).__name__))
            return

        def make() -> None:
            try:
                engine, executor = self._load(message.path, message.options)
                outcome: ServedModel | BaseException = ServedModel(name, engine, executor)
            except BaseException as error:  # the loop tells it
                outcome = error
            self._inbox.put(_Made(name, outcome))

        self._loading[name] = True
        threading.Thread(target=make, name=f"subsecond-load-{name}", daemon=True).start()

    def _end_load(self, made: _Made) -> None:
        name, outcome = made.name, made.outcome
        wanted = self._loading.pop(name)
        if isinstance(outcome, BaseException):
            info = error_info(outcome)
            if info.kind == RuntimeFailure.__name__:
                log.error("loading the model %r failed", name, exc_info=outcome)
            self._send(LoadFailed(name, info.message, info.kind))
        elif not wanted:
            self._send(
                LoadFailed(name, "the model was unloaded while it loaded", InputError.__name__)
            )
        else:
            self._models[name] = outcome
            self._send(Loaded(name, outcome.info))

    def _unload(self, name: str) -> None:
        if name in self._loading:
            self._loading[name] = False
        model = self._models.get(name)
        if model is not None:
            model.fail(
                ErrorInfo(EngineUnavailable.__name__, f"the model {name!r} was unloaded meanwhile")
            )
            self._tell_all()
            del self._models[name]
        self._send(Unloaded(name))

    def _send(self, message: EngineMessage) -> None:
        self._connection.sendall(frame(message))


def _in_short(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 300 else text[:297] + "..."
