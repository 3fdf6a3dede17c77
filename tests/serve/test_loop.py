"""The loop: its lag is known, and what takes long doesn't run on it."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from running import PATIENCE_S, Running, bind, serving

from subsecond.engine.capacity import Capacity
from subsecond.serve import run, server
from subsecond.serve.loop_clock import lag_s, new_loop, readable_since_s
from subsecond.serve.server import Server


class Held:
    """Stands for `capacity`: takes until it is let go, or for ever if the loop waits for it."""

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()

    def __call__(self, *_: Any, **__: Any) -> Capacity:
        self.begun.set()
        assert self.let_go.wait(PATIENCE_S / 2), "the loop stood still meanwhile"
        return Capacity(requests_per_s=7.0, p99_s=0.5, alone_s=0.1)


async def answered_meanwhile(running: Running, held: Held) -> None:
    while not held.begun.is_set():
        await asyncio.sleep(0.001)
    assert (await running.chat()).status == 200
    held.let_go.set()


def test_the_loop_goes_on_while_a_capacity_is_found(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    monkeypatch.setattr(server, "capacity", held)

    async def main() -> None:
        async with serving(artifact, within_s=20.0) as running:
            own = running.server
            assert own.snapshot().models[0].capacity_per_s is None
            stating = asyncio.create_task(own.state_capacity("m"))
            await answered_meanwhile(running, held)
            found = await stating
            assert found is not None and found.requests_per_s == 7.0
            assert own.snapshot().models[0].capacity_per_s == 7.0

    asyncio.run(main())


def test_what_is_said_when_it_listens_holds_no_answer_up(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The way of `subsecond serve`: listening, saying what is promised, and ending meanwhile."""
    held = Held()
    monkeypatch.setattr(server, "capacity", held)

    async def main() -> None:
        async with serving(artifact, within_s=20.0) as running:
            stop, listener = asyncio.Event(), bind("127.0.0.1", 0)
            said: list[Capacity | None] = []

            async def ready(own: Server, url: str) -> None:
                assert url == "here"
                said.append(await own.state_capacity("m"))
                raise ValueError("a fault in what is said")

            http = run.uvicorn_of(running.server)
            telling = run._tell(ready, running.server, "here")
            listening = asyncio.create_task(
                run._listen(running.server, http, listener, stop, telling)
            )
            await answered_meanwhile(Running(running.server, listener.getsockname()[1]), held)
            while not said:
                await asyncio.sleep(0.001)
            assert (await running.chat()).status == 200
            stop.set()
            await listening
            listener.close()

    asyncio.run(main())
    assert "can't be said" in caplog.text


def test_lag_is_what_waited_for_the_loop() -> None:
    async def main(timed: bool) -> float:
        loop = asyncio.get_running_loop()
        loop.call_soon(time.sleep, 0.05)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        found = lag_s(loop)
        assert (time.monotonic() - readable_since_s(loop) >= 0.05) is timed
        return found

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(main(True)) >= 0.05
    assert asyncio.run(main(False)) == 0.0
