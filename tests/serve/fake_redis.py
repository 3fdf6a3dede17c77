"""A Redis that misbehaves on purpose: enough of its protocol for kept answers, and faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class FakeRedis:
    """fault: what becomes of GETRANGE: "", "hang", "garbage", "cut" (off in the middle of a value),
    "other" (the value of another key), "huge" (a length that no value has), "error".
    """

    port: int = 0
    fault: str = ""
    values: dict[bytes, bytes] = field(default_factory=dict)
    seen: list[bytes] = field(default_factory=list)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                self.seen.append(words[0].upper())
                await self._answer(words, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, words: list[bytes], writer: asyncio.StreamWriter) -> None:
        name = words[0].upper()
        reply = b"+OK\r\n"
        if self.fault == "hang" and name != b"CLIENT":
            return
        if name == b"PING":
            reply = b"+PONG\r\n"
        elif name == b"SET":
            self.values[words[1]] = words[2]
        elif name == b"GETRANGE":
            value = self.values.get(words[1], b"")
            if self.fault == "other":
                value = next(own for key, own in self.values.items() if key != words[1])
            reply = b"$%d\r\n%s\r\n" % (len(value), value)
            if self.fault == "garbage":
                reply = b"\x00\xffHTTP/1.1 400 Bad Request\r\n\r\n" * 3
            elif self.fault == "huge":
                reply = b"$99999999999\r\n" + value
            elif self.fault == "error":
                reply = b"-ERR it is broken: secret-of-the-url\r\n"
            elif self.fault == "cut":
                writer.write(reply[: len(reply) // 2])
                await writer.drain()
                writer.transport.abort()
                return
        writer.write(reply)
        await writer.drain()

    def cut_off(self) -> None:
        """Ends all connections."""
        for writer in list(self._writers):
            writer.transport.abort()


@asynccontextmanager
async def fake_redis() -> AsyncIterator[FakeRedis]:
    own = FakeRedis()
    server = await asyncio.start_server(own.serve, "127.0.0.1", 0)
    own.port = server.sockets[0].getsockname()[1]
    try:
        yield own
    finally:
        server.close()
        own.cut_off()
        await server.wait_closed()
