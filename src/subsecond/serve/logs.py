"""What a server says of itself on standard error: lines of text, or of JSON.

Owns: the two forms, and a thread that writes, so that a terminal or a pipe that takes nothing
delays no answer. Does not know: what is worth saying.

Of an exception that was not raised on purpose, its kind and where it arose are told, never its
message or the source: either may hold what a client sent.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Literal, TextIO

import msgspec

from subsecond.errors import SubsecondError

PENDING_LINES = 10_000
CLOSING_S = 2.0  # for a stream that takes nothing at the end
FRAMES = 12

access = logging.getLogger("subsecond.access")
"""A record a request, with its fields in `fields`."""
operation = logging.getLogger("subsecond.operation")
"""What the server does: that it serves, what it can promise, models that come and go."""


def configure(form: Literal["text", "json"], process: str = "") -> None:
    """Sends all logging to standard error from a thread of its own. "text" has warnings and errors,
    "json" a line a request too. process: who speaks, where it isn't the front.
    """
    root = logging.getLogger()
    for own in list(root.handlers):
        root.removeHandler(own)
        own.close()
    handler = Writer(sys.stderr)
    handler.setFormatter(Json(process) if form == "json" else Text(process))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    # It warns of every request that is no HTTP: whoever sends them would fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for own_logger in (access, operation):
        own_logger.setLevel(logging.INFO if form == "json" else logging.WARNING)


class Text(logging.Formatter):
    """subsecond: WARNING: the message"""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._who = f"subsecond {process}" if process else "subsecond"

    def format(self, record: logging.LogRecord) -> str:
        """Of logging.Formatter."""
        line = f"{self._who}: {record.levelname}: {_one_line(record.getMessage())}"
        error = _error(record)
        return line if error is None else f"{line} ({error['kind']} in {error['frames'][0]})"


class Json(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, process, message, the record's
    fields, and error (kind, message if it was raised on purpose, frames with the innermost first).
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process or "front"

    def format(self, record: logging.LogRecord) -> str:
        """Of logging.Formatter."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        error = _error(record)
        if error is not None:
            line["error"] = error
        return msgspec.json.encode(line, enc_hook=repr).decode()


class Writer(logging.Handler):
    """Writes lines from a thread. What comes when 10,000 already wait is counted in `lost`."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.lost = 0
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(PENDING_LINES)
        self._thread = threading.Thread(target=self._run, name="subsecond-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Of logging.Handler."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.lost += 1
        except Exception:  # a line that can't be made must not end a request
            self.lost += 1

    def close(self) -> None:
        """Writes what waits, if the stream takes it soon. Called at the process's end too."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(CLOSING_S)
        super().close()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # a closed pipe
                self._stream.write(f"{line}\n")
                if self._lines.empty():
                    self._stream.flush()


def _error(record: logging.LogRecord) -> dict[str, Any] | None:
    if not record.exc_info or record.exc_info[1] is None:
        return None
    error = record.exc_info[1]
    frames = [
        f"{Path(own.filename).name}:{own.lineno} {own.name}"
        for own in reversed(traceback.extract_tb(error.__traceback__))
    ]
    told: dict[str, Any] = {"kind": type(error).__name__, "frames": frames[:FRAMES] or ["?"]}
    if isinstance(error, SubsecondError):
        told["message"] = str(error)
    return told


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
