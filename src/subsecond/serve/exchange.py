"""One request and its answer over HTTP, as the routes see them.

Owns: the headers and the body within their bounds, the answer's beginning and its one end, and the
knowledge that the client has left. Does not know: routes, models, what the bytes mean.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from subsecond.serve import keys
from subsecond.serve.audit import Texts
from subsecond.serve.errors import (
    BadRequest,
    HeadersTooLarge,
    ServeError,
    SlowRequest,
    TooLarge,
    WrongType,
)
from subsecond.serve.keys import Key
from subsecond.serve.limits import RequestLimits
from subsecond.serve.protocol import START
from subsecond.serve.schema import wire
from subsecond.serve.schema.shared import Promise

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

STALLED_S = 30.0
"""A client that takes nothing of its answer for so long has left."""

_JSON = re.compile(rb"application/(?:[a-z0-9.+-]*\+)?json(?:\s*;.*)?", re.IGNORECASE)
_STREAM_HEADERS = {"cache-control": "no-store"}
_DIGITS = re.compile(rb"[0-9]{1,15}")


class ClientGone(Exception):  # noqa: N818 (nothing went wrong here)
    """The client has left: nobody reads the answer."""


class Exchange:
    """One request. start_s: `time.monotonic()` of its first byte. key: who sends it, once known.

    An answer is sent whole (`answer`, `refuse`) or in pieces (`write`, then `end`); what comes
    after its end is passed over.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: RequestLimits) -> None:
        self.scope = scope
        self.limits = limits
        self.id = secrets.token_hex(12)
        self.start_s: float = scope.get(START) or time.monotonic()
        self.key: Key | None = None
        self.begun = False
        self.ended = False
        self.status = 0
        self.stages: Promise | None = None  # of an answer that came to its end
        self.texts: Texts | None = None  # where the audit log is to have them
        self.waited_s = 0.0  # for the client to take what it was sent
        self._receive = receive
        self._send = send
        self._body_read = False

    @property
    def method(self) -> str:
        """Of HTTP."""
        return str(self.scope["method"])

    @property
    def path(self) -> str:
        """As the client wrote it, percent signs included."""
        raw = self.scope.get("raw_path") or self.scope["path"].encode("utf-8", "replace")
        return bytes(raw).decode("ascii", "replace")

    @property
    def client(self) -> str | None:
        """The client's address."""
        client = self.scope.get("client")
        return None if client is None else str(client[0])

    def header(self, name: bytes) -> bytes | None:
        """A header's value; None if it isn't there. BadRequest if it is there twice."""
        found = [value for key, value in self.scope["headers"] if key == name]
        if len(found) > 1:
            shown = name.decode("ascii")
            raise BadRequest(f"the header {shown} is there {len(found)} times; send it once", shown)
        return bytes(found[0]) if found else None

    def authorize(self, ring: keys.KeyRing) -> Key:
        """The key of the request. Unauthorized, or Unavailable, if there is none to be found."""
        self.key = ring.find(keys.bearer(self.header(b"authorization")))
        return self.key

    async def body(self) -> bytes:
        """The JSON body's bytes. TooLarge, WrongType, SlowRequest, or ClientGone."""
        kind = self.header(b"content-type")
        if kind is None or not _JSON.fullmatch(kind.strip()):
            raise WrongType("send the body as JSON, with 'Content-Type: application/json'")
        coding = self.header(b"content-encoding")
        if coding is not None and coding.strip().lower() != b"identity":
            raise WrongType("compressed bodies are not accepted; send it without Content-Encoding")
        most = self.limits.body.body_bytes
        length = self.header(b"content-length")
        if length is not None and _DIGITS.fullmatch(length) and int(length) > most:
            raise TooLarge(f"the body has {int(length):,} bytes; at most {most:,} are accepted")
        parts = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_s):
                while not self._body_read:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts += message.get("body", b"")
                    if len(parts) > most:
                        raise TooLarge(
                            f"the body has more than the {most:,} bytes that it may have"
                        )
                    self._body_read = not message.get("more_body", False)
        except TimeoutError:
            raise SlowRequest(
                f"the body took longer than {self.limits.body_s:g} s to arrive"
            ) from None
        return bytes(parts)

    async def left(self) -> None:
        """Returns when the client has left. After the body only."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self,
        body: bytes,
        status: int = 200,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Sends a whole answer."""
        if self.begun:
            return
        length = {"content-length": str(len(body)), **(headers or {})}
        await self._start(status, kind, length)
        self.ended = True
        await self._emit({"type": "http.response.body", "body": body, "more_body": False})

    async def refuse(self, error: ServeError) -> None:
        """Sends an error: as the answer, or as the event that ends a stream."""
        if self.ended:
            return
        if self.begun:
            await self.write(wire.error_event(error))
            await self.end()
            return
        headers = dict(error.headers)
        if not self._body_read and self.method not in ("GET", "HEAD"):
            headers["connection"] = "close"  # the rest of the body is not waited for
        await self.answer(error.to_bytes(), error.status, headers=headers)

    async def write(self, events: bytes) -> None:
        """Sends events of a stream, and begins it with the first. Waits while the client takes
        nothing; ClientGone if that goes on for too long.
        """
        if self.ended:
            return
        if not self.begun:
            await self._start(200, "text/event-stream", _STREAM_HEADERS)
        await self._emit({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes = b"") -> None:
        """Ends a stream, with its last events; they may be its only ones."""
        if self.ended:
            return
        if not self.begun:
            await self._start(200, "text/event-stream", _STREAM_HEADERS)
        self.ended = True
        await self._emit({"type": "http.response.body", "body": events, "more_body": False})

    async def _start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.begun, self.status = True, status
        fields = {"content-type": kind, "x-request-id": self.id, **headers}
        await self._emit(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(k.encode("ascii"), v.encode("latin-1")) for k, v in fields.items()],
            }
        )

    async def _emit(self, message: MutableMapping[str, Any]) -> None:
        before_s = time.monotonic()
        try:
            async with asyncio.timeout(STALLED_S):
                await self._send(message)
        except (TimeoutError, OSError):
            self.ended = True
            raise ClientGone from None
        self.waited_s += time.monotonic() - before_s

    def check_headers(self) -> None:
        """HeadersTooLarge for more headers, or longer ones, than there may be. h11 bounds only what
        arrives in several pieces.
        """
        headers, limits = self.scope["headers"], self.limits
        if len(headers) > limits.headers:
            raise HeadersTooLarge(
                f"the request has {len(headers)} headers; at most {limits.headers} are accepted"
            )
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        target = len(self.scope.get("raw_path") or b"") + len(self.scope["query_string"])
        if size + target > limits.header_bytes:
            raise HeadersTooLarge(
                f"the headers are longer than {limits.header_bytes:,} bytes; send less"
            )
