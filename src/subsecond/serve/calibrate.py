"""Measures a loaded model through the engine's own steps, and remembers what was found.

Owns: the requests that make steps of every size, how long that may take, the file beside the
artifact. Does not know: the fit (`engine.calibration`), HTTP.

The measured steps are real ones: whatever the engine, its sampler and its loop cost is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import hashlib
import itertools
import os
import platform
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from subsecond.engine.calibration import CURVE, fit
from subsecond.engine.cost import (
    LEAST_SCALE,
    MAX_TOKENS,
    MOST_SCALE,
    CostModel,
    StepShape,
)
from subsecond.engine.messages import LoadOptions, ModelInfo, SamplingFields, StepStats
from subsecond.engine.remote import RemoteEngine
from subsecond.errors import EngineUnavailable, InputError
from subsecond.formats import atomic

BUDGET_S = 3.0
"""Begun measurements are ended; none is begun after this, but of the shortest each once."""
LONG_TOKENS = 64  # of a prompt; longer ones are measured once or twice, shorter ones every round
REFRESH_S = 0.25
SAME_RATIO = 1.15
"""A machine that is this much faster or slower than remembered is another one, for now. Below it, a
measurement of a quarter of a second says less than what is remembered.
"""

_serial = itertools.count()

WARM_PAGES = 96
"""More than the texts of any one measurement hold."""
DEEP = 1024  # positions of the long context


class Recorder:
    """The steps of one model while it is measured; given every step's stats."""

    def __init__(self) -> None:
        self.steps: list[tuple[StepShape, float]] = []

    def take(self, stats: StepStats) -> None:
        """A step has ended."""
        plain = stats.steps == 1 and not stats.drafted
        if stats.shape is not None and plain and stats.elapsed_s > 0:
            self.steps.append((stats.shape, stats.elapsed_s))


async def measure(
    engine: RemoteEngine, model: str, info: ModelInfo, recorder: Recorder
) -> CostModel:
    """A cost model of the steps that the model does here. EngineUnavailable if the engine ends
    meanwhile.

    recorder: given the model's steps by the caller.
    """

    async def ask(prompt_tokens: int, new_tokens: int, n: int = 1) -> None:
        await _ask(engine, model, info, prompt_tokens, new_tokens, n)

    # Memory that is touched for the first time costs more than most steps.
    engine.warm(model, WARM_PAGES)
    await ask(min(info.max_tokens, info.context - 8), 8)
    recorder.steps.clear()
    end_s = time.monotonic() + BUDGET_S
    every, once = _plans(ask, info)
    await ask(1, 16)
    async with _company(engine, model, info):
        for plan in every:
            await plan()
        for plan in (*once, *every, *every, *once, *every):
            if time.monotonic() > end_s:
                break
            await plan()
    found = await asyncio.to_thread(fit, list(recorder.steps))
    return CostModel(found, max_tokens=min(info.max_tokens, MAX_TOKENS))


async def refresh(
    engine: RemoteEngine, model: str, info: ModelInfo, recorder: Recorder, cost: CostModel
) -> CostModel:
    """A remembered cost model; scaled to how fast the machine is now, if that is another speed than
    it was. Takes `REFRESH_S` where a start from nothing takes `BUDGET_S`.
    """
    await _ask(engine, model, info, 1, 4)
    recorder.steps.clear()
    end_s = time.monotonic() + REFRESH_S
    async with _company(engine, model, info):
        for length in (1, 16, 32) * 3:
            if time.monotonic() > end_s:
                break
            if length < min(info.max_tokens, info.context - 8):
                await _ask(engine, model, info, length, 6)
    ratios = [seconds / cost.seconds(shape) for shape, seconds in recorder.steps]
    scale = statistics.median(ratios) if ratios else cost.scale
    if 1 / SAME_RATIO <= scale / cost.scale <= SAME_RATIO:
        scale = cost.scale
    return CostModel(
        cost.coefficients,
        max_tokens=min(info.max_tokens, MAX_TOKENS),
        scale=min(max(scale, LEAST_SCALE), MOST_SCALE),
    )


async def probe(engine: RemoteEngine, model: str, info: ModelInfo) -> None:
    """Some steps, for the cost model to see. Errors are left to whoever watches the engine."""
    with suppress(EngineUnavailable):
        await _ask(engine, model, info, 1, min(32, info.context - 2))


async def _ask(  # noqa: PLR0917 (whom, and how much)
    engine: RemoteEngine,
    model: str,
    info: ModelInfo,
    prompt_tokens: int,
    new_tokens: int,
    n: int = 1,
) -> None:
    # Each prompt begins differently: a cached beginning would not be computed.
    first, range_size = 131 * next(_serial), max(info.vocab_size - 1, 1)
    prompt = [1 + (first + index) % range_size for index in range(prompt_tokens)]
    fields = SamplingFields(new_tokens, n=n, seed=0, min_tokens=new_tokens)
    async with await engine.submit(model, prompt, fields) as stream:
        async for event in stream:
            if event.error is not None:
                raise EngineUnavailable(f"the model can't be measured: {event.error.message}")


@contextlib.asynccontextmanager
async def _company(engine: RemoteEngine, model: str, info: ModelInfo) -> AsyncIterator[None]:
    """A text that decodes meanwhile. Steps follow each other then, as they do under load: a step
    after a pause is slower by what the machine has to wake up.
    """
    task = None
    if info.max_sequences > 1 and info.max_tokens > 1:
        task = asyncio.create_task(_ask(engine, model, info, 1, min(DEEP, info.context - 8)))
        await asyncio.sleep(0)
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _plans(
    ask: Callable[..., Awaitable[None]], info: ModelInfo
) -> tuple[list[Callable[[], Awaitable[object]]], list[Callable[[], Awaitable[object]]]]:
    """What to run, the cheapest and most telling first: in every round; and what is too long for
    that. A machine's speed changes from moment to moment, so a round has some of everything.
    """
    room, others = info.context - 8, max(1, info.max_sequences - 1)
    many = [count for count in (1, 3, 5, 7, 11, 15) if count <= others]
    # A token less than the curve's points: the company has one.
    lengths = [length - 1 for length in CURVE if 2 < length <= min(info.max_tokens, room, 512)]

    def one(length: int, new: int, n: int = 1) -> Callable[[], Awaitable[object]]:
        return lambda: ask(length, new, n)

    def together(count: int) -> Callable[[], Awaitable[object]]:
        return lambda: asyncio.gather(*(ask(4, 8) for _ in range(count)))

    every = [one(length, 1) for length in lengths if length < LONG_TOKENS]
    every += map(together, many)
    once = [one(length, 1) for length in lengths if length >= LONG_TOKENS]
    deep, half = min(DEEP, room), min(DEEP // 2, room)
    if half > LONG_TOKENS:
        once.append(one(half, 6, min(7, others)))
    if deep > half:
        once.append(one(deep, 6))
    return every, once


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: what it holds for, and the cost model's own JSON."""

    machine: str
    cost: msgspec.Raw


def machine_key(info: ModelInfo, options: LoadOptions) -> str:
    """A name of everything that a step's time depends on: processor, cores, executor, sizes, and
    the build.
    """
    from subsecond import _native

    build = Path(str(_native.__file__)).stat()
    parts = (
        _processor(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        info.executor, info.max_tokens, info.max_sequences, options.threads,
        options.steps_per_call, build.st_size, build.st_mtime_ns,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def recall(path: Path, machine: str, max_tokens: int) -> CostModel | None:
    """What was remembered for this machine beside the artifact `path`; None if nothing that can be
    used.
    """
    try:
        kept = msgspec.json.decode(_file(path, machine).read_bytes(), type=_Kept)
        if kept.machine != machine:
            return None
        return CostModel.from_json(bytes(kept.cost), max_tokens=max_tokens)
    except (OSError, msgspec.DecodeError, RecursionError, InputError):
        return None


def was_measured(path: Path) -> bool:
    """Whether anything is remembered beside the artifact, for this machine or another."""
    real = Path(os.path.realpath(path))
    return any(real.parent.glob(f"{glob.escape(f'.{real.name}.costs-')}*.json"))


def remember(path: Path, machine: str, cost: CostModel) -> None:
    """Keeps it for the next start. Failing to only costs that start some seconds.

    To be called when it was measured, not later: a margin that was learnt in a bad hour would make
    the next start promise nothing, and what promises nothing learns nothing.
    """
    kept = _Kept(machine, msgspec.Raw(cost.to_json()))
    with suppress(OSError):
        atomic.write_file(_file(path, machine), msgspec.json.encode(kept))


def _file(path: Path, machine: str) -> Path:
    real = Path(os.path.realpath(path))
    return real.parent / f".{real.name}.costs-{machine}.json"


def _processor() -> str:
    """The processor's name, and what of it this process may use."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
