"""What commands share: the three standard streams, process figures, JSON.

Owns: what happens where a stream is closed, full, unreadable or without a reader. Does not know:
the commands.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from subsecond.errors import InputError, TextError

_NO_STDIN = "standard input is closed; "
_CHUNK_BYTES = 1 << 16
SHOWN_CHARACTERS = 1000  # of an error


def seconds_since_start() -> float:
    """Seconds since this process was started, the interpreter's own start included (to 10 ms)."""
    try:
        with Path("/proc/self/stat").open("rb") as file:
            started_ticks = int(file.read().rpartition(b")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
    except (
        OSError,
        AttributeError,
        ValueError,
        IndexError,
    ):  # no Linux: processor time is a lower bound
        return time.process_time()


def peak_memory_mb() -> float:
    """Most resident memory of this process so far, mapped weights included, in MB (10^6 bytes)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def open_missing() -> None:
    """Opens the null device where the process was started without standard error, so that writing
    there is no special case, and no other file takes the streams' numbers. InputError where it was
    started without standard output: what a command says would be lost.
    """
    with suppress(OSError):
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (never closed)
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        raise InputError(
            "standard output is closed; send it to a terminal, a file or a pipe (>/dev/null drops "
            "it)"
        )


def silence_broken() -> None:
    """The interpreter flushes the streams at its end; one that has failed must not fail again,
    aloud.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def read_stdin() -> str:
    """All of standard input as text, bounded. TextError if it is too long or not UTF-8, InputError
    if there is none.
    """
    from subsecond.text.tokenizer import MAX_TEXT_BYTES

    if sys.stdin is None:  # the process was started without one
        raise InputError(_NO_STDIN + "give the prompt as an argument or pipe it in")
    with _named_stdin():
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    return _text(data, "standard input")


def read_file(name: str) -> str:
    """All of a file as text, bounded as `read_stdin`. InputError if it can't be read."""
    from subsecond.text.tokenizer import MAX_TEXT_BYTES

    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise InputError(f"can't read {name!r:.200}: {reason}; give a text file") from None
    return _text(data, f"{name!r:.200}")


def _text(data: bytes, what: str) -> str:
    from subsecond.text.tokenizer import MAX_TEXT_BYTES

    if len(data) > MAX_TEXT_BYTES:
        raise TextError(f"{what} has more than {MAX_TEXT_BYTES:,} bytes; shorten it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{what} is not valid UTF-8 (byte {error.start})") from None


def read_lines() -> Iterator[str | TextError]:
    """The lines of standard input, bounded; in the place of one that is too long or not UTF-8, the
    error. InputError if there is no standard input.
    """
    from subsecond.text.tokenizer import MAX_TEXT_BYTES

    if sys.stdin is None:  # the process was started without one
        raise InputError(_NO_STDIN + "chat reads its messages from it")
    number = 0
    while data := _line(MAX_TEXT_BYTES + 1):
        number += 1
        if len(data) > MAX_TEXT_BYTES and not data.endswith(b"\n"):
            while data and not data.endswith(b"\n"):
                data = _line(_CHUNK_BYTES)
            yield TextError(
                f"line {number} of standard input has more than {MAX_TEXT_BYTES:,} bytes; shorten "
                "it, or make several messages of it"
            )
            continue
        try:
            yield data.decode("utf-8")
        except UnicodeDecodeError as error:
            yield TextError(
                f"line {number} of standard input is not valid UTF-8 (byte {error.start} of the "
                "line); convert it to UTF-8"
            )


def _line(limit_bytes: int) -> bytes:
    """The next line of standard input with its end, or its first bytes; nothing at the end."""
    with _named_stdin():
        return sys.stdin.buffer.readline(limit_bytes)


@contextmanager
def _named_stdin() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # opened for writing only, say
        raise InputError(
            f"standard input can't be read ({error.strerror}); pipe text into it"
        ) from None


def write(text: str) -> None:
    """Text to standard output, at once. Characters that the terminal can't show are replaced.

    BrokenPipeError if nobody reads any more; OSError that names standard output if it is full.
    """
    if not text:
        return
    encoding = sys.stdout.encoding or "utf-8"
    with _named_stdout():
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    flush()


def flush() -> None:
    """Everything that was written, out; errors as in `write`."""
    with _named_stdout():
        sys.stdout.flush()


@contextmanager
def _named_stdout() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def note(line: str) -> None:
    """A line for people, on standard error. One that can't be written is no reason to fail."""
    with suppress(OSError, ValueError):  # what was written before comes first
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def note_error(message: str) -> None:
    """The one line of an error."""
    line = one_line(message)
    if len(line) > SHOWN_CHARACTERS:  # a value of the user's; what is wrong and the fix stand apart
        line = f"{line[: SHOWN_CHARACTERS // 2]} ... {line[-SHOWN_CHARACTERS // 2 :]}"
    note(f"subsecond: error: {line}")


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Warnings are lines for people, without the place in the code."""
    note(f"subsecond: warning: {one_line(str(message))}")


def one_line(text: str) -> str:
    """`text` without line ends, control characters and what is no character at all."""
    words = " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def write_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    import json

    write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
