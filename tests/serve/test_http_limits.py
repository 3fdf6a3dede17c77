"""Attacks over real sockets: slow, long, deep, many. Each is answered or cut off within its time,
and a healthy client beside it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from running import Reply, Running, closed, parsed, serving

from subsecond.errors import InputError
from subsecond.serve.limits import BodyLimits, RequestLimits
from subsecond.serve.settings import ServeSettings

LIMITS = RequestLimits(
    body=BodyLimits(body_bytes=50_000, depth=20, parts=500),
    header_bytes=4096,
    headers=30,
    headers_s=0.5,
    body_s=0.5,
    idle_s=0.7,
    connections=12,
)
PATH = "/v1/chat/completions"
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
)


@contextlib.asynccontextmanager
async def connected(
    running: Running,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        yield reader, writer
    finally:
        await closed(writer)


async def drip(running: Running, start: bytes, piece: bytes, pause_s: float = 0.02) -> Reply:
    """Sends a piece again and again, until the server has had enough; its reply."""
    loop, data = asyncio.get_running_loop(), b""
    with socket.socket() as own:  # a stream would give up reading where it can't write any more
        own.setblocking(False)
        async with asyncio.timeout(20):
            await loop.sock_connect(own, ("127.0.0.1", running.port))
            await loop.sock_sendall(own, start)

            async def send() -> None:
                with contextlib.suppress(ConnectionError):
                    while True:
                        await asyncio.sleep(pause_s)
                        await loop.sock_sendall(own, piece)

            sending = asyncio.create_task(send())
            with contextlib.suppress(ConnectionError):
                while more := await loop.sock_recv(own, 1 << 16):
                    data += more
            sending.cancel()
            await asyncio.wait({sending})
    return parsed(data)


def test_slow_requests_end_in_time_whatever_they_trickle(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact, limits=LIMITS) as running:
            begun_s = time.monotonic()
            headers, name, body, chunked, healthy = await asyncio.gather(
                drip(running, b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n", b"x: y\r\n", 0.1),
                drip(running, b"GET /", b"a"),
                drip(running, HEAD + b"content-length: 40000\r\n\r\n", b" "),
                drip(running, HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
                running.chat(),
            )
            assert time.monotonic() - begun_s < 15
            assert [own.status for own in (headers, name, body, chunked)] == [408] * 4
            for own in (headers, name, body, chunked):
                assert own.error["code"] == "request_timeout"
                assert own.headers["connection"] == "close"
            assert healthy.status == 200
            assert not running.server.answering

    asyncio.run(main())


def test_a_second_request_on_a_connection_has_its_own_time(artifact: Path) -> None:
    async def main() -> None:
        async with (
            serving(artifact, limits=LIMITS) as running,
            connected(running) as (reader, writer),
        ):
            writer.write(b"GET /health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"}")
            await asyncio.sleep(0.3)
            writer.write(b"GET /health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"}")
            writer.write(b"GET /health/li")
            async with asyncio.timeout(10):
                assert parsed(await reader.read()).status == 408

    asyncio.run(main())


def test_connections_are_bounded_and_come_back(artifact: Path) -> None:
    async def main() -> None:
        async with (
            serving(artifact, limits=LIMITS) as running,
            contextlib.AsyncExitStack() as stack,
        ):
            held = [await stack.enter_async_context(connected(running)) for _ in range(12)]
            async with connected(running) as (reader, _):
                refused = parsed(await reader.read())
            assert (refused.status, refused.error["code"]) == (503, "full")
            assert "retry-after" in refused.headers
            async with asyncio.timeout(10):  # they have asked for nothing
                for reader, _ in held:
                    assert await reader.read() == b""
            assert (await running.chat()).status == 200

    asyncio.run(main())


def test_headers_are_bounded(artifact: Path) -> None:
    many = b"".join(b"x-%d: 1\r\n" % index for index in range(40))
    cases = {
        b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
        + many
        + b"\r\n": 431,
        b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 5000 + b"\r\n\r\n": 431,
        b"GET /v1/models?" + b"q" * 5000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n": 431,
        b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nx: a\x00b\r\n\r\n": 400,
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n": 400,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n": 400,
        HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}": 400,
        HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n": 400,
    }

    async def main() -> None:
        async with serving(artifact, limits=LIMITS) as running:
            for data, status in cases.items():
                async with asyncio.timeout(10):
                    reply = await running.send(data)
                assert reply.status == status, (data[:80], reply.status)
                assert reply.error["message"]
            assert (await running.chat()).status == 200

    asyncio.run(main())


def test_bodies_are_bounded_in_bytes_depth_and_parts(artifact: Path) -> None:
    deep = b'{"model": "m", "messages": ' + b"[" * 100_000
    parts = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "x"}] * 300}
    ).encode()
    wide = b'{"model": "m", "messages": [' + b"[]," * 600 + b"[]]}"
    cases = [
        (deep[:40_000], 400), (parts, 413), (wide, 413), (b" " * 60_000, 413), (b"", 400),
        (b'{"model": "m", "model": "m"}', 400), (b'{"a": NaN}', 400), (b"\xff", 400),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"max_tokens": 1' + b"0" * 5000 + b"}", 400),
    ]  # fmt: skip

    async def main() -> None:
        async with serving(artifact, limits=LIMITS) as running:
            for body, status in cases:
                length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
                async with asyncio.timeout(10):
                    reply = await running.send(HEAD + length + body)
                assert reply.status == status, (body[:60], reply.status, reply.body[:200])
                assert reply.error["message"]
            assert (await running.chat()).status == 200

    asyncio.run(main())


def test_pipelined_requests_are_answered_in_order(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running:
            one = b"GET /health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
            last = b"GET /nothing HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
            async with asyncio.timeout(10), connected(running) as (reader, writer):
                writer.write(one * 5 + last)
                answer = await reader.read()
            assert answer.count(b"200 OK") == 5 and answer.count(b"404 Not Found") == 1
            assert answer.rindex(b"200 OK") < answer.index(b"404 Not Found")

    asyncio.run(main())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])  # noqa: S104
def test_another_address_needs_keys(host: str) -> None:
    with pytest.raises(InputError, match="API keys are needed"):
        ServeSettings(models=(("m", "x"),), host=host)
    ServeSettings(models=(("m", "x"),), host=host, keys=Path("/keys"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machines_own_address_does_not(host: str) -> None:
    assert ServeSettings(models=(("m", "x"),), host=host).is_local
