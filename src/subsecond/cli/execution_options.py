"""The options of every command that runs models: how they are stored and computed.

Owns: these fields. Does not know: the commands.
"""

from __future__ import annotations

from subsecond.cli.fields import command, option
from subsecond.cli.parser import integer
from subsecond.config import ISAS, KV_FORMATS, WEIGHTS

NO_SPECULATION = (
    "check one token a step even where a text repeats itself or its prompt (answers are the same)"
)


@command
class Execution:
    """How models run."""

    weights: str | None = option(None, "format of the matrices (default: int4)", choices=WEIGHTS)
    kv: str | None = option(
        None, "format of the KV cache (default: the one that conversion chose)", choices=KV_FORMATS
    )
    threads: int | None = option(
        None, "threads (default: as many as the process has processors)", type=integer
    )
    isa: str | None = option(
        None, "instruction set (default: the best of this processor)", choices=ISAS
    )
    context: int | None = option(
        None, "most tokens of prompt and answer (default: the model's own)", type=integer
    )
