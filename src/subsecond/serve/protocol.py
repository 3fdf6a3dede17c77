"""One HTTP connection: uvicorn's on h11, with the times, bounds and errors of this server.

Owns: the moment of a request's first byte, how long its headers may take, how many connections are
open, and what is said where there is no request to answer. Does not know: routes, keys.
"""

from __future__ import annotations

import asyncio
import http
import sys
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from subsecond.serve.errors import (
    BadRequest,
    HeadersTooLarge,
    ServeError,
    SlowRequest,
    Unavailable,
)
from subsecond.serve.limits import RequestLimits
from subsecond.serve.loop_clock import readable_since_s

START = "subsecond.start_s"
"""Key of an ASGI scope: `time.monotonic()` of the request's first byte."""


def protocol_of(limits: RequestLimits) -> type[asyncio.Protocol]:
    """The protocol class that uvicorn makes connections of, with these bounds."""

    class BoundedProtocol(Connection):
        bounds = limits

    return BoundedProtocol


class Connection(H11Protocol):
    """One connection. Its requests come one after the other."""

    bounds = RequestLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        inner = self.app
        self._start_s: float | None = None
        self._headers_timer: asyncio.TimerHandle | None = None

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope[START] = self._begin()
            await inner(scope, receive, send)

        self.app = app

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Of asyncio.Protocol."""
        super().connection_made(transport)
        if len(self.connections) > self.bounds.connections:
            self._answer(Unavailable("the server has too many connections", 1.0, "full"))
            return
        self.timeout_keep_alive_task = self.loop.call_later(
            self.bounds.idle_s, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio.Protocol."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol."""
        if self.conn.their_state is h11.IDLE and self._start_s is None:
            self._start_s = readable_since_s(self.loop)
            self._headers_timer = self.loop.call_later(self.bounds.headers_s, self._too_slow)
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()

    def send_400_response(self, msg: str) -> None:
        """Called by `handle_events` while it handles h11's error."""
        error = sys.exc_info()[1]
        if getattr(error, "error_status_hint", 400) == 431:
            self._answer(
                HeadersTooLarge(
                    f"the headers are longer than {self.bounds.header_bytes:,} bytes; send less"
                )
            )
        else:
            self._answer(BadRequest("this is not a valid HTTP request", None, "invalid_http"))

    def _begin(self) -> float:
        """The first byte's moment of the request that begins now."""
        start_s, self._start_s = self._start_s, None
        return time.monotonic() if start_s is None else start_s

    def _too_slow(self) -> None:
        self._answer(
            SlowRequest(f"the headers took longer than {self.bounds.headers_s:g} s to arrive")
        )

    def _answer(self, error: ServeError) -> None:
        """Says why, where no request can be answered, and closes."""
        self._stop_timer()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            # Its body is broken: whoever answers it is told that nobody reads the answer.
            cycle.disconnected = True
            cycle.message_event.set()
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = error.to_bytes()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                **error.headers,
                "connection": "close",
            }
            phrase = http.HTTPStatus(error.status).phrase
            lines = [
                f"HTTP/1.1 {error.status} {phrase}",
                *(f"{k}: {v}" for k, v in headers.items()),
            ]
            self.transport.write("\r\n".join([*lines, "", ""]).encode("ascii") + body)
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None
