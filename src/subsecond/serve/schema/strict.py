"""The base of everything that a client sends. Owns strictness, and the texts that have a form."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Identity = Annotated[str, Meta(max_length=512)]
ToolName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]


class Strict(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that a client sends: an unknown field is an error."""
