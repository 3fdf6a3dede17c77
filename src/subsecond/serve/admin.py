"""The routes of an administrator: which models there are, loading and unloading them.

Owns: which artifacts may be loaded, and what is told of it. Does not know: how a model is loaded.

Only what is stored on this machine already can be loaded, by a name that a listing shows: a request
names no path, and makes this server fetch and convert nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subsecond.formats import artifact, kept
from subsecond.formats.locate import DEFAULT_WEIGHTS
from subsecond.serve.errors import BadRequest, Forbidden, Unavailable
from subsecond.serve.exchange import Exchange
from subsecond.serve.loading import ServedModel
from subsecond.serve.routes import Done
from subsecond.serve.schema import admin, shared, wire
from subsecond.serve.server import ANYONE, Server
from subsecond.serve.settings import NAME_PATTERN

DEFAULT_MS = 60_000.0


async def models(server: Server, exchange: Exchange) -> Done:
    """GET /models"""
    _require_key(exchange)
    stored = await server.aside(lambda: sorted(_stored(server)))
    states = [_state(own) for own in server.models.values()]
    states += [
        admin.ModelState(name=name, state="loading" if state == "loading" else "unloading")
        for name, state in server.loader.states.items()
    ]
    await exchange.answer(wire.encode(admin.ModelStates(data=states, stored=stored)))
    return Done("ok")


async def load(server: Server, exchange: Exchange) -> Done:
    """POST /models/load: answers when the model does."""
    _require_key(exchange)
    request = admin.read_load(await exchange.body(), exchange.limits.body)
    if server.draining:
        raise Unavailable("the server is stopping; ask another one, or later", 5.0, "draining")
    path = (await server.aside(lambda: _stored(server))).get(request.model)
    if path is None:
        raise BadRequest(
            "model is no artifact that is stored here; GET /models lists those that are", "model"
        )
    name = request.name or request.model
    if not NAME_PATTERN.fullmatch(name):
        raise BadRequest("this model can't be served under its own name; give a name", "name")
    served = await server.loader.load(name, path, _deadline_s(exchange, request.deadline_ms))
    await exchange.answer(wire.encode(_state(served)))
    return Done("loaded", name)


async def unload(server: Server, exchange: Exchange) -> Done:
    """POST /models/unload: answers when the model is gone."""
    _require_key(exchange)
    request = admin.read_unload(await exchange.body(), exchange.limits.body)
    await server.loader.unload(request.model, _deadline_s(exchange, request.deadline_ms))
    await exchange.answer(wire.encode(admin.Unloaded(name=request.model)))
    return Done("unloaded", request.model)


def _require_key(exchange: Exchange) -> None:
    if exchange.key is None or exchange.key is ANYONE:
        raise Forbidden(
            "models are loaded and unloaded with an admin key; make one with 'subsecond keys "
            "create NAME --right admin', and start the server with --keys"
        )


def _deadline_s(exchange: Exchange, deadline_ms: float | None) -> float:
    header = exchange.header(b"x-deadline-ms")
    if header is not None:
        header_ms = shared.header_deadline_ms(header.decode("latin-1"))
        deadline_ms = header_ms if deadline_ms is None else min(deadline_ms, header_ms)
    return exchange.start_s + (DEFAULT_MS if deadline_ms is None else deadline_ms) / 1e3


def _stored(server: Server) -> dict[str, Path]:
    """The artifacts that may be loaded, by name: those of the operator's folder, and those of the
    cache under their own names; under its model's name, the one of the default weights.
    """
    found: dict[str, Path] = {}
    for own in kept.kept():
        if not own.source:  # of another version: its manifest can't be read
            continue
        found[own.name] = own.path
        if own.weights == DEFAULT_WEIGHTS and not Path(own.model).is_absolute():
            found.setdefault(own.model, own.path)
    folder = server.settings.artifacts
    if folder is not None:
        try:
            entries = list(folder.iterdir())
        except OSError:
            entries = []
        found |= {path.name: path for path in entries if artifact.is_artifact(path)}
    return found


def _state(own: ServedModel) -> admin.ModelState:
    details: dict[str, Any] = {
        "certificate": own.text.certificate.kind,
        "weights": own.text.weights,
        "context": own.info.context,
    }
    return admin.ModelState(name=own.name, state="ready", **details)
