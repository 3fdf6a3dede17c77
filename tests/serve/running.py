"""A server in the test's own loop, with a real engine process, and a plain HTTP client."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from subsecond.engine.health import WatchOptions
from subsecond.engine.messages import LoadOptions
from subsecond.serve.run import bind, tls_of, uvicorn_of
from subsecond.serve.server import Server
from subsecond.serve.settings import ServeSettings

PATIENCE_S = 60  # no test waits so long unless it fails
SIZES = LoadOptions(threads=1, max_sequences=4, max_tokens_per_step=64)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found = self.json
        assert set(found) == {"error"}
        assert set(found["error"]) == {"message", "type", "param", "code"}
        return dict(found["error"])

    @property
    def events(self) -> list[tuple[str, Any]]:
        """(name, data) of each event; data is "[DONE]" or JSON."""
        found = []
        for block in self.body.decode().split("\n\n"):
            if not block:
                continue
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
        return found


@dataclass
class Running:
    server: Server
    port: int
    name: str = "m"
    headers: dict[str, str] = field(default_factory=dict)

    async def send(self, data: bytes) -> Reply:
        """Sends bytes as they are; the reply up to the connection's end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return parsed(await reader.read())
        finally:
            await closed(writer)

    async def ask(
        self, path: str, body: Any = None, method: str | None = None, **headers: str
    ) -> Reply:
        return await self.send(self.request(path, body, method, **headers))

    def request(
        self, path: str, body: Any = None, method: str | None = None, **headers: str
    ) -> bytes:
        data = b"" if body is None else json.dumps(body).encode()
        given = {"host": "127.0.0.1", "connection": "close", **self.headers}
        if body is not None:
            given |= {"content-type": "application/json", "content-length": str(len(data))}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        verb = method or ("GET" if body is None else "POST")
        lines = [f"{verb} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in given.items()), "", ""]
        return "\r\n".join(lines).encode() + data

    async def chat(self, content: str = "hello", **fields: Any) -> Reply:
        headers = fields.pop("headers", {})
        return await self.ask("/v1/chat/completions", self.chat_body(content, **fields), **headers)

    def chat_body(self, content: str = "hello", **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": content}]
        return {"model": self.name, "messages": messages, "max_tokens": 8, **fields}

    async def complete(self, **fields: Any) -> Reply:
        body = {"model": self.name, "prompt": "hello", "max_tokens": 8, **fields}
        return await self.ask("/v1/completions", body)


def parsed(data: bytes) -> Reply:
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        rest = b"".join(chunks(rest))
    return Reply(int(first.split(" ")[1]), headers, rest)


def chunks(data: bytes) -> list[bytes]:
    found = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        found.append(data[:length])
        data = data[length + 2 :]
    return found


@asynccontextmanager
async def serving(
    artifact: Path, *, watch: WatchOptions | None = None, **settings: Any
) -> AsyncIterator[Running]:
    given = {"within_s": None, "options": SIZES, **settings}
    server = Server(
        ServeSettings(models=(("m", os.fspath(artifact)),), port=0, **given), watch=watch
    )
    listener = bind("127.0.0.1", 0)
    async with asyncio.timeout(PATIENCE_S):
        try:
            await server.open({"m": artifact})
            http = uvicorn_of(server, tls_of(server.settings))
            task = asyncio.create_task(http.serve([listener]))
            while not http.started:
                await asyncio.sleep(0.005)
            yield Running(server, listener.getsockname()[1])
            http.should_exit = True
            await task
        finally:
            await server.close()
            listener.close()


async def closed(writer: asyncio.StreamWriter) -> None:
    """Cuts a connection off."""
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


async def becomes(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def rests(running: Running) -> None:
    """Nothing is left of any request, soon."""
    server = running.server
    await becomes(lambda: not server.desk.entries and not server.answering)
    assert server.engine.in_flight == 0
    assert server.ledger.total().open == 0
    assert not any(server.desk.unsent.values())
    for places in (server.urgent, server.patient):
        assert (places.held, places.tokens) == (0, 0)
