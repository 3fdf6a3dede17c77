"""How the engine process is started: its command, and its first start ahead of all else.

Owns: what that process is told by its arguments. Does not know: what it does with them, and nothing
that takes long to import: the process is to be started before that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from subsecond.engine.child import Launched, launch, module_command
from subsecond.engine.messages import LoadOptions


class Begin(msgspec.Struct, frozen=True, omit_defaults=True):
    """log: how it logs. path, options: of the model that it will be asked to load first; "": nobody
    knows.
    """

    log: Literal["text", "json"] = "text"
    path: str = ""
    options: LoadOptions = LoadOptions()


def command_of(begin: Begin) -> list[str]:
    """The process's command, but for its file descriptor, which comes last."""
    return [*module_command("subsecond.serve.engine_process"), msgspec.json.encode(begin).decode()]


def launch_for(path: Path, options: LoadOptions, log: Literal["text", "json"]) -> Launched:
    """The process, which loads the model at `path` while this one imports what it needs itself.
    OSError if it can't be started.
    """
    text = os.fspath(path)
    if any("\ud800" <= character <= "\udfff" for character in text):  # JSON can't say it
        text = ""
    return launch(command_of(Begin(log, text, options)))
