"""A program on a pseudo-terminal of its own, where Ctrl-C is a key."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType

TIMEOUT_S = 60.0

# In the new process: makes standard input its controlling terminal, then becomes the program.
_LOGIN = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """`python -m subsecond ARGUMENTS`, seen through its terminal."""

    def __init__(self, arguments: Sequence[str], **env: str) -> None:
        self._outer, inner = os.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOGIN, sys.executable, "-m", "subsecond", *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**os.environ, "TERM": "dumb", "PYTHONIOENCODING": "utf-8", **env},
        )
        os.close(inner)
        self._unread = b""
        self.seen = b""  # everything so far

    def send(self, keys: str) -> None:
        os.write(self._outer, keys.encode())

    def interrupt(self, words: str) -> str:
        """Presses Ctrl-C and expects `words`. Python's readline notices a signal that comes between
        its prompt and its wait for a key only at the next one, so it is pressed again then.
        """
        for _ in range(5):
            self.send("\x03")
            try:
                return self.expect(words, seconds=2.0)
            except AssertionError:
                continue
        return self.expect(words)

    def expect(self, words: str, seconds: float = TIMEOUT_S) -> str:
        """Everything up to and with `words`, which must come."""
        wanted, end = words.encode(), time.monotonic() + seconds
        while wanted not in self._unread:
            if time.monotonic() > end or not self._read(end):
                raise AssertionError(f"{words!r} did not come; unread: {self._unread[-2000:]!r}")
        before, _, self._unread = self._unread.partition(wanted)
        return (before + wanted).decode("utf-8", "replace")

    def expect_something(self) -> None:
        """Any output after what was expected before."""
        if not self._unread and not self._read(time.monotonic() + TIMEOUT_S):
            raise AssertionError("nothing came")

    def end(self) -> int:
        """Waits for the end; the exit code."""
        end = time.monotonic() + TIMEOUT_S
        while self._read(end):
            pass
        return self._process.wait(TIMEOUT_S)

    def _read(self, end: float) -> bool:
        ready = select.select([self._outer], [], [], max(0.0, end - time.monotonic()))[0]
        try:
            data = os.read(self._outer, 1 << 16) if ready else b""
        except OSError:  # the program has ended
            data = b""
        self._unread += data
        self.seen += data
        return bool(data)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._outer)
