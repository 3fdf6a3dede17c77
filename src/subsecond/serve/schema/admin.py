"""Loading and unloading models: requests and answers. Owns their shape only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from subsecond.serve.limits import BodyLimits
from subsecond.serve.schema import shared, wire
from subsecond.serve.schema.shared import documented
from subsecond.serve.schema.strict import ModelName, Strict
from subsecond.serve.settings import NAME_PATTERN

PlainName = Annotated[str, Meta(pattern=rf"\A{NAME_PATTERN.pattern}\Z")]
Deadline = Annotated[float | None, documented(1, shared.MAX_DEADLINE_MS)]


class LoadRequest(Strict):
    """model: an artifact that is stored, by its name in `stored`. name: to serve it under; by
    default the same. deadline_ms: when it must be ready; by default in a minute.
    """

    model: ModelName
    name: PlainName | None = None
    deadline_ms: Deadline = None


class UnloadRequest(Strict):
    """model: as it is served. deadline_ms: how long answers that were not promised may go on; by
    default a minute.
    """

    model: ModelName
    deadline_ms: Deadline = None


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """A model of this server. certificate: the kind of its certificate."""

    name: str
    state: Literal["ready", "loading", "unloading"]
    certificate: str | None = None
    weights: str | None = None
    context: int | None = None


class ModelStates(msgspec.Struct, frozen=True, kw_only=True):
    """The models that are served, and the names of those that could be loaded."""

    object: Literal["list"] = "list"
    data: list[ModelState]
    stored: list[str]


class Unloaded(msgspec.Struct, frozen=True, kw_only=True):
    """The model that is gone."""

    name: str
    state: Literal["unloaded"] = "unloaded"


def read_load(body: bytes, limits: BodyLimits) -> LoadRequest:
    """The request of a body; the errors are those of `wire.decode`."""
    request = wire.decode(LoadRequest, body, limits)
    _check(request.deadline_ms)
    return request


def read_unload(body: bytes, limits: BodyLimits) -> UnloadRequest:
    """The request of a body; the errors are those of `wire.decode`."""
    request = wire.decode(UnloadRequest, body, limits)
    _check(request.deadline_ms)
    return request


def _check(deadline_ms: float | None) -> None:
    if deadline_ms is not None:
        shared.check_deadline_ms(deadline_ms, "deadline_ms")
