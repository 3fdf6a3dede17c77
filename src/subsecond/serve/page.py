"""The page at `/`: its files, and the figures of its dashboard.

Owns: the files and the headers that they are sent with, and what the dashboard is told. Does not
know: where figures come from.

The page uses the same routes as everybody else, with the key that the browser asks for (HTTP's
Basic scheme, the key as the password; any name). Nothing of it comes from another place, and its
policy forbids a browser to run or load anything else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

import msgspec

from subsecond.serve.errors import NotFound
from subsecond.serve.exchange import Exchange
from subsecond.serve.ledger import Row
from subsecond.serve.metrics import MAX_ROWS
from subsecond.serve.recent import Latencies, latencies_of
from subsecond.serve.routes import Done
from subsecond.serve.schema import wire
from subsecond.serve.server import Server
from subsecond.serve.snapshot import Snapshot

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    data: bytes
    kind: str
    etag: str


def _load() -> dict[str, _File]:
    found = {}
    for entry in files("subsecond.serve").joinpath("web").iterdir():
        kind = _KINDS.get("." + entry.name.rpartition(".")[2])
        if kind is not None:
            data = entry.read_bytes()
            found[entry.name] = _File(data, kind, f'"{hashlib.sha256(data).hexdigest()[:16]}"')
    return found


_FILES = _load()


class Dashboard(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows once a second. ledger: its first rows; total: of all of them.
    tokens_per_s: of the last 59 seconds, the oldest first.
    """

    now: Snapshot
    latencies: Latencies
    tokens_per_s: list[int]
    ledger: list[Row]
    total: Row


async def index(server: Server, exchange: Exchange) -> Done:
    """/"""
    del server
    return await _send(exchange, "index.html")


async def file(server: Server, exchange: Exchange) -> Done:
    """/ui/NAME"""
    del server
    return await _send(exchange, exchange.scope["path_params"]["name"])


async def dashboard(server: Server, exchange: Exchange) -> Done:
    """/dashboard"""
    now, recent = server.snapshot(), server.metrics.recent
    answers, speeds = recent.answers(), recent.tokens_per_s()

    def work() -> bytes:
        return wire.encode(
            Dashboard(
                now=now,
                latencies=latencies_of(answers),
                tokens_per_s=speeds,
                ledger=server.ledger.rows()[:MAX_ROWS],
                total=server.ledger.total(),
            )
        )

    body = await server.aside(work)
    await exchange.answer(body, headers={"cache-control": "no-store"})
    return Done("ok")


async def description(server: Server, exchange: Exchange) -> Done:
    """/openapi.json"""
    await exchange.answer(await server.aside(server.described))
    return Done("ok")


async def _send(exchange: Exchange, name: str) -> Done:
    own = _FILES.get(name)
    if own is None:
        raise NotFound("the page has no such file")
    headers = {**_HEADERS, "etag": own.etag}
    if exchange.header(b"if-none-match") == own.etag.encode():
        await exchange.answer(b"", 304, own.kind, headers)
    else:
        await exchange.answer(own.data, kind=own.kind, headers=headers)
    return Done("ok")
