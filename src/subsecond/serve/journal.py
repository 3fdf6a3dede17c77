"""Files of JSON lines that are only appended to.

Owns: a thread that writes, so that a slow disk delays no answer; the bound of what waits for it;
and the reading of files whose last line was cut off. Does not know: what the lines say.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PENDING_LINES = 10_000
PENDING_BYTES = 64 << 20
LONGEST_LINE_BYTES = 1 << 20


class Appender:
    """Appends lines from a thread of its own, at most `interval_s` after they were given.

    A file that was moved away is begun anew, as log rotation expects. Lines that can't be written
    (a full disk), or that wait when 10,000 or 64 MiB already do, are counted in `lost`; nothing is
    raised.
    """

    def __init__(self, path: Path, interval_s: float = 0.5) -> None:
        """OSError if the file can't be opened now."""
        self._path = path
        self._interval_s = interval_s
        self._pending: deque[bytes] = deque()
        self._bytes = 0  # of what is pending
        self._wake = threading.Condition()
        self._closing = False
        self._writing = threading.Lock()
        self._broken_line = not _ends_lines(path)
        self._descriptor = _open(path)
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="subsecond-append", daemon=True)
        self._thread.start()

    def append(self, line: bytes) -> None:
        """Gives a line, without its end, to the thread. Never waits for the disk."""
        with self._wake:
            full = len(self._pending) >= PENDING_LINES or self._bytes >= PENDING_BYTES
            if self._closing or full:
                self.lost += 1
                return
            self._pending.append(line)
            self._bytes += len(line)

    def flush(self) -> None:
        """Writes what is pending, in this thread."""
        with self._writing:
            lines: list[bytes] = []
            with self._wake:
                lines.extend(self._pending)
                self._pending.clear()
                self._bytes = 0
            if lines and not self._write(lines):
                self.lost += len(lines)

    def close(self) -> None:
        """Writes what is pending, and ends the thread."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self.flush()
        with self._writing:
            os.close(self._descriptor)

    def _run(self) -> None:
        while True:
            with self._wake:
                if self._closing:
                    return
                self._wake.wait(self._interval_s)
            self.flush()

    def _write(self, lines: list[bytes]) -> bool:
        data = b"".join(line + b"\n" for line in lines)
        if self._broken_line:
            data = b"\n" + data
        written = 0
        try:
            self._reopen_if_moved()
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            self._broken_line |= written > 0
            return False
        self._broken_line = False
        return True

    def _reopen_if_moved(self) -> None:
        own = os.fstat(self._descriptor)
        with suppress(FileNotFoundError):
            if os.path.samestat(own, self._path.stat()):
                return
        fresh = _open(self._path)
        os.close(self._descriptor)
        self._descriptor = fresh


class Ticker:
    """Calls a function every `interval_s` from a thread of its own, until it is closed."""

    def __init__(self, call: Callable[[], object], interval_s: float) -> None:
        self._call = call
        self._interval_s = interval_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="subsecond-tick", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._interval_s):
            self._call()


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file without their ends, a last one without an end included; a line of more
    than 1 MiB in pieces, so that memory is bounded. Nothing if there is no file.
    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        while line := file.readline(LONGEST_LINE_BYTES):
            yield line.removesuffix(b"\n")


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _ends_lines(path: Path) -> bool:
    """Whether the file is empty or ends with a line's end; a process that was killed may have left
    half a line, which the next one must not lengthen.
    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    return True
