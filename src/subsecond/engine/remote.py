"""The engine process as the front uses it: models and requests, and a watch over the process.

Owns: which requests are on their way, the process's life (start, watch, kill, start again), and the
truth about its state. Does not know: HTTP, text, admission; `wanted` has the models.

All methods belong to the event loop's thread. Every request that was submitted has exactly one end,
also when the process dies under it: then an error that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from subsecond.engine.child import CLOSED, Child, Launched, launch
from subsecond.engine.constraint import Constraint
from subsecond.engine.health import Health, State, WatchOptions
from subsecond.engine.messages import (
    Costs,
    Drain,
    Draining,
    EngineMessage,
    ErrorInfo,
    Event,
    Fatal,
    Loaded,
    LoadFailed,
    LoadOptions,
    ModelInfo,
    OnDeadline,
    Refused,
    SamplingFields,
    StepDone,
    StepStats,
    Submit,
    Unloaded,
    Warm,
)
from subsecond.engine.request_stream import RequestStream
from subsecond.engine.wanted import WantedModels
from subsecond.errors import EngineUnavailable, SubsecondError

log = logging.getLogger(__name__)

EXIT_S = 1.0  # a process that closed its connection is ending


@dataclass
class _Life:
    """One process, from its start to its end."""

    child: Child
    draining: bool = False
    fatal: str = ""
    streams: dict[int, RequestStream] = field(default_factory=dict)


class RemoteEngine:
    """A client of one engine process, which it starts, watches, and starts again.

    command: of the process (`child.module_command`). on_step: called with the model's name and
    what a turn cost, for cost models and metrics. launched: the first process, where it was started
    before. submitted, ended: requests so far, and how they
    ended (a finish reason, or an error's kind); `in_flight` is the difference.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        watch: WatchOptions | None = None,
        on_step: Callable[[str, StepStats], None] | None = None,
        launched: Launched | None = None,
    ) -> None:
        self.submitted = 0
        self.ended: Counter[str] = Counter()
        self._command = tuple(command)
        self._launched = launched
        self._watch = watch or WatchOptions()
        self._on_step = on_step
        self._models = WantedModels()
        self._life: _Life | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._next_id = 0
        self._restarts = 0
        self._state: State = "stopped"
        self._reason = "it was not started"
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Starts the process and returns when it answers. EngineUnavailable if it doesn't."""
        if self._supervisor is not None:
            raise RuntimeError("the engine process was started already")
        self._set_state("starting", "the engine process is starting")
        self._supervisor = asyncio.create_task(self._supervise(), name="subsecond-engine")
        while self._state == "starting":
            await self._changed.wait()
        if self._state != "ready":
            reason = self._reason
            await self.close()
            raise EngineUnavailable(reason)

    async def close(self, drain_s: float = 0.0) -> None:
        """Ends the process. drain_s: how long requests that are on their way may go on."""
        supervisor, self._supervisor = self._supervisor, None
        self._set_state("stopped", "the server is stopping")
        if supervisor is None:
            return
        life = self._life
        if life is not None and drain_s > 0:
            life.draining = True
            life.child.send(Drain())
            await asyncio.wait([life.child.lost], timeout=drain_s)
        supervisor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervisor

    @property
    def health(self) -> Health:
        """How things stand."""
        models = self._models.states
        state, reason = self._state, self._reason
        if state == "ready":
            bad = [(name, why) for name, (kind, why) in models.items() if kind == "failed"]
            if bad:
                state, reason = "failed", f"the model {bad[0][0]!r} is not loaded: {bad[0][1]}"
        return Health(state, reason, self._restarts, models)

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._life is None else self._life.child.pid

    @property
    def in_flight(self) -> int:
        """Requests that haven't ended."""
        return 0 if self._life is None else len(self._life.streams)

    async def load(self, model: str, path: str, options: LoadOptions | None = None) -> ModelInfo:
        """Loads a model, which takes requests from then on, also after the process was started
        again.

        Raises what loading raised (ModelError, FetchError, InputError), EngineUnavailable if the
        process is not there or ends meanwhile, InputError for a name that is taken. If the caller
        is cancelled, loading goes on; `health` tells how it ends.
        """
        life = self._living()
        if self._state != "ready":
            raise EngineUnavailable("the engine process is starting again; ask again in a moment")
        wanted = self._models.add(model, path, options or LoadOptions())
        try:
            return await self._models.load(model, wanted, life.child.send)
        except SubsecondError:
            self._models.drop(model, wanted)
            raise

    def keep_promises(self, model: str, costs: bytes) -> None:
        """Has a model's steps shared so that deadlines are kept, also after the process was started
        again. costs: `CostModel.to_json`. InputError for an unknown name.
        """
        wanted = self._models.find(model)
        wanted.costs = costs
        if self._life is not None and wanted.state == "ready":
            self._life.child.send(Costs(model, costs))

    def warm(self, model: str, pages: int) -> None:
        """Has the memory of so many KV pages of a model taken before what is submitted next.
        InputError for an unknown name.
        """
        self._models.find(model)
        if self._life is not None:
            self._life.child.send(Warm(model, pages))

    async def unload(self, model: str) -> None:
        """Frees a model; its requests end with an error. InputError for an unknown name."""
        life = self._life
        gone = life is None or life.child.lost.done()
        await self._models.unload(model, None if life is None or gone else life.child.send)

    async def submit(
        self,
        model: str,
        prompt: list[int],
        params: SamplingFields,
        *,
        deadline_s: float = math.inf,
        promised_tokens: int = 0,
        on_deadline: OnDeadline = "finish",
        priority: int = 0,
        tenant: str = "",
        arrival_s: float | None = None,
        constraint: Constraint | None = None,
        observe: Callable[[Event], None] | None = None,
    ) -> RequestStream:
        """Sends a request; its events. deadline_s, arrival_s: `time.monotonic()` seconds. observe:
        of `RequestStream`.

        EngineUnavailable if the process or the model is not there now. A request that the engine
        refuses is one whose stream has an error for its only event.
        """
        life = self._living()
        if not self._models.is_ready(model):
            raise EngineUnavailable(f"the model {model!r} is not loaded now")
        id = self._next_id
        message = Submit(
            id,
            model,
            prompt,
            params,
            deadline_s,
            promised_tokens,
            on_deadline,
            priority,
            tenant,
            arrival_s,
            constraint,
        )
        life.child.send(message)
        self._next_id += 1
        self.submitted += 1
        stream = life.streams[id] = RequestStream(id, life.child.send, observe)
        try:
            await life.child.drained()
        except asyncio.CancelledError:  # nobody will read it
            stream.cancel()
            raise
        return stream

    def _living(self) -> _Life:
        """The process, if it takes requests. What is raised may be shown to clients; `health` has
        the reason.
        """
        life = self._life
        if self._state == "stopped":
            raise EngineUnavailable("the server is stopping; ask another one, or later")
        if life is None or life.draining or life.child.lost.done():
            raise EngineUnavailable("the engine process is starting again; ask again in a moment")
        return life

    def _set_state(self, state: State, reason: str = "") -> None:
        self._state, self._reason = state, reason
        self._changed.set()
        self._changed = asyncio.Event()

    # The process's life.

    async def _supervise(self) -> None:
        """Starts the process, again and again."""
        loop, watch = asyncio.get_running_loop(), self._watch
        starts = 0  # in a row, without a stable time in between
        failures = 0  # in a row, without having been ready
        while True:
            ready_s = math.inf

            def mark_ready() -> None:
                nonlocal ready_s
                ready_s = loop.time()

            reason = await self._live(mark_ready)
            failures = failures + 1 if ready_s == math.inf else 0
            starts = 0 if loop.time() - ready_s >= watch.stable_s else starts + 1
            state: State = "failed" if failures >= watch.failed_after else "restarting"
            log.error("the engine process ended: %s", reason)
            self._restarts += 1
            self._set_state(state, f"the engine process ended: {reason}")
            if starts > 1:
                delay_s = watch.backoff_s * 2.0 ** min(starts - 2, 30)
                await asyncio.sleep(min(delay_s, watch.backoff_most_s))

    async def _live(self, mark_ready: Callable[[], None]) -> str:
        """One process from its start to its end; why it ended."""
        life: _Life
        child = Child(lambda message: self._take(life, message))
        life = _Life(child)
        self._life = life
        watcher = reloader = None
        try:
            launched, self._launched = self._launched, None
            await child.start(launched or launch(self._command))
            watcher = asyncio.create_task(child.watch(self._watch))
            reloader = asyncio.create_task(self._make_ready(life, mark_ready))
            reason = await child.lost
            if self._state == "ready":
                self._set_state("restarting", f"the engine process ended: {reason}")
            self._end_all(life)
            if reason != CLOSED or await child.exit_code(EXIT_S) is None:
                return reason
            return await child.end() + (f" ({life.fatal})" if life.fatal else "")
        except OSError as error:
            return f"it can't be started ({error.strerror or type(error).__name__})"
        except Exception as error:  # a fault of ours ends this process, not the watch
            log.exception("the engine process can't be served")
            return f"it can't be served ({type(error).__name__})"
        finally:
            for task in (watcher, reloader):
                if task is not None:
                    task.cancel()
            await asyncio.shield(self._bury(life))

    async def _bury(self, life: _Life) -> None:
        """Ends the process and all that waited for it."""
        life.child.give_up("it was ended")
        if self._life is life:
            self._life = None
        self._end_all(life)
        self._models.lost()
        await life.child.end()

    def _end_all(self, life: _Life) -> None:
        """Ends what the process left behind: requests with an error, models until they are loaded
        again.
        """
        message = "the engine process ended before the answer did; it starts again, so ask again"
        if self._state == "stopped":
            message = "the server stopped before the answer was done"
        error = ErrorInfo(EngineUnavailable.__name__, message)
        for stream in list(life.streams.values()):
            self._end(life, Event(id=stream.id, choice=0, error=error))
        self._models.unready()

    async def _make_ready(self, life: _Life, mark_ready: Callable[[], None]) -> None:
        """Waits for the first sign of life, and loads the models that are wanted."""
        await life.child.answered.wait()
        for name, model in self._models:
            model.state, model.reason = "loading", ""
            try:
                await self._models.load(name, model, life.child.send)
            except EngineUnavailable:  # the process ended: the next one is asked
                return
            except SubsecondError as error:
                log.error("the model %r can't be loaded again: %s", name, error)
        mark_ready()
        if not life.draining and self._state != "stopped":
            self._set_state("ready")

    # Messages.

    def _take(self, life: _Life, message: EngineMessage) -> None:
        match message:
            case StepDone():
                for event in message.events:
                    self._event(life, event)
                if self._on_step is not None:
                    try:
                        self._on_step(message.model, message.stats)
                    except Exception:  # a fault of an observer is no fault of the engine
                        log.exception("on_step failed")
            case Refused():
                self._end(life, Event(id=message.id, choice=0, error=message.error))
            case Loaded() | LoadFailed():
                self._models.loaded(message, life.child.send)
            case Unloaded():
                self._models.unloaded(message.model)
            case Draining():
                life.draining = True
                if self._state == "ready":
                    self._set_state("restarting", "the engine process is being replaced")
            case Fatal():
                life.fatal = message.message

    def _event(self, life: _Life, event: Event) -> None:
        if event.ends_request:
            self._end(life, event)
        elif (stream := life.streams.get(event.id)) is not None:
            stream.push(event)

    def _end(self, life: _Life, event: Event) -> None:
        """The last event of a request."""
        stream = life.streams.pop(event.id, None)
        if stream is not None:
            self.ended[event.error.kind if event.error else event.finish_reason or "stop"] += 1
            stream.push(event)
