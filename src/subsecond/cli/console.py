"""What commands share: standard input and output, process figures, JSON."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subsecond.errors import InputError, TextError
from subsecond.text.tokenizer import MAX_TEXT_BYTES


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


def read_stdin() -> str:
    """All of standard input as text, bounded. TextError if it is too long or not UTF-8, InputError
    if there is none.
    """
    if sys.stdin is None:  # the process was started without one
        raise InputError("standard input is closed; give the prompt as an argument or pipe it in")
    data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise TextError(f"standard input has more than {MAX_TEXT_BYTES:,} bytes; shorten it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"standard input is not valid UTF-8 (byte {error.start})") from None


def write(text: str) -> None:
    """Text to standard output, at once. Characters that the terminal can't show are replaced."""
    if not text or sys.stdout is None:  # None: the process was started without one
        return
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def note(line: str) -> None:
    """A line for people, on standard error."""
    print(line, file=sys.stderr, flush=True)


def write_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    import json

    write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
