"""Who is not let in, what is too large or too slow, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from running import PATIENCE_S, Running, becomes, closed, parsed, serving

from subsecond.engine.health import WatchOptions
from subsecond.serve.app import OPEN, ROUTES
from subsecond.serve.keys import KeyFile
from subsecond.serve.limits import BodyLimits, KeyLimits, RequestLimits

QUICK = WatchOptions(ping_s=0.05, hang_s=30.0, backoff_s=0.01, backoff_most_s=0.05)
ENDLESS: dict[str, Any] = {"max_tokens": 30_000, "min_tokens": 4, "ignore_eos": True}
"""An answer that takes seconds where it isn't ended."""


def test_nobody_gets_in_without_a_key(artifact: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    use, _ = file.create("use", ["use"])
    watcher, _ = file.create("watcher", ["metrics"])
    limited, _ = file.create("limited", ["use"], KeyLimits(requests_per_minute=1))

    async def main() -> None:
        async with serving(artifact, keys=file.path, state=tmp_path / "state") as running:
            paths = [path.replace("{model:path}", "m") for path in ROUTES]
            tricks = ["/", "/V1/models", "//health/live", "/health/live/", "/health/%6cive",
                      "/health/live%2f..%2f..%2fmetrics", "/health/../metrics", "/%2e%2e/metrics",
                      "/health/live?x=/metrics", "/metrics;/health/live"]  # fmt: skip
            for path in [*paths, *tricks]:
                for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
                    reply = await running.ask(path, method=method)
                    if path.partition("?")[0] in OPEN:
                        assert reply.status == (200 if method in ("GET", "HEAD") else 405)
                    else:
                        assert reply.status == 401, (path, method)
                        assert "www-authenticate" in reply.headers
            for bad in ("", "Basic eDp5", f"Bearer {use[:-1]}x", f"Bearer {use} {use}", "Bearer"):
                assert (await running.ask("/v1/models", authorization=bad)).status == 401

            running.headers["authorization"] = f"Bearer {watcher}"
            assert (await running.ask("/metrics")).status == 200
            assert (await running.chat()).status == 403
            running.headers["authorization"] = f"Bearer {use}"
            assert (await running.chat()).status == 200
            assert (await running.ask("/metrics")).status == 403
            assert (await running.chat(priority=1)).status == 403
            running.headers["authorization"] = f"Bearer {limited}"
            assert (await running.chat()).status == 200
            over = await running.chat()
            assert (over.status, over.error["code"]) == (429, "rate_limit_exceeded")
            assert "x-should-retry" not in over.headers
            rows = {row.key: row for row in running.server.ledger.rows()}
            assert [row.declined for row in rows.values()] == [{"requests_per_minute": 1}]
            file.revoke("use")
            running.headers["authorization"] = f"Bearer {use}"
            assert (await running.chat()).status == 401
        log = (tmp_path / "state" / "audit.jsonl").read_text()
        assert "hello" not in log and use not in log and watcher not in log
        entries = [json.loads(line) for line in log.splitlines()]
        assert {entry["status"] for entry in entries} >= {200, 401, 403, 429}

    asyncio.run(main())


def test_without_keys_only_its_own_address_is_answered(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running:
            for host in ("127.0.0.1", f"127.0.0.1:{running.port}", "localhost:80", "[::1]:8000"):
                assert (await running.ask("/v1/models", host=host)).status == 200
            for host in ("evil.example", "127.0.0.1.evil.example:8000", ""):
                assert (await running.ask("/v1/models", host=host)).status == 403

    asyncio.run(main())


def test_bodies_and_headers_are_bounded(artifact: Path) -> None:
    limits = RequestLimits(
        body=BodyLimits(body_bytes=20_000), header_bytes=4096, headers=20, headers_s=0.4, body_s=0.4
    )

    async def main() -> None:
        async with serving(artifact, limits=limits) as running:
            path = "/v1/chat/completions"
            long = running.chat_body("x" * 30_000)
            assert (await running.ask(path, long)).status == 413
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            kind = b"content-type: application/json\r\n"
            cases = {
                head + b"content-type: text/plain\r\ncontent-length: 2\r\n\r\n{}": 415,
                head + kind + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}": 415,
                head + kind + b"content-length: 3\r\n\r\n\xff\xfe{": 400,
                head + kind + b"transfer-encoding: chunked\r\n\r\nzz\r\n": 400,
                head + kind + b"content-length: 999999999999\r\n\r\n": 413,
                head + kind + b"content-length: -1\r\n\r\n": 400,
                head + kind + b"content-length: 50\r\n\r\n{": 408,
                head + kind + b"transfer-encoding: chunked\r\n\r\n" + 30 * (b"400\r\n" + b" " * 1024
                    + b"\r\n"): 413,
                b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx: " + b"a" * 9000
                    + b"\r\n\r\n": 431,
                b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
                    + b"x: 1\r\n" * 30 + b"\r\n": 431,
                b"GET /v1/models HTTP/1.1\r\nhos": 408,
                b"nonsense\r\n\r\n": 400,
            }  # fmt: skip
            for data, status in cases.items():
                async with asyncio.timeout(10):
                    reply = await running.send(data)
                assert reply.status == status, data[:200]
                assert set(reply.error) == {"message", "type", "param", "code"}
            assert (await running.chat()).status == 200

    asyncio.run(main())


def test_many_connections_are_refused_and_idle_ones_closed(artifact: Path) -> None:
    limits = RequestLimits(connections=3, idle_s=0.5)

    async def main() -> None:
        async with serving(artifact, limits=limits) as running:
            idle = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(3)]
            refused = await running.send(b"")
            assert (refused.status, refused.error["code"]) == (503, "full")
            for reader, writer in idle:
                assert await reader.read() == b""
                await closed(writer)
            assert (await running.chat()).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_noticed(roomy_artifact: Path, stream: bool) -> None:
    async def main() -> None:
        async with serving(roomy_artifact, within_s=50.0) as running:
            body = running.chat_body(**ENDLESS, stream=stream)
            with contextlib.suppress(ConnectionError):
                for cut in range(6):
                    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                    writer.write(running.request("/v1/chat/completions", {**body, "seed": cut}))
                    await becomes(lambda: running.server.engine.in_flight > 0)
                    if stream and cut % 2:
                        await reader.readuntil(b"data: ")
                    await closed(writer)
                    await becomes(lambda: running.server.engine.in_flight == 0)
            await becomes(lambda: not running.server.answering)
            row = running.server.ledger.total()
            assert (row.promised, row.cancelled, row.open) == (6, 6, 0)
            assert not running.server.desk.entries
            assert (await running.chat()).status == 200

    asyncio.run(main())


def test_a_client_that_never_reads_delays_nobody(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running:
            slow = []
            for _ in range(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1)
                body = running.chat_body(max_tokens=400, stream=True, n=2, logprobs=True)
                writer.write(running.request("/v1/chat/completions", {**body, "top_logprobs": 20}))
                slow.append((reader, writer))
            await becomes(lambda: running.server.engine.submitted >= 2)
            assert (await running.chat()).status == 200
            await becomes(lambda: running.server.engine.in_flight == 0)
            for _, writer in slow:
                await closed(writer)
            await becomes(lambda: not running.server.answering)

    asyncio.run(main())


def test_the_engine_is_killed_and_comes_back(roomy_artifact: Path) -> None:
    async def begun(running: Running, stream: bool) -> asyncio.Task[bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        body = running.chat_body(**ENDLESS, stream=stream)
        before = running.server.engine.submitted
        writer.write(running.request("/v1/chat/completions", body))
        await becomes(lambda: running.server.engine.submitted > before)
        start = await reader.readuntil(b"data: ") if stream else b""

        async def rest() -> bytes:
            try:
                return start + await reader.read()
            finally:
                await closed(writer)

        return asyncio.create_task(rest())

    async def main() -> None:
        async with serving(roomy_artifact, watch=QUICK, within_s=50.0) as running:
            golden = (await running.chat()).json["choices"]
            streamed, whole = await begun(running, True), await begun(running, False)
            assert running.server.engine.pid is not None
            os.kill(running.server.engine.pid, signal.SIGKILL)
            *_, (name, error) = parsed(await streamed).events
            assert name == "error" and error["error"]["code"] == "engine_unavailable"
            reply = parsed(await whole)
            assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")
            assert "retry-after" in reply.headers
            assert (await running.ask("/health/live")).status == 200
            await becomes(lambda: running.server.engine.health.restarts > 0)
            await becomes(lambda: not running.server.unready())
            assert (await running.ask("/health/ready")).status == 200
            assert (await running.chat()).json["choices"] == golden
            row = running.server.ledger.total()
            assert (row.promised, row.broken, row.open) == (4, {"engine": 2}, 0)
            await becomes(lambda: not running.server.desk.entries)

    asyncio.run(main())


def test_draining_refuses_the_new_and_ends_the_old(roomy_artifact: Path) -> None:
    async def main() -> None:
        async with serving(roomy_artifact, drain_s=PATIENCE_S) as running:
            old = asyncio.create_task(
                running.chat(max_tokens=4000, min_tokens=4, ignore_eos=True, stream=True)
            )
            await becomes(lambda: running.server.engine.in_flight > 0)
            draining = asyncio.create_task(running.server.drain())
            await asyncio.sleep(0)
            ready = await running.ask("/health/ready")
            assert (ready.status, ready.error["code"]) == (503, "draining")
            refused = await running.chat()
            assert (refused.status, refused.error["code"]) == (503, "draining")
            assert (await old).events[-1][1] == "[DONE]"
            await draining
            assert running.server.ledger.total().declined == {"draining": 1}

    asyncio.run(main())
