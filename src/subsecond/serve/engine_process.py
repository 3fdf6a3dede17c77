"""The engine process's entry point: `python -m subsecond.serve.engine_process [BEGIN] FD`.

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
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec

from subsecond.config import ModelOptions
from subsecond.engine.constraint_state import Grammars
from subsecond.engine.engine import Engine
from subsecond.engine.messages import LoadOptions
from subsecond.engine.process import EngineProcess
from subsecond.formats import artifact, text_settings
from subsecond.serve import logs
from subsecond.serve.engine_command import Begin
from subsecond.tasks.load import LoadedEngine, load_engine
from subsecond.tasks.vocabulary import vocabulary_of
from subsecond.text.tokenizer import Tokenizer

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the connection whose file descriptor is the last argument; the exit code. The argument
    before is a `Begin` in JSON.
    """
    *said, fd_text = sys.argv[1:] if arguments is None else arguments
    fd = int(fd_text)
    begin = msgspec.json.decode(said[0], type=Begin) if said else Begin()
    logs.configure(begin.log, "engine")
    sys.stdout = sys.stderr  # nobody reads this process's standard output
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal: the front decides
    die_with_parent()
    with socket.socket(fileno=fd) as connection:
        ahead = Ahead(begin.path, begin.options) if begin.path else None
        process = EngineProcess(connection, load if ahead is None else ahead.load, leave=os._exit)
        signal.signal(signal.SIGTERM, lambda *_: process.drain())
        return process.run()


def load(path: str, options: LoadOptions) -> tuple[Engine, str]:
    """An engine for `EngineProcess`. Raises what `LLM` raises."""
    given = msgspec.structs.asdict(options)
    steps_per_call = given.pop("steps_per_call")
    loaded = load_engine(ModelOptions(model=path, **given), False, steps_per_call=steps_per_call)
    loaded.engine.grammars = _grammars(loaded)
    if gc.get_freeze_count() == 0:
        # Modules and the first model stay: the collector needn't walk over them between steps.
        gc.freeze()
    return loaded.engine, loaded.executor


class Ahead:
    """A load that is begun before anybody asks for it, while the front still imports what it needs.
    It is given to the first who asks for the same; there is one at the start of a server.
    """

    def __init__(self, path: str, options: LoadOptions) -> None:
        self._asked = (path, options)
        self._taking = threading.Lock()  # models are loaded in threads
        self._made: Future[tuple[Engine, str]] | None = Future()
        thread = threading.Thread(
            target=self._make, args=(self._made,), name="subsecond-load-ahead", daemon=True
        )
        thread.start()

    def load(self, path: str, options: LoadOptions) -> tuple[Engine, str]:
        """Of `load`."""
        made = None
        if (path, options) == self._asked:
            with self._taking:
                made, self._made = self._made, None
        return load(path, options) if made is None else made.result()

    def _make(self, made: Future[tuple[Engine, str]]) -> None:
        try:
            made.set_result(load(*self._asked))
        except BaseException as error:  # whoever asks is told
            made.set_exception(error)


def _grammars(loaded: LoadedEngine) -> Grammars:
    """Made before the model serves: later it would hold steps up. The tokenizer isn't kept."""
    opened = loaded.artifact
    settings = text_settings.decode(opened.read(artifact.TEXT))
    tokenizer = Tokenizer(opened.read(artifact.TOKENIZER))
    return Grammars(vocabulary_of(tokenizer, settings, loaded.engine.runner.vocab_size))


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
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)
