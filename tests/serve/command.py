"""`subsecond serve` as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import subsecond

PATIENCE_S = 60  # no test waits so long unless it fails
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(subsecond.__file__).parents[1])}
COMMAND = [sys.executable, "-m", "subsecond", "serve"]


@contextmanager
def command(*words: str) -> Iterator[tuple[subprocess.Popen[str], list[str], int]]:
    """The process, the lines that it said until it served, and its port."""
    with subprocess.Popen(
        [*COMMAND, *words], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as process:
        guard = threading.Timer(PATIENCE_S, process.kill)
        guard.start()
        lines: list[str] = []
        try:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"at https?://127\.0\.0\.1:(\d+)/v1", line):
                    yield process, lines, int(found[1])
                    return
            raise AssertionError(f"it never served: {lines}")
        finally:
            guard.cancel()
            process.kill()
