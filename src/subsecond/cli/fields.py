"""How a command's options are written down: a dataclass whose fields are flags.

Owns: the markers. Does not know: commands, parsers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

MODEL = (
    "alias, Hugging Face id, folder, GGUF file or artifact; an alias comes before a folder of the "
    "same name, which is written ./NAME"
)

_Kind = TypeVar("_Kind")


def option(default: Any, help: str, *, type: Any = str, **details: Any) -> Any:
    """A flag; a boolean default makes a switch. details: argparse's choices, metavar, action, and
    short (a letter).
    """
    metadata = {"help": help, "type": type, **details}
    return dataclasses.field(default=default, metadata=metadata)


def positional(help: str, default: Any = dataclasses.MISSING, **details: Any) -> Any:
    """An argument without a flag; optional if it has a default."""
    metadata = {"help": help, "type": str, "positional": True, **details}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, field_specifiers=(option, positional))
def command(kind: type[_Kind]) -> type[_Kind]:
    """Marks a class that `chosen` makes a dataclass; making all of them costs 10 ms."""
    return kind
