"""An engine that several threads use.

Owns: the lock around a loaded model, the loops that run requests to their end, and what becomes of
a model when it is closed or its process forks. Does not know: prompts, templates, parameters.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from subsecond.engine.engine import Engine
from subsecond.engine.request import Request
from subsecond.errors import RequestError, SubsecondError
from subsecond.tasks.completion import Completion, Piece, TextState, Usage, timing_of
from subsecond.tasks.load import Loaded

CLOSED = "the LLM is closed"
FORKED = (
    "this LLM was made before the process forked, and its threads stayed in the parent; make the "
    "LLM in the child process, or start processes with multiprocessing's 'spawn' method"
)

NESTED = (
    "this call was made while another one of the same thread was running (from a signal handler or "
    "a finalizer); only `cancel` may be"
)

T = TypeVar("T")

_alive: weakref.WeakSet[SharedEngine] = weakref.WeakSet()


class SharedEngine:
    """A loaded model for several threads: one at a time has the engine, for one step or more.

    Python raises KeyboardInterrupt, and what signal handlers raise, after any call. So the lock is
    one that knows its owner: it is taken inside `try`, and the first thing that `finally` calls is
    the release, which does nothing but raise where the lock wasn't taken. What the engine was doing
    when it was interrupted is undone by `Engine.reset`.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded: Loaded | None = loaded
        self._gone = CLOSED
        self._lock = threading.RLock()
        # The lock alone lets its own thread in again: a stream that the garbage collector closes,
        # or a signal handler, in the middle of a step. `_inside` tells, and is true under the lock
        # only.
        self._inside = False
        self._unsettled = False  # an exception has left the engine in the middle of something
        self._abandoned: deque[Request] = deque()
        _alive.add(self)

    @property
    def parts(self) -> Loaded:
        """The loaded model; RequestError if it was closed, or stayed in the parent process."""
        loaded = self._loaded
        if loaded is None:
            raise RequestError(self._gone)
        return loaded

    def use(self, call: Callable[[Engine], T], *, urgent: bool = False) -> T:
        """`call` of the engine, which this thread alone has meanwhile. urgent: a call of several
        steps ends after the step it is in, so that a new request doesn't wait for all of them.
        """
        if urgent and self._inside:
            self._interrupt()
        entered = False
        try:
            self._lock.acquire()
            if self._inside:
                raise RequestError(NESTED)
            self._inside = entered = True
            return self._settled(self.parts.engine, call)
        finally:
            if entered:
                self._inside = False
            try:  # noqa: SIM105 (suppress() is a call, in which an interrupt may come)
                self._lock.release()
            except RuntimeError:  # interrupted before the lock was taken
                pass
            # Streams that were closed after the last look under the lock.
            self._drop_abandoned()

    def logits(self, token_ids: Sequence[int], out: memoryview[float]) -> None:
        """`Engine.logits`. Generations that hold the KV cache run to their end first, as those do
        that run beside `run`.
        """

        def wait_and_score(engine: Engine) -> None:
            while not engine.has_room(len(token_ids)):
                engine.step()
                self._cancel_abandoned(engine)
            engine.logits(token_ids, out)

        self.use(wait_and_score, urgent=True)

    def stream(self, request: Request) -> Iterator[Piece]:
        """Runs a request; a piece a token. Closing the iterator ends it."""
        tokenizer = self.parts.tokenizer
        states = [TextState(tokenizer, sequence) for sequence in request.sequences]

        def submit(engine: Engine) -> None:
            if not request.finished:  # cancelled before it began
                engine.submit(request)

        def more(engine: Engine) -> list[Piece]:
            pieces = _advance(engine, states)
            if not pieces and not request.finished:
                engine.step()
                pieces = _advance(engine, states)
            return pieces

        try:
            self.use(submit, urgent=True)
            while any(state.finish_reason is None for state in states):
                yield from self.use(more)
            if request.error is not None:
                raise request.error
        finally:
            self._abandoned.append(request)  # at once: no call in which an interrupt could come
            self._drop_abandoned()

    def cancel(self, request: Request) -> None:
        """Ends a request before its next step. Never waits, so that signal handlers and the garbage
        collector may call it.
        """
        self._abandoned.append(request)
        self._drop_abandoned()

    def run(self, requests: Sequence[Request]) -> list[Completion]:
        """Runs requests together, to the end of the last."""
        submitted_s = time.monotonic()
        tokenizer = self.parts.tokenizer
        states = [
            [TextState(tokenizer, sequence) for sequence in request.sequences]
            for request in requests
        ]
        every = [state for own in states for state in own]

        def to_the_end(engine: Engine) -> None:
            for request in requests:
                engine.check(request)
            try:
                for request in requests:
                    engine.submit(request)
                while not all(request.finished for request in requests):
                    engine.step()
                    _advance(engine, every)
                    self._cancel_abandoned(engine)
            finally:
                for request in requests:
                    engine.cancel(request)

        try:
            self.use(to_the_end, urgent=True)
        finally:
            if not all(request.finished for request in requests):
                self._abandoned.extend(requests)
                self._drop_abandoned()
        for request in requests:
            if request.error is not None:
                raise request.error
        return [
            _completion(request, own, submitted_s)
            for request, own in zip(requests, states, strict=True)
        ]

    def close(self) -> None:
        """Frees the model when the call that is running has ended."""
        if self._inside:
            self._interrupt()
        with self._lock:
            if self._inside:
                raise RequestError(NESTED)
            self._loaded = None
            self._abandoned.clear()

    def leave_in_parent(self) -> None:
        """In a forked child: the model can't be used, and the lock may be held by a thread that
        doesn't exist here.
        """
        self._lock = threading.RLock()
        self._inside = self._unsettled = False
        self._abandoned = deque()
        if self._loaded is not None:
            self._loaded, self._gone = None, FORKED

    def _settled(self, engine: Engine, call: Callable[[Engine], T]) -> T:
        """`call`, with an engine that is in the middle of nothing, before and after."""
        if self._unsettled:  # a second interrupt came during the reset
            engine.reset()
        self._unsettled = True
        try:
            self._cancel_abandoned(engine)
            result = call(engine)
        except SubsecondError:  # raised on purpose, where nothing is half done
            self._cancel_abandoned(engine)
            self._unsettled = False
            raise
        except BaseException:
            engine.reset()
            self._cancel_abandoned(engine)
            self._unsettled = False
            raise
        self._cancel_abandoned(engine)
        self._unsettled = False
        return result

    def _interrupt(self) -> None:
        """Ends a running call of several steps after the step it is in."""
        loaded = self._loaded  # another thread may close it meanwhile
        if loaded is not None:
            loaded.engine.interrupt()

    def _drop_abandoned(self) -> None:
        """Ends the requests of closed streams, or leaves it to whoever has the engine."""
        while self._abandoned:
            entered = False
            try:
                if not self._lock.acquire(blocking=False) or self._inside:
                    self._interrupt()
                    return
                self._inside = entered = True
                loaded = self._loaded
                if loaded is not None:
                    self._settled(loaded.engine, _nothing)
                else:
                    self._abandoned.clear()
            finally:
                if entered:
                    self._inside = False
                try:  # noqa: SIM105
                    self._lock.release()
                except RuntimeError:  # another thread has it
                    pass

    def _cancel_abandoned(self, engine: Engine) -> None:
        """Needs the lock. Other threads may append meanwhile, none removes."""
        while self._abandoned:
            engine.cancel(self._abandoned[0])  # removed afterwards: an interrupt loses nothing
            self._abandoned.popleft()


def _nothing(engine: Engine) -> None:
    """What `_settled` does beside the call is all that is wanted."""


def _advance(engine: Engine, states: Sequence[TextState]) -> list[Piece]:
    """New pieces of all texts; texts whose stop string appeared end in the engine as well."""
    pieces: list[Piece] = []
    for state in states:
        if state.finish_reason is None:
            pieces += state.advance()
            if state.stopped and state.sequence.finish_reason is None:
                engine.finish(state.sequence, "stop")
    return pieces


def _completion(request: Request, states: Sequence[TextState], submitted_s: float) -> Completion:
    """The result of a finished request."""
    outputs = tuple(state.output() for state in states)
    usage = Usage(
        len(request.prompt),
        sum(len(o.token_ids) for o in outputs),
        request.cached_tokens,
        request.drafted_tokens,
        request.accepted_tokens,
    )
    return Completion(outputs, usage, timing_of(request, submitted_s))


def _after_fork() -> None:
    for shared in list(_alive):
        shared.leave_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
