"""The server's state: models, engine, promises, readiness, and its way to the end.

Owns: the parts and their lives, the canary, what new requests are refused for, draining. Does not
know: routes, how models are loaded (`loading` does), how answers are written.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from subsecond import __version__
from subsecond.engine.capacity import Capacity, capacity
from subsecond.engine.child import Launched
from subsecond.engine.health import WatchOptions
from subsecond.engine.messages import SamplingFields, StepStats
from subsecond.engine.remote import RemoteEngine
from subsecond.errors import EngineUnavailable, SubsecondError
from subsecond.serve import calibrate
from subsecond.serve.answer_cache import AnswerCache, Answers
from subsecond.serve.audit import Audit
from subsecond.serve.desk import Desk
from subsecond.serve.engine_command import Begin, command_of
from subsecond.serve.errors import Unavailable, UnknownModel
from subsecond.serve.keys import RIGHTS, Key, KeyRing
from subsecond.serve.ledger import Ledger
from subsecond.serve.limits import Limiter
from subsecond.serve.loading import STATED, Loader, ServedModel, limits_of
from subsecond.serve.loop_clock import lag_s
from subsecond.serve.metrics import Metrics
from subsecond.serve.places import Places
from subsecond.serve.redis_answers import RedisAnswers
from subsecond.serve.settings import ServeSettings
from subsecond.serve.snapshot import ModelNow, Snapshot
from subsecond.serve.traces import open_traces

log = logging.getLogger(__name__)

T = TypeVar("T")

ANYONE = Key(id="", name="anyone", sha256="", created=0, rights=list(RIGHTS))
"""Who asks where there are no keys."""

WATCH = WatchOptions(hang_s=10.0)
CANARY_S = 5.0  # a canary that takes longer is no answer
CANARY_EVERY_S = 30.0  # without any other sign of life
LATE_STEP_S = 5.0  # of an engine that has work: longer without a step is not ready
PROBE_S = 2.0  # after a decline, an idle engine is measured again
THREADS = 2
_WAITING_JOBS = 512


class Server:
    """One server. All methods belong to the event loop's thread."""

    def __init__(
        self,
        settings: ServeSettings,
        *,
        watch: WatchOptions | None = None,
        launched: Launched | None = None,
    ) -> None:
        """launched: the engine process, where it was started before.

        Raises InputError or OSError for keys, ledger or audit log that can't be used.
        """
        self.settings = settings
        self.ring = None if settings.keys is None else KeyRing(settings.keys)
        state = settings.state
        self.ledger = Ledger(None if state is None else state / "ledger.jsonl")
        self.audit: Audit | None = None
        if state is not None:
            self.audit = Audit(state / "audit.jsonl", texts=settings.audit_texts)
        self.answers: Answers | None = None
        if settings.answer_redis is not None:
            self.answers = RedisAnswers(settings.answer_redis)
        elif state is not None and settings.answer_cache_bytes:
            self.answers = AnswerCache(state, settings.answer_cache_bytes)
        self.traces = open_traces()
        self.described: Callable[[], bytes] = lambda: (
            b"{}"
        )  # the interface; the application sets it
        self.metrics = Metrics(self.ledger)
        self.limiter = Limiter(time.monotonic)
        apart = self.ring is not None
        self.urgent = Places(settings.max_waiting, apart=apart)  # of requests with a deadline
        self.patient = Places(settings.max_waiting, apart=apart)
        self.desk = Desk()
        self.engine = RemoteEngine(
            command_of(Begin(settings.log_format)),
            watch=watch or WATCH,
            on_step=self._on_step,
            launched=launched,
        )
        self.models: dict[str, ServedModel] = {}
        self.draining = False
        self.answering = 0  # requests whose answers haven't ended
        self.idle = asyncio.Event()
        self.idle.set()
        self.connections: Callable[[], int] = lambda: 0  # open ones; the HTTP server says it
        self.loader = Loader(self)
        self._stats: dict[str, StepStats] = {}  # of each model's last turn
        self._capacities: dict[str, Capacity] = {}
        self._pool = ThreadPoolExecutor(THREADS, "subsecond-text")
        self._aside = ThreadPoolExecutor(1, "subsecond-aside")
        self._jobs = 0
        self._proven_restarts = -1
        self._last_step_s = 0.0
        self.declined_s = -math.inf  # when the last deadline was declined
        self._canary: asyncio.Task[None] | None = None

    # Beginning and end.

    async def open(self, paths: dict[str, Path]) -> None:
        """Starts the engine process, loads the artifacts and measures them. Raises what is wrong
        with a model, EngineUnavailable if the process doesn't start.
        """
        await self.loader.open(paths)
        await self._prove()
        self._canary = asyncio.create_task(self._watch_canary(), name="subsecond-canary")

    async def close(self) -> None:
        """Ends the engine process, and writes what is to be kept."""
        if self._canary is not None:
            self._canary.cancel()
        await self.engine.close()
        for pool in (self._pool, self._aside):
            pool.shutdown(wait=False, cancel_futures=True)
        if self.answers is not None:
            await self.answers.close()
        if self.traces is not None:
            self.traces.close()
        self.ledger.close()
        if self.audit is not None:
            self.audit.close()

    async def drain(self) -> None:
        """Refuses new requests and returns when the others have ended, or the time for that has."""
        self.draining = True
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self.idle.wait()
        except TimeoutError:
            log.warning(
                "%d answers had not ended after %g s", self.answering, self.settings.drain_s
            )

    async def state_capacity(self, name: str) -> Capacity | None:
        """What a model can promise of requests as `STATED` has them, where all have a deadline;
        the snapshots have it from then on. Takes 0.3 s, in a thread.
        """
        within_s, own = self.settings.within_s, self.desk.costs[name]
        if within_s is None:
            return None
        cost = copy.copy(own.cost)  # the loop's own goes on learning
        prompt_tokens, new_tokens = STATED
        found = await asyncio.to_thread(  # others wait for what is done aside
            lambda: capacity(
                cost,
                own.limits,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                within_s=within_s,
                arrivals=200,
            )
        )
        if self.desk.costs.get(name) is own:  # else it was unloaded meanwhile
            self._capacities[name] = found
        return found

    def forget(self, name: str) -> None:
        """A model is gone, and with it its figures."""
        self._stats.pop(name, None)
        self._capacities.pop(name, None)
        self.metrics.forget(name)

    def snapshot(self) -> Snapshot:
        """How things stand now."""
        return Snapshot(
            version=__version__,
            unready=self.unready(),
            lag_s=lag_s(asyncio.get_running_loop()),
            connections=self.connections(),
            restarts=self.engine.health.restarts,
            engine_pid=self.engine.pid,
            audit_lost=0 if self.audit is None else self.audit.lost,
            ledger_problem=self.ledger.problem,
            models=[self._now(own) for own in self.models.values()],
        )

    def _now(self, own: ServedModel) -> ModelNow:
        stats, costs = self._stats.get(own.name), self.desk.costs[own.name]
        pages = {"used": 0, "cached": 0, "free": own.info.pages_total}
        if stats is not None:
            used = stats.pages_total - stats.pages_free - stats.pages_cached
            pages = {"used": used, "cached": stats.pages_cached, "free": stats.pages_free}
        stated = self._capacities.get(own.name)
        return ModelNow(
            name=own.name,
            certificate=own.text.certificate.kind,
            weights=own.text.weights,
            executor=own.info.executor,
            context=own.info.context,
            running=0 if stats is None else stats.running,
            waiting=0 if stats is None else stats.waiting,
            pages=pages,
            margin=costs.cost.margin,
            limits=limits_of(costs, own.info),
            capacity_per_s=None if stated is None else stated.requests_per_s,
            within_s=self.settings.within_s,
        )

    # Requests.

    def model(self, name: str) -> ServedModel:
        """A served model; UnknownModel otherwise."""
        found = self.models.get(name)
        if found is None:
            raise UnknownModel(name)
        return found

    def rank(self, key: Key, asked: int | None) -> int:
        """The priority of a request."""
        return key.rank(asked) if key.id else asked or 0

    def check_open(self, key: str, model: str) -> None:
        """Unavailable, with its count in the ledger, unless a request can be taken now."""
        if self.draining:
            self.ledger.decline(key, model, "draining")
            raise Unavailable("the server is stopping; ask another one, or later", 5.0, "draining")
        if self.engine.health.models.get(model, ("failed", ""))[0] != "ready":
            self.ledger.decline(key, model, "not_ready")
            raise Unavailable(
                "the engine starts again; try again in a moment", 1.0, "engine_unavailable"
            )

    async def in_thread(self, work: Callable[[], T]) -> T:
        """The result of what is too slow for the loop. Unavailable if too much of it waits."""
        if self._jobs >= _WAITING_JOBS:
            raise Unavailable("too many texts wait to be tokenized; try again", 1.0, "full")
        self._jobs += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._jobs -= 1

    async def aside(self, work: Callable[[], T]) -> T:
        """The result of what is too slow for the loop, and for texts to wait behind it."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    def begin(self) -> None:
        """A request is being answered."""
        self.answering += 1
        self.idle.clear()

    def end(self) -> None:
        """It isn't any more."""
        self.answering -= 1
        if not self.answering:
            self.idle.set()

    # Readiness.

    def unready(self) -> str:
        """Why requests aren't taken, in a word; "" if they are."""
        if self.draining:
            return "draining"
        health = self.engine.health
        states = (health.models.get(name, ("failed", ""))[0] for name in self.models)
        if health.state != "ready" or any(state != "ready" for state in states):
            return "engine_unavailable"
        if not self.models:
            return "no_model"
        if self._proven_restarts != health.restarts:
            return "no_canary"
        busy = any(own.running for own in self.desk.costs.values())
        if busy and time.monotonic() - self._last_step_s > LATE_STEP_S:
            return "engine_stalled"
        return ""

    async def _prove(self) -> None:
        """One token of every model, in time; EngineUnavailable otherwise."""
        restarts = self.engine.health.restarts
        try:
            async with asyncio.timeout(CANARY_S):
                for name in list(self.models):
                    if name in self.models:  # it may be unloaded meanwhile
                        await self._ask(name)
        except TimeoutError:
            raise EngineUnavailable(
                f"the engine gave no token within {CANARY_S:g} s; it may be overloaded"
            ) from None
        self._proven_restarts = restarts

    async def _ask(self, name: str) -> None:
        async with await self.engine.submit(name, [1], SamplingFields(1)) as stream:
            async for event in stream:
                if event.error is not None and name in self.models:
                    raise EngineUnavailable(event.error.message)

    async def _watch_canary(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            health = self.engine.health
            if health.state != "ready":
                continue
            proven = self._proven_restarts == health.restarts
            if proven and not self.desk.entries and time.monotonic() - self.declined_s < PROBE_S:
                # Whoever declines everything sees no step that could teach better.
                for model in list(self.models.values()):
                    await calibrate.probe(self.engine, model.name, model.info)
                continue
            if proven and time.monotonic() - self._last_step_s < CANARY_EVERY_S:
                continue
            try:
                await self._prove()
            except SubsecondError as error:
                self._proven_restarts = -1
                log.warning("the canary failed: %s", error)

    def _on_step(self, model: str, stats: StepStats) -> None:
        now_s = self._last_step_s = time.monotonic()
        self._stats[model] = stats
        self.loader.on_step(model, stats)
        self.desk.on_step(model, stats, now_s)
        self.metrics.step(model, stats)
