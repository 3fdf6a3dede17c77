"""How models come to a server and go, at its start and while it runs.

Owns: the order (texts, engine, measuring, canary), what is refused, and that a load breaks no
promise. Does not know: routes, who asks.

A load is admitted like a request. It takes the machine for about a known time, in which it is
assumed that nothing else is computed: it begins when every promise that was made would bear that,
and until then, and while it lasts, nothing is promised that could not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from subsecond.engine.cost import StepShape
from subsecond.engine.messages import ModelInfo, SamplingFields, StepStats
from subsecond.engine.policy import StepLimits
from subsecond.errors import EngineUnavailable, FetchError, InputError, ModelError
from subsecond.formats import certificate
from subsecond.runtime.build import native_build
from subsecond.serve import calibrate, logs
from subsecond.serve.desk import Costs, Desk
from subsecond.serve.errors import BadRequest, DeadlineDeclined, Unavailable, UnknownModel
from subsecond.serve.text_side import TextSide

if TYPE_CHECKING:
    from subsecond.serve.server import Server

log = logging.getLogger(__name__)

LOAD_S, BYTE_S = 0.7, 3e-9
"""What a load is assumed to take: so much, and so much for each byte of weights (read from a disk,
hashed twice).
"""
MEASURE_S, REFRESH_S = 4.8, 0.8
"""The same of measuring a model, for the first time here or again."""
EXTENSION_S = 0.25  # what takes longer than it was thought to gets so much more, again and again
STATED = (128, 48)
"""Tokens in and out of the requests that a stated capacity is of."""
CONTEXT = 256  # positions of each answer whose tokens a second are the machine's limit


@dataclass(frozen=True)
class ServedModel:
    """A model that can answer. identity: of all that decides the tokens of its answers but the
    requests.
    """

    name: str
    text: TextSide
    info: ModelInfo
    identity: tuple[str, ...]


class Loader:
    """Of one server. Belongs to the event loop's thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._recorders: dict[str, calibrate.Recorder] = {}
        self._turn = asyncio.Lock()
        self.states: dict[str, str] = {}  # of models that don't answer (yet): loading, unloading

    def on_step(self, model: str, stats: StepStats) -> None:
        """A model's turn has ended."""
        recorder = self._recorders.get(model)
        if recorder is not None:
            recorder.take(stats)

    async def open(self, paths: Mapping[str, Path]) -> None:
        """Starts the engine process, and loads and measures the first models. Raises what is wrong
        with one, EngineUnavailable if the process doesn't start.
        """
        server, loop = self._server, asyncio.get_running_loop()
        texts = {
            name: loop.run_in_executor(None, TextSide.open, name, path)
            for name, path in paths.items()
        }
        try:
            await server.engine.start()
            for name, path in paths.items():
                info = await server.engine.load(name, str(path), server.settings.options)
                text = await texts[name]
                server.models[name] = await self._measured(text, info)
        finally:
            await asyncio.gather(*texts.values(), return_exceptions=True)

    async def load(self, name: str, path: Path, deadline_s: float) -> ServedModel:
        """Loads an artifact while others answer, until `deadline_s` (`time.monotonic()`).

        Raises BadRequest for a name that is taken and for whatever is wrong with the artifact,
        DeadlineDeclined if promises leave no room in time.
        """
        server = self._server
        if name in server.models or name in self.states:
            raise BadRequest(f"the model {name!r} is served already; unload it first", "name")
        self.states[name] = "loading"
        try:
            text = await server.aside(lambda: TextSide.open(name, path))
            size = text.weights_bytes
            async with self._machine(LOAD_S + BYTE_S * size, deadline_s):
                info = await server.engine.load(name, str(path), server.settings.options)
            try:
                measured = calibrate.was_measured(path)
                async with self._machine(REFRESH_S if measured else MEASURE_S, deadline_s):
                    served = await self._measured(text, info)
                    await server.state_capacity(name)
            except BaseException:
                self._forget(name)
                with contextlib.suppress(InputError):
                    await server.engine.unload(name)
                raise
        except (ModelError, FetchError, InputError) as error:
            log.warning("the model %r is refused: %s", name, error)
            said = str(error).replace(f"{path}/", "").replace(str(path), repr(name))
            raise BadRequest(f"the artifact is refused: {said}", "model", "model_refused") from None
        finally:
            del self.states[name]
        if server.draining:
            raise Unavailable("the server is stopping; ask another one, or later", 5.0, "draining")
        server.models[name] = served
        logs.operation.info("loaded %r", name)
        return served

    async def unload(self, name: str, deadline_s: float) -> None:
        """Takes no new requests for a model, and frees it when the others have ended. What was
        promised is kept, however long it takes; the rest ends with an error at `deadline_s`.
        """
        server = self._server
        if name not in server.models:
            raise UnknownModel(name)
        del server.models[name]
        self.states[name] = "unloading"
        try:
            while True:
                left = [own.item for own in server.desk.entries if own.model == name]
                late = time.monotonic() >= deadline_s
                idle = not left and not server.desk.unsent[name]
                if idle or (late and all(own.deadline_s == math.inf for own in left)):
                    break
                await asyncio.sleep(0.01)
            with contextlib.suppress(InputError):  # it is gone already
                await server.engine.unload(name)
            while any(entry.model == name for entry in server.desk.entries):
                await asyncio.sleep(0)  # their ends are on the way
        finally:
            del self.states[name]
            self._forget(name)
        logs.operation.info("unloaded %r", name)

    def _forget(self, name: str) -> None:
        self._server.desk.costs.pop(name, None)
        self._server.forget(name)

    @contextlib.asynccontextmanager
    async def _machine(self, seconds: float, deadline_s: float) -> AsyncIterator[None]:
        """The machine for so long, as soon as all promises bear it. DeadlineDeclined if that can't
        be before `deadline_s`.
        """
        desk = self._server.desk
        async with self._turn:
            begun_s = time.monotonic()
            try:
                now_s = begun_s
                while (late_s := (busy := desk.busy(now_s)).late_s(seconds)) > 0:
                    ends_s = now_s + busy.seconds + seconds
                    if ends_s > deadline_s:
                        raise _declined(ends_s - begun_s, late_s)
                    desk.taken_until_s = ends_s
                    await asyncio.sleep(min(max(late_s, 0.002), 0.05))
                    now_s = time.monotonic()
                if now_s + seconds > deadline_s:
                    raise _declined(now_s + seconds - begun_s, seconds)
                desk.taken_until_s = now_s + seconds
                extending = asyncio.create_task(_extend(desk))
                try:
                    yield
                finally:
                    extending.cancel()
            finally:
                desk.taken_until_s = 0.0

    async def _measured(self, text: TextSide, info: ModelInfo) -> ServedModel:
        """The model, with its cost at the desk, after it has answered its certificate's canary."""
        if text.tokenizer.vocab_size > info.vocab_size:
            raise InputError(
                f"the tokenizer of {text.name!r} has {text.tokenizer.vocab_size} tokens, the model "
                f"only {info.vocab_size}; convert the model again"
            )
        server = self._server
        machine = calibrate.machine_key(info, server.settings.options)
        cost = calibrate.recall(text.path, machine, info.max_tokens)
        recorder = self._recorders[text.name] = calibrate.Recorder()
        try:
            await self._ask_canary(text, info)
            if cost is None:
                cost = await calibrate.measure(server.engine, text.name, info, recorder)
                learnt = cost
                await server.aside(lambda: calibrate.remember(text.path, machine, learnt))
            else:
                cost = await calibrate.refresh(server.engine, text.name, info, recorder, cost)
        finally:
            del self._recorders[text.name]
        limits = StepLimits(
            tokens=info.max_tokens,
            sequences=info.max_sequences,
            rows=info.max_rows,
            positions=max(1, info.pages_total // text.cache_groups) * 64,
        )
        server.desk.costs[text.name] = Costs(cost, limits)
        server.engine.keep_promises(text.name, cost.to_json())
        record = text.certificate
        files = (record.weights_sha256, record.program_sha256, record.tokenizer_sha256)
        return ServedModel(text.name, text, info, (*files, machine))

    async def _ask_canary(self, text: TextSide, info: ModelInfo) -> None:
        """ModelError if the model gives another answer than its certificate records for this very
        executor and build: then something is wrong with the one or the other.
        """
        canary = await asyncio.to_thread(_canary_of, text, info)
        if canary is None:
            return
        fields = SamplingFields(len(canary.answer))
        answer: list[int] = []
        async with await self._server.engine.submit(text.name, canary.prompt, fields) as stream:
            async for event in stream:
                if event.error is not None:
                    raise EngineUnavailable(event.error.message)
                answer += event.tokens
        if answer != canary.answer:
            raise ModelError(
                f"{text.name!r} does not give the answers that its certificate records; run "
                "'subsecond verify' on it, and convert the model again"
            )


def _canary_of(text: TextSide, info: ModelInfo) -> certificate.Canary | None:
    """The first canary that this executor and build owe, token for token."""
    own = [c for c in text.certificate.canaries if c.executor == info.executor and c.build]
    if not own:
        return None
    build = native_build()
    return next((canary for canary in own if canary.build == build and canary.answer), None)


def limits_of(costs: Costs, info: ModelInfo) -> dict[int, float]:
    """Tokens a second that the machine gives at most, as its steps go lately, by the number of
    answers at once.
    """
    best = {}
    for answers in sorted({1, info.max_sequences}):
        held = answers * min(CONTEXT, info.context)
        shape = StepShape(answers, answers, answers, held, held)
        best[answers] = round(answers / costs.cost.predict(shape), 1)
    return best


async def _extend(desk: Desk) -> None:
    """What isn't done when it should be still takes the machine."""
    while True:
        left_s = desk.taken_until_s - time.monotonic()
        if left_s < EXTENSION_S / 2:
            desk.taken_until_s = time.monotonic() + EXTENSION_S
        await asyncio.sleep(max(EXTENSION_S / 4, left_s - EXTENSION_S))


def _declined(predicted_s: float, retry_after_s: float) -> DeadlineDeclined:
    return DeadlineDeclined(
        f"promises that were made leave no room for loading in time; about {predicted_s:.1f} s "
        "would be enough now",
        predicted_s,
        retry_after_s,
    )
