"""/v1/models: what is served. Owns the shape of the answers only."""

from __future__ import annotations

from typing import Literal

import msgspec


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model. created: Unix seconds of its artifact. certificate: its kind ("converted",
    "certified"). context: most tokens of prompt and answer.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "subsecond"
    certificate: str
    context: int
    weights: str


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]
