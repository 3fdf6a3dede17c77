"""What a server says of itself: one line each, and never what a client sent."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import Any

import pytest

from subsecond.errors import InputError
from subsecond.serve import logs

CANARY = "secret-of-a-client"


def record(error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    own = logging.LogRecord("a.b", logging.ERROR, "x.py", 1, "it %s", ("broke",), info)
    own.__dict__.update(extra)
    return own


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_json_has_fields_and_an_error_without_its_words() -> None:
    line = json.loads(
        logs.Json("").format(record(raised(KeyError(CANARY)), fields={"status": 500}))
    )
    assert line["message"] == "it broke" and line["status"] == 500 and line["process"] == "front"
    assert line["time"].endswith("Z") and line["level"] == "error"
    assert line["error"]["kind"] == "KeyError"
    assert line["error"]["frames"][0].startswith("test_logs.py:")
    assert CANARY not in json.dumps(line)


def test_an_error_raised_on_purpose_keeps_its_words() -> None:
    line = json.loads(logs.Json("engine").format(record(raised(InputError("give another")))))
    assert line["error"]["message"] == "give another" and line["process"] == "engine"


def test_text_is_one_line() -> None:
    own = record(raised(ValueError(CANARY)))
    own.msg, own.args = "two\nlines", ()
    line = logs.Text("").format(own)
    assert line.startswith("subsecond: ERROR: two\\nlines (ValueError in test_logs.py:")
    assert CANARY not in line and "\n" not in line


class Stuck(io.StringIO):
    """A stream that takes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = threading.Event()

    def write(self, text: str) -> int:
        self.taken.wait(20)
        return super().write(text)


def test_a_stream_that_takes_nothing_delays_nobody_and_loses_a_counted_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "PENDING_LINES", 5)
    stream = Stuck()
    writer = logs.Writer(stream)
    for _ in range(20):
        writer.emit(record())
    assert 13 <= writer.lost <= 15  # one may be on its way to the stream
    stream.taken.set()
    while not writer._lines.empty():
        pass
    writer.close()
    assert len(stream.getvalue().splitlines()) == 20 - writer.lost


def test_a_closed_stream_ends_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    writer = logs.Writer(stream)
    writer.emit(record())
    writer.close()
