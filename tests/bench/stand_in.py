"""A scripted server on 127.0.0.1 in a thread of its own: it answers bytes that a test wrote.

A script is an async function (request, writer) -> None; the connection stays open afterwards,
unless the script closes it. `answer` is the ordinary one.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

Script = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    number: int  # of all requests but those for the list of models
    connection: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def response(
    body: bytes, status: str = "200 OK", kind: str = "application/json", **headers: str
) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*parts: bytes, kind: str = "text/event-stream", last: bool = True) -> list[bytes]:
    """The pieces of a chunked response: its head, and one chunk a part."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts]
    return [head.encode(), *chunks, *([b"0\r\n\r\n"] if last else [])]


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(text: str | None, finish: str | None = None, chat: bool = True) -> bytes:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice |= {"delta": {"content": text}} if chat else {"text": text or ""}
    return event({"object": "chunk", "choices": [choice]})


def usage(prompt: int, completion: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return event({"choices": [], "usage": counts})


DONE = b"data: [DONE]\n\n"


def stream(words: Sequence[str], finish: str = "length", chat: bool = True) -> list[bytes]:
    pieces = [piece(word, chat=chat) for word in words]
    return chunked(*pieces, piece(None, finish, chat), usage(7, len(words)), DONE)


def whole(text: str = "a b", tokens: int = 2, finish: str = "length") -> bytes:
    return response(
        json.dumps(
            {
                "choices": [{"message": {"content": text}, "finish_reason": finish}],
                "usage": {"prompt_tokens": 7, "completion_tokens": tokens},
            }
        ).encode()
    )


async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
    """What was asked for, as many words as max_tokens."""
    body = request.json
    words = ["w "] * body["max_tokens"]
    if body["stream"]:
        chat = request.path.endswith("/chat/completions")
        writer.writelines(stream(words, chat=chat))
    else:
        writer.write(whole("".join(words), len(words)))


def saying(*parts: bytes, close: bool = False) -> Script:
    """Sends these bytes, each part by itself."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return script


class StandIn:
    """Use as a context manager; inside, `url` and all requests in the order of arrival."""

    def __init__(self, script: Script = answer, models: bytes | None = None, port: int = 0) -> None:
        self.script = script
        self._port = port
        self.requests: list[Request] = []
        self.connections = 0
        self._models = models or response(b'{"object": "list", "data": [{"id": "stand-in"}]}')
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="stand-in", daemon=True)
        self._ready = threading.Event()
        self._end = asyncio.Event()
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", self._port, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._end.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        try:
            while request := await self._read(reader, connection):
                if request.path.endswith("/models"):
                    writer.write(self._models)
                else:
                    self.requests.append(request)
                    await self.script(request, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, connection: int) -> Request | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Request(len(self.requests), connection, method, path, headers, body)


if __name__ == "__main__":  # in a process of its own, until it is ended
    import sys

    with StandIn(port=int(sys.argv[1])):
        threading.Event().wait()
