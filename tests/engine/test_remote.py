"""The front's client of real engine processes: they are killed, stopped and broken at random."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_process import COMMAND, FAIL, HANG
from fake_runner import reference
from serving_model import cost_model

from subsecond.engine.health import WatchOptions
from subsecond.engine.messages import Event, SamplingFields, StepStats
from subsecond.engine.remote import RemoteEngine
from subsecond.engine.request_stream import RequestStream
from subsecond.errors import EngineUnavailable, InputError, ModelError

PATIENCE_S = 60  # no test waits so long unless it fails
QUICK = WatchOptions(ping_s=0.05, hang_s=0.6, backoff_s=0.01, backoff_most_s=0.05)


@asynccontextmanager
async def running(
    *, watch: WatchOptions | None = None, path: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[RemoteEngine]:
    """A process with the model "m"."""
    engine = RemoteEngine(COMMAND, watch=watch or QUICK, **more)
    async with asyncio.timeout(PATIENCE_S):
        await engine.start()
        try:
            await engine.load("m", json.dumps(path or {}))
            yield engine
        finally:
            await engine.close()


async def ask(
    engine: RemoteEngine, prompt: list[int], max_tokens: int = 8, **more: Any
) -> RequestStream:
    return await engine.submit("m", prompt, SamplingFields(max_tokens), **more)


async def read(stream: RequestStream) -> list[Event]:
    return [event async for event in stream]


def tokens(events: list[Event]) -> list[int]:
    return [token for event in events for token in event.tokens]


def kind(events: list[Event]) -> str | None:
    error = events[-1].error
    return None if error is None else error.kind


async def becomes(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def ready_again(engine: RemoteEngine, restarts: int) -> None:
    await becomes(lambda: engine.health.state == "ready" and engine.health.restarts >= restarts)


def alive(pid: int) -> bool:
    """Whether a process runs (a dead one that nobody has waited for does not)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_answers_arrive_and_are_accounted() -> None:
    async def main() -> None:
        async with running() as engine:
            assert engine.health.state == "ready"
            assert engine.health.models == {"m": ("ready", "")}
            prompts = [[i, i + 1, i + 2] for i in range(20)]
            streams = [await ask(engine, prompt) for prompt in prompts]
            assert engine.in_flight == 20
            answers = await asyncio.gather(*map(read, streams))
            assert [tokens(events) for events in answers] == [reference(p, 8) for p in prompts]
            assert engine.submitted == 20 and engine.in_flight == 0
            assert engine.ended == {"length": 20}

    asyncio.run(main())


def test_steps_are_reported() -> None:
    seen: list[tuple[str, StepStats]] = []

    def on_step(model: str, stats: StepStats) -> None:
        seen.append((model, stats))
        raise ValueError("an observer's own fault")

    async def main() -> None:
        async with running(on_step=on_step) as engine:
            assert tokens(await read(await ask(engine, [1, 2]))) == reference([1, 2], 8)

    asyncio.run(main())
    assert len(seen) == 8
    assert all(model == "m" and stats.shape is not None for model, stats in seen)
    last = seen[-1][1]
    assert last.pages_free + last.pages_cached == last.pages_total


def test_promises_are_kept_also_by_the_next_process() -> None:
    """A prompt of 48 tokens takes longer than a step may; first come, first served it is one."""

    async def main() -> None:
        shapes: list[int] = []

        def on_step(_: str, stats: StepStats) -> None:
            if stats.shape is not None:
                shapes.append(stats.shape.tokens)

        async with running(on_step=on_step) as engine:
            prompt = list(range(48))
            await read(await ask(engine, prompt, 1, tenant="a"))
            assert shapes == [48]
            with pytest.raises(InputError, match="no model 'x'"):
                engine.keep_promises("x", b"")
            engine.keep_promises("m", cost_model(margin=1.2).to_json())
            await read(await ask(engine, prompt, 1, tenant="b", deadline_s=time.monotonic() + 9))
            assert 1 < shapes[1] < 48
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            await ready_again(engine, 1)
            shapes.clear()
            await read(await ask(engine, prompt, 1, deadline_s=time.monotonic() + 9))
            assert 1 < shapes[0] < 48

    asyncio.run(main())


def test_pages_are_warmed_before_what_is_submitted_next() -> None:
    async def main() -> None:
        async with running() as engine:
            with pytest.raises(InputError, match="no model 'x'"):
                engine.warm("x", 1)
            engine.warm("m", 5)
            assert tokens(await read(await ask(engine, [1, 2]))) == reference([1, 2], 8)

    asyncio.run(main())


def test_a_slow_reader_delays_nobody_and_loses_nothing() -> None:
    async def main() -> None:
        async with running() as engine:
            slow = await engine.submit("m", [1, 2], SamplingFields(200, n=2, logprobs=0))
            quick = await read(await ask(engine, [3, 4], 200))
            assert tokens(quick) == reference([3, 4], 200)
            await becomes(lambda: slow.ended)
            events = await read(slow)
            assert len(events) == 2  # one for each text, whatever was missed
            for event in events:
                assert event.tokens == reference([1, 2], 200, choice=event.choice)
                assert len(event.logprobs or []) == 200
            assert [event.ends_request for event in events] == [False, True]

    asyncio.run(main())


def test_cancelling_and_leaving_early_end_the_request() -> None:
    async def main() -> None:
        async with running(path={"step_s": 0.002, "max_sequences": 1}) as engine:
            first, queued = await ask(engine, [1, 2], 400), await ask(engine, [1, 2], 400)
            queued.cancel()
            assert (await read(queued))[-1].finish_reason == "cancelled"
            async with first:
                await anext(first)
            events = await read(first)
            assert events[-1].finish_reason == "cancelled"
            assert sum(event.ends_request for event in events) == 1
            assert engine.ended == {"cancelled": 2}
            first.cancel()  # nothing happens any more
            assert tokens(await read(await ask(engine, [5]))) == reference([5], 8)

    asyncio.run(main())


def test_two_readers_of_one_stream_are_an_error() -> None:
    async def main() -> None:
        async with running(path={"step_s": 0.05}) as engine:
            stream = await ask(engine, [1, 2])
            first = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="two tasks"):
                await anext(stream)
            assert (await first).tokens

    asyncio.run(main())


def test_models_are_loaded_and_unloaded_while_it_runs() -> None:
    async def main() -> None:
        async with running() as engine:
            with pytest.raises(InputError, match="unload it first"):
                await engine.load("m", "{}")
            with pytest.raises(ModelError, match="no such folder"):
                await engine.load("other", '{"error": "no such folder"}')
            with pytest.raises(EngineUnavailable, match="other"):
                await engine.submit("other", [1], SamplingFields(1))
            assert (await engine.load("other", "{}")).context == 512
            await engine.unload("other")
            with pytest.raises(InputError, match="no model"):
                await engine.unload("other")
            assert set(engine.health.models) == {"m"}

    asyncio.run(main())


def test_a_load_may_be_taken_back_or_given_up() -> None:
    async def main() -> None:
        async with running() as engine:
            load = asyncio.create_task(engine.load("slow", '{"load_s": 0.2}'))
            await becomes(lambda: "slow" in engine.health.models)
            await engine.unload("slow")
            with pytest.raises(InputError, match="unloaded while it loaded"):
                await load
            load = asyncio.create_task(engine.load("given up", '{"load_s": 0.2}'))
            await becomes(lambda: "given up" in engine.health.models)
            load.cancel()
            await becomes(lambda: engine.health.models["given up"][0] == "ready")
            assert set(engine.health.models) == {"m", "given up"}

    asyncio.run(main())


def test_a_load_ends_with_the_process() -> None:
    async def main() -> None:
        async with running() as engine:
            load = asyncio.create_task(engine.load("slow", '{"load_s": 600}'))
            await becomes(lambda: "slow" in engine.health.models)
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(EngineUnavailable):
                await load
            await ready_again(engine, 1)
            assert engine.health.models == {"m": ("ready", "")}  # not asked for again

    asyncio.run(main())


def test_a_refused_request_ends_with_its_error() -> None:
    async def main() -> None:
        async with running() as engine:
            events = await read(await ask(engine, [1, 500]))
            assert [kind(events), events[-1].error and events[-1].error.param] == [
                "RequestError",
                "prompt",
            ]
            assert engine.ended == {"RequestError": 1}

    asyncio.run(main())


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_every_request_ends_once_when_the_process_dies(sign: signal.Signals) -> None:
    rng = random.Random(int(sign))
    rounds = 2 if sign == signal.SIGSTOP else 5

    async def main() -> None:
        async with running(path={"step_s": 0.001}) as engine:
            ends: list[str | None] = []
            for number in range(1, rounds + 1):
                prompts = [[rng.randrange(97) for _ in range(rng.randint(1, 90))] for _ in range(8)]
                readers = [
                    asyncio.create_task(read(await ask(engine, prompt, 60))) for prompt in prompts
                ]
                await asyncio.sleep(rng.random() * 0.06)
                assert engine.pid is not None
                os.kill(engine.pid, sign)
                answers = await asyncio.gather(*readers)
                for prompt, events in zip(prompts, answers, strict=True):
                    assert sum(event.ends_request for event in events) == 1
                    assert events[-1].ends_request
                    whole = reference(prompt, 60)
                    assert tokens(events) == whole[: len(tokens(events))]
                    ends.append(kind(events))
                await ready_again(engine, number)
                assert engine.in_flight == 0
                assert tokens(await read(await ask(engine, [number]))) == reference([number], 8)
            assert "EngineUnavailable" in ends
            assert set(ends) <= {None, "EngineUnavailable"}
            assert engine.submitted == engine.ended.total() == rounds * 9

    asyncio.run(main())


def test_a_hung_step_is_noticed_and_named() -> None:
    async def main() -> None:
        async with running() as engine:
            events = await read(await ask(engine, HANG))
            assert kind(events) == "EngineUnavailable"
            await becomes(lambda: engine.health.state != "ready")
            assert "no sign of life" in engine.health.reason
            await ready_again(engine, 1)

    asyncio.run(main())


def test_a_step_that_fails_ends_all_and_the_process_starts_again() -> None:
    async def main() -> None:
        async with running(path={"step_s": 0.002}) as engine:
            other = await ask(engine, [1, 2], 400)
            await anext(other)
            failing = await ask(engine, FAIL)
            assert kind(await read(failing)) == kind(await read(other)) == "EngineUnavailable"
            await becomes(lambda: engine.health.state == "restarting")
            await becomes(lambda: "planted failure" in engine.health.reason)
            assert "code 1" in engine.health.reason
            with pytest.raises(EngineUnavailable):
                await ask(engine, [1])
            await ready_again(engine, 1)
            assert tokens(await read(await ask(engine, [7]))) == reference([7], 8)

    asyncio.run(main())


def test_a_process_that_is_told_to_end_drains_first() -> None:
    async def main() -> None:
        async with running(path={"step_s": 0.002}) as engine:
            stream = await ask(engine, [1, 2], 60)
            await anext(stream)
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGTERM)
            await becomes(lambda: engine.health.state == "restarting")
            with pytest.raises(EngineUnavailable):
                await ask(engine, [1])
            events = await read(stream)
            assert events[-1].finish_reason == "length"
            await ready_again(engine, 1)

    asyncio.run(main())


def test_closing_may_wait_for_answers() -> None:
    async def main() -> None:
        async with running(path={"step_s": 0.002}) as engine:
            stream, pid = await ask(engine, [1, 2], 60), engine.pid
            await engine.close(drain_s=PATIENCE_S)
            assert tokens(await read(stream)) == reference([1, 2], 60)
            assert engine.health.state == "stopped"
            assert pid is not None and not alive(pid)

    asyncio.run(main())


def test_closing_at_once_ends_requests_with_an_error() -> None:
    async def main() -> None:
        async with running(path={"step_s": 0.002}) as engine:
            stream, pid = await ask(engine, [1, 2], 400), engine.pid
            await engine.close()
            assert kind(await read(stream)) == "EngineUnavailable"
            assert engine.submitted == engine.ended.total() == 1
            assert pid is not None and not alive(pid)
            with pytest.raises(EngineUnavailable, match="stopping"):
                await ask(engine, [1])

    asyncio.run(main())


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/does/not/exist"], "can't be started"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "code 3"),
        (
            [sys.executable, "-c", "import os, sys; os.write(int(sys.argv[1]), b'\\xff' * 99)"],
            "no message",
        ),
    ],
)
def test_a_process_that_cannot_start_is_named(command: list[str], reason: str) -> None:
    async def main() -> None:
        engine = RemoteEngine(command, watch=QUICK)
        with pytest.raises(EngineUnavailable, match=reason):
            await engine.start()
        assert engine.health.state == "stopped"

    asyncio.run(main())


def test_a_silent_process_is_given_up() -> None:
    async def main() -> None:
        watch = WatchOptions(ping_s=0.02, start_s=0.2)
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        engine = RemoteEngine(command, watch=watch)
        with pytest.raises(EngineUnavailable, match="no sign of life"):
            await engine.start()

    asyncio.run(main())


def test_a_model_that_cannot_be_loaded_again_makes_health_say_so(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    async def main() -> None:
        async with running() as engine:
            await engine.load("late", json.dumps({"fails_if_there": str(marker)}))
            marker.touch()
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            await becomes(lambda: engine.health.models["late"][0] == "failed")
            await becomes(lambda: engine.health.models["m"][0] == "ready")
            await becomes(lambda: engine.health.state == "failed")
            assert "late" in engine.health.reason and "the file is there" in engine.health.reason
            assert tokens(await read(await ask(engine, [7]))) == reference([7], 8)
            marker.unlink()
            await engine.load("late", json.dumps({"fails_if_there": str(marker)}))
            assert engine.health.state == "ready"

    asyncio.run(main())


def test_a_process_that_never_becomes_ready_again_has_failed(tmp_path: Path) -> None:
    """The attempts go on, and the state is "failed" until one succeeds."""
    broken = tmp_path / "broken"
    script = (
        "import pathlib, runpy, sys\n"
        f"if pathlib.Path({str(broken)!r}).exists(): raise SystemExit(9)\n"
        f"sys.path.insert(0, {str(Path(COMMAND[1]).parent)!r})\n"
        f"runpy.run_path({COMMAND[1]!r}, run_name='__main__')\n"
    )

    async def main() -> None:
        watch = WatchOptions(ping_s=0.05, backoff_s=0.01, backoff_most_s=0.02, failed_after=3)
        engine = RemoteEngine([sys.executable, "-c", script], watch=watch)
        async with asyncio.timeout(PATIENCE_S):
            await engine.start()
            await engine.load("m", "{}")
            broken.touch()
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            await becomes(lambda: engine.health.state == "failed")
            assert "code 9" in engine.health.reason
            with pytest.raises(EngineUnavailable):
                await ask(engine, [1])
            broken.unlink()
            await becomes(lambda: engine.health.state == "ready")
            assert tokens(await read(await ask(engine, [7]))) == reference([7], 8)
            await engine.close()

    asyncio.run(main())


FRONT = """
import asyncio, sys
from subsecond.engine.remote import RemoteEngine
from subsecond.engine.messages import SamplingFields

async def main():
    engine = RemoteEngine(sys.argv[1:])
    await engine.start()
    await engine.load("m", '{"step_s": 0.001}')
    await engine.submit("m", [1, 2], SamplingFields(400))
    print(engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_no_orphan_survives_a_front_that_is_killed() -> None:
    async def main() -> None:
        front = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FRONT, *COMMAND, stdout=asyncio.subprocess.PIPE
        )
        assert front.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            pid = int(await front.stdout.readline())
            assert alive(pid)
            front.kill()
            await front.wait()
            await becomes(lambda: not alive(pid))

    asyncio.run(main())
