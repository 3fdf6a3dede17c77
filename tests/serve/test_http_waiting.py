"""Many requests and large ones over HTTP: what is bounded, and that nobody stands in the way."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from running import Reply, Running, becomes, serving

from subsecond.errors import InputError
from subsecond.serve.keys import KeyFile
from subsecond.serve.settings import ServeSettings

MANY = [f"{index} one two three" for index in range(1200)]


async def embed(running: Running, input: Any, **fields: Any) -> Reply:
    return await running.ask("/v1/embeddings", {"model": "m", "input": input, **fields})


def test_a_large_request_neither_fills_the_server_nor_goes_before_others(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact, max_waiting=6) as running:
            desk, most = running.server.desk, 0
            took = desk.take

            def watching(*given: Any) -> Any:
                nonlocal most
                found = took(*given)
                most = max(most, len(desk.entries))
                return found

            desk.take = watching  # type: ignore[method-assign]
            large = asyncio.create_task(embed(running, MANY))
            await becomes(lambda: desk.unsent["m"] > 0)
            for index in range(3):
                small = await running.complete(prompt=f"{index} hello")
                assert small.status == 200, small.body
                assert not large.done()
            reply = await large
            assert reply.status == 200
            found = [own["embedding"] for own in reply.json["data"]]
            assert [own["index"] for own in reply.json["data"]] == list(range(len(MANY)))
            assert len({tuple(vector) for vector in found}) == len(MANY)
            for index in (0, 7, 1199):
                alone = (await embed(running, MANY[index])).json["data"][0]["embedding"]
                assert found[index] == alone
            assert 1 < most <= 6 + 1  # a request may always have one
            assert (running.server.patient.held, running.server.patient.tokens) == (0, 0)

    asyncio.run(main())


def test_who_waits_without_end_leaves_room_for_deadlines(roomy_artifact: Path) -> None:
    async def main() -> None:
        async with serving(roomy_artifact, max_waiting=3) as running:
            fields = {"max_tokens": 20_000, "ignore_eos": True}
            waiting = [asyncio.create_task(running.complete(**fields)) for _ in range(3)]
            await becomes(lambda: running.server.patient.held == 3)
            full = await running.complete()
            assert (full.status, full.error["code"]) == (503, "full")
            assert "retry-after" in full.headers
            assert running.server.ledger.total().declined == {"full": 1}
            promised = await running.complete(deadline_ms=20_000, max_tokens=2)
            assert promised.status == 200 and promised.json["subsecond"]["kept"] is True
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await becomes(lambda: not running.server.patient.held and not running.server.answering)
            assert (await running.complete()).status == 200

    asyncio.run(main())


def test_a_key_leaves_room_for_another(roomy_artifact: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    greedy, _ = file.create("greedy", ["use"])
    other, _ = file.create("other", ["use"])

    async def main() -> None:
        async with serving(roomy_artifact, max_waiting=8, keys=file.path) as running:
            running.headers["authorization"] = f"Bearer {greedy}"
            fields = {"max_tokens": 20_000, "ignore_eos": True}
            waiting = [asyncio.create_task(running.complete(**fields)) for _ in range(8)]
            await becomes(lambda: sum(task.done() for task in waiting) == 5)
            places = running.server.patient
            assert places.held == 3  # these are long: they fill three quarters of the work
            refused = [task.result() for task in waiting if task.done()]
            assert {(own.status, own.error["code"]) for own in refused} == {(503, "full")}
            running.headers["authorization"] = f"Bearer {other}"
            assert (await running.complete()).status == 200
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(main())


def test_an_engine_that_dies_ends_a_request_of_many_prompts_once(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running:
            server = running.server
            large = asyncio.create_task(embed(running, MANY))
            await becomes(lambda: server.engine.submitted > 20)
            assert server.engine.pid is not None
            os.kill(server.engine.pid, signal.SIGKILL)
            reply = await large
            assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")
            await becomes(lambda: not server.desk.entries and not server.patient.held)
            await becomes(lambda: not server.unready())
            assert (await embed(running, MANY[:9])).status == 200

    asyncio.run(main())


def test_the_bound_is_checked() -> None:
    for most in (0, 8193):
        try:
            ServeSettings(models=(("m", "m"),), max_waiting=most)
        except InputError as error:
            assert "max-waiting" in str(error)
        else:
            raise AssertionError(most)
