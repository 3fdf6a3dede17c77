"""An HTTP/1.1 client that costs as little as an event loop allows: one protocol object for each
connection, parsed by httptools (llhttp, in C).

Owns: addresses, connections and their reuse, and how a call ends. Does not know: schedules, what
answers say (load_answer does).

The generator runs on the machine that it measures, so what it costs is taken from the server:
benchmarks/README.md compares the ways to read 16 streams in Python. All connections share one
receive buffer, because asyncio's other way allocates 256 KiB for every piece that comes, which
costs more than all the rest. A call is sent once: a request is never repeated behind the back of
whoever counts. Idle connections are left before servers close
them (5 s is common), so that no request runs into a closing one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from subsecond.bench.load_answer import Body, EventStream, Failure, Raw, Refusal
from subsecond.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

IDLE_S = 2.0
MAX_HEADER_BYTES = 64 << 10
BUFFER_BYTES = 64 << 10
HTTP_OK = 200
EVENT_STREAM = "text/event-stream"

Expect = Literal["stream", "answer", "raw"]


def parser() -> ModuleType:
    """httptools. InputError where it isn't installed: only the load generator needs it."""
    try:
        import httptools
    except ImportError:
        raise InputError(
            "the load generator needs httptools; pip install 'subsecond[bench]'"
        ) from None
    return httptools


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server: where it is and what every request to it begins with.

    host: as the header has it. name: without the port. address: resolved once, so that no request
    waits for a name. base: the path up to /v1.
    """

    url: str
    host: str
    name: str
    address: str
    port: int
    tls: bool
    base: str
    key: str | None

    @staticmethod
    def of(url: str, key: str | None = None) -> Target:
        """From http://HOST[:PORT][/v1]. InputError for anything else, and for a name that can't be
        resolved.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise InputError(f"the URL {url!r:.200} is no address: {error}") from None
        host = parts.hostname or ""
        odd = parts.query or parts.fragment or "@" in parts.netloc
        plain = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme not in ("http", "https") or not host or odd or not plain:
            raise InputError(
                f"the URL {url!r:.200} must be http://HOST:PORT or https://HOST:PORT, without "
                "user, query and fragment"
            )
        if key is not None and not (key.isascii() and key.isprintable() and key):
            raise InputError("the API key must be printable ASCII, without spaces at its ends")
        base = parts.path.rstrip("/")
        return Target(
            url=url,
            host=parts.netloc,
            name=host,
            address=_resolved(host, port),
            port=port,
            tls=parts.scheme == "https",
            base=base if base.endswith("/v1") else base + "/v1",
            key=key,
        )

    def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The bytes of a request."""
        lines = [
            f"{method} {self.base}{path} HTTP/1.1",
            f"Host: {self.host}",
            "User-Agent: subsecond-bench",
            "Accept: text/event-stream, application/json",
        ]
        if self.key is not None:
            lines.append(f"Authorization: Bearer {self.key}")
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def _resolved(host: str, port: int) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"the host {host!r:.200} can't be resolved: {error}") from None
    return str(sorted(found, key=lambda entry: entry[0] != socket.AF_INET)[0][4][0])


class Call:
    """One request on its way: what has come of its answer so far.

    The absolute seconds are the client's clock. `body` is there as soon as the headers are.
    expect: what a status of 200 must come with; "raw" takes anything.
    """

    __slots__ = (
        "body", "complete", "expect", "failure", "first_byte_s", "framed", "future", "header_bytes",
        "headers", "keep", "received_s", "reused", "sent_s", "status",
    )  # fmt: skip

    def __init__(self, future: asyncio.Future[None], expect: Expect) -> None:
        self.future = future
        self.expect: Expect = expect
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.header_bytes = 0
        self.body: Body | None = None
        self.failure: Failure | None = None
        self.framed = False  # whether length or chunks tell the body's end
        self.complete = False
        self.keep = False  # whether the connection may take another call
        self.reused = False
        self.sent_s: float | None = None
        self.first_byte_s: float | None = None
        self.received_s = 0.0

    def header(self, name: str) -> str | None:
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1").strip()

    def fail(self, failure: Failure) -> None:
        """The first failure counts."""
        self.failure = self.failure or failure

    def start_body(self) -> None:
        """All headers are there."""
        kind = (self.header("content-type") or "").partition(";")[0].strip().lower()
        self.framed = (
            b"content-length" in self.headers
            or "chunked" in (self.header("transfer-encoding") or "").lower()
        )
        if self.status != HTTP_OK:
            self.body = Refusal()
        elif self.expect == "raw":
            self.body = Raw()
        elif (kind == EVENT_STREAM) == (self.expect == "stream"):
            self.body = EventStream() if self.expect == "stream" else Body()
        else:
            wanted = EVENT_STREAM if self.expect == "stream" else "JSON"
            self.fail(Failure("format", f"asked for {wanted}, got {kind or 'no content type'}"))

    def end_body(self) -> None:
        """The body's last byte is there."""
        self.complete = True
        try:
            if self.body is not None:
                self.body.end(self.received_s)
        except Failure as failure:
            self.fail(failure)

    def resolve(self) -> None:
        """Wakes who waits for the call, if anybody still does."""
        if self.future.done():
            return
        if self.failure is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(self.failure)


class _Connection(asyncio.BufferedProtocol):
    """One connection, at most one call at a time. httptools calls the on_... methods, through which
    no Failure may pass: it would be turned into an error of the parser's.
    """

    def __init__(self, client: Client) -> None:
        self.idle_since_s = 0.0
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._call: Call | None = None
        self._parser: Any = None

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, call: Call, data: bytes) -> None:
        if self._transport is None or not self.usable:
            raise Failure("closed", "closed before the request")
        self._call, self._parser = call, self._client.new_parser(self)
        self._transport.write(data)

    def drop(self) -> None:
        """Leaves the call, if there is one, and closes at once."""
        self._call = self._parser = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._client.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._client.buffer  # read to its end before the loop turns to another connection

    def buffer_updated(self, nbytes: int) -> None:
        call, data = self._call, self._client.buffer[:nbytes]
        if call is None:  # bytes that answer nothing
            self.drop()
            return
        call.received_s = self._client.clock()
        if call.first_byte_s is None:
            call.first_byte_s = call.received_s
        try:
            self._parser.feed_data(data)
        except self._client.parse_error as error:
            call.keep = False  # a complete answer with more behind it is still an answer
            if not call.complete:
                call.fail(Failure("http", f"{error}: {bytes(data[:80])!r}"))
        if call.complete or call.failure is not None:
            self._call = self._parser = None
            if call.keep and call.failure is None and self.usable:
                self._client.give(self)
            else:
                self.drop()
            call.resolve()

    def connection_lost(self, error: Exception | None) -> None:
        call, self._call, self._parser, self._transport = self._call, None, None, None
        self._client.remove(self)
        if call is None:
            return
        call.received_s = self._client.clock()
        if call.body is not None and not call.framed and error is None:
            call.end_body()  # a body without a length ends with its connection
        else:
            when = "in the answer" if call.status else "before the answer"
            call.fail(Failure("closed", f"closed {when}{f': {error}' if error else ''}"))
        call.resolve()

    def on_message_begin(self) -> None:
        if self._call is not None and self._call.complete:
            self._call.keep = False  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        call = self._call
        if call is None or call.complete:
            return
        call.header_bytes += len(name) + len(value)
        if call.header_bytes > MAX_HEADER_BYTES:
            call.fail(Failure("http", f"more than {MAX_HEADER_BYTES:,} bytes of headers"))
        else:
            call.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        call = self._call
        if call is None or call.complete:
            return
        call.status = self._parser.get_status_code()
        if call.status >= HTTP_OK:
            call.start_body()

    def on_body(self, data: bytes) -> None:
        call = self._call
        if call is None or call.body is None or call.complete or call.failure is not None:
            return
        try:
            call.body.feed(data, call.received_s)
        except Failure as failure:
            call.fail(failure)

    def on_message_complete(self) -> None:
        call = self._call
        if call is None or call.complete:
            return
        if call.status < HTTP_OK:  # 100 Continue and its like come before the answer
            call.status = 0
            call.headers.clear()
            return
        call.keep = self._parser.should_keep_alive()
        call.end_body()


class Client:
    """Calls to one target, as many at a time as there are. Use inside a running event loop;
    `close` at the end.

    clock: absolute seconds. opened, reused: connections so far, and calls on one that had been used
    before.
    """

    def __init__(self, target: Target, clock: Callable[[], float] = time.monotonic) -> None:
        httptools = parser()
        self.clock = clock
        self.opened = 0
        self.reused = 0
        self.new_parser: Callable[[object], Any] = httptools.HttpResponseParser
        # an upgrade (101) is no subclass of the others
        self.parse_error = (httptools.HttpParserError, httptools.HttpParserUpgrade)
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.target = target
        self._tls = ssl.create_default_context() if target.tls else None
        self._all: set[_Connection] = set()
        self._idle: deque[_Connection] = deque()

    async def run(self, call: Call, make: Callable[[float], bytes]) -> None:
        """Sends what `make` returns for the moment of sending, and waits for the answer's end.

        Raises Failure. If it is cancelled, the connection is closed.
        """
        connection = self._taken()
        if connection is None:
            connection = await self._open()
        else:
            call.reused = True
            self.reused += 1
        call.sent_s = self.clock()
        try:
            connection.send(call, make(call.sent_s))
            await call.future
        except asyncio.CancelledError:
            connection.drop()
            raise

    async def close(self) -> None:
        """Closes every connection."""
        for connection in list(self._all):
            connection.drop()
        while self._all:
            await asyncio.sleep(0)

    def add(self, connection: _Connection) -> None:
        self._all.add(connection)

    def remove(self, connection: _Connection) -> None:
        self._all.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)

    def give(self, connection: _Connection) -> None:
        """A connection whose call has ended."""
        connection.idle_since_s = self.clock()
        self._idle.append(connection)
        while self._is_old(self._idle[0]):
            self._idle.popleft().drop()

    def _taken(self) -> _Connection | None:
        """The connection that was used last; the others grow old and are left."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and not self._is_old(connection):
                return connection
            connection.drop()
        return None

    def _is_old(self, connection: _Connection) -> bool:
        return self.clock() - connection.idle_since_s > IDLE_S

    async def _open(self) -> _Connection:
        target = self.target
        self.opened += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self),
                target.address,
                target.port,
                ssl=self._tls,
                server_hostname=target.name if target.tls else None,
            )
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise Failure("connect", reason) from None
        return connection
