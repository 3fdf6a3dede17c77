"""The engine process's entry point: `python -m subsecond.serve.engine_process FD`.

Owns: what belongs to being a process (signals, standard streams, the parent's death) and how a
model is loaded. Does not know: messages and steps (engine.process), HTTP.

It lives here because `engine` may not import `tasks`, which loads models, and because only the
server starts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec

from subsecond.config import ModelOptions
from subsecond.engine.engine import Engine
from subsecond.engine.messages import LoadOptions
from subsecond.engine.process import EngineProcess
from subsecond.tasks.load import load_engine

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the connection whose file descriptor is the one argument; the exit code."""
    fd = int((sys.argv[1:] if arguments is None else arguments)[0])
    logging.basicConfig(format="subsecond engine: %(levelname)s: %(message)s", stream=sys.stderr)
    sys.stdout = sys.stderr  # nobody reads this process's standard output
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal: the front decides
    die_with_parent()
    with socket.socket(fileno=fd) as connection:
        process = EngineProcess(connection, load, leave=os._exit)
        signal.signal(signal.SIGTERM, lambda *_: process.drain())
        return process.run()


def load(path: str, options: LoadOptions) -> tuple[Engine, str]:
    """An engine for `EngineProcess`. Raises what `LLM` raises."""
    given = msgspec.structs.asdict(options)
    steps_per_call = given.pop("steps_per_call")
    loaded = load_engine(ModelOptions(model=path, **given), False, steps_per_call=steps_per_call)
    if gc.get_freeze_count() == 0:
        # Modules and the first model stay: the collector needn't walk over them between steps.
        gc.freeze()
    return loaded.engine, loaded.executor


def die_with_parent() -> None:
    """Asks the kernel, where it can, to kill this process when the thread that started it ends.
    Elsewhere the end of the connection is the sign.
    """
    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    code = main()
    # Weights are mapped and nothing is to be saved: the model needn't be taken apart.
    sys.stderr.flush()
    os._exit(code)
