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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from subsecond.engine.engine import Engine
from subsecond.engine.request import Request
from subsecond.errors import RequestError
from subsecond.tasks.completion import Completion, Piece, TextState, Usage, timing_of
from subsecond.tasks.load import Loaded

CLOSED = "the LLM is closed"
FORKED = (
    "this LLM was made before the process forked, and its threads stayed in the parent; make the "
    "LLM in the child process, or start processes with multiprocessing's 'spawn' method"
)

_alive: weakref.WeakSet[SharedEngine] = weakref.WeakSet()


class SharedEngine:
    """A loaded model for several threads: one at a time has the engine, for one step or more."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded: Loaded | None = loaded
        self._gone = CLOSED
        # Not reentrant: a stream that the garbage collector closes in the middle of a step must
        # wait.
        self._lock = threading.Lock()
        self._abandoned: deque[Request] = deque()
        _alive.add(self)

    @property
    def parts(self) -> Loaded:
        """The loaded model; RequestError if it was closed, or stayed in the parent process."""
        if self._loaded is None:
            raise RequestError(self._gone)
        return self._loaded

    @contextmanager
    def engine(self, *, urgent: bool = False) -> Iterator[Engine]:
        """The engine, for this thread alone. urgent: a call of several steps ends after the step it
        is in, so that a new request doesn't wait for all of them.
        """
        self._drop_abandoned()
        if urgent and self._lock.locked():
            self.parts.engine.interrupt()
        with self._lock:
            yield self.parts.engine

    def stream(self, request: Request) -> Iterator[Piece]:
        """Runs a request; a piece a token. Closing the iterator ends it."""
        tokenizer = self.parts.tokenizer
        states = [TextState(tokenizer, sequence) for sequence in request.sequences]
        try:
            with self.engine(urgent=True) as engine:
                if not request.finished:  # cancelled before it began
                    engine.submit(request)
            while any(state.finish_reason is None for state in states):
                with self.engine() as engine:
                    pieces = _advance(engine, states)
                    if not pieces and not request.finished:
                        engine.step()
                        pieces = _advance(engine, states)
                yield from pieces
            if request.error is not None:
                raise request.error
        finally:
            self.cancel(request)

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
        with self.engine(urgent=True) as engine:
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
        for request in requests:
            if request.error is not None:
                raise request.error
        return [
            _completion(request, own, submitted_s)
            for request, own in zip(requests, states, strict=True)
        ]

    def close(self) -> None:
        """Frees the model when the call that is running has ended."""
        if self._loaded is not None and self._lock.locked():
            self._loaded.engine.interrupt()
        with self._lock:
            self._loaded = None

    def leave_in_parent(self) -> None:
        """In a forked child: the model can't be used, and the lock may be held by a thread that
        doesn't exist here.
        """
        self._lock = threading.Lock()
        self._abandoned = deque()
        if self._loaded is not None:
            self._loaded, self._gone = None, FORKED

    def _drop_abandoned(self) -> None:
        """Ends the requests of closed streams, or leaves it to whoever has the engine."""
        while self._abandoned:
            if not self._lock.acquire(blocking=False):
                if self._loaded is not None:
                    self._loaded.engine.interrupt()
                return
            try:
                if self._loaded is not None:
                    self._cancel_abandoned(self._loaded.engine)
                else:
                    self._abandoned.clear()
            finally:
                self._lock.release()

    def _cancel_abandoned(self, engine: Engine) -> None:
        """Needs the lock. Other threads may append meanwhile, none removes."""
        while self._abandoned:
            engine.cancel(self._abandoned.popleft())


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
        len(request.prompt), sum(len(o.token_ids) for o in outputs), request.cached_tokens
    )
    return Completion(outputs, usage, timing_of(request, submitted_s))


def _after_fork() -> None:
    for shared in list(_alive):
        shared.leave_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
