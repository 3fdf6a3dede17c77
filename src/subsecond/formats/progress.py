"""Progress of slow work (fetching, converting), told to a callback and shown on a terminal.

Owns: the callback's shape and one way to show it on stderr: bars where it is a terminal, a plain
line each quarter where it is not. Knows nothing of what is being done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

# (what is done, units done, units in all, unit: "B" for bytes or a plural noun)
Progress = Callable[[str, int, int, str], None]

SCALED = ("B", "weights")  # units that are shown in thousands and millions


class TerminalProgress:
    """A Progress on stderr. Use as a context manager, or call `close` at the end.

    converted: whether a model was converted, so that its place is worth a line.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._what = ""
        self._quarter = -1
        self.converted = False

    def __call__(self, what: str, done: int, total: int, unit: str) -> None:
        self.converted = self.converted or what == "converting"
        if not sys.stderr.isatty():
            quarter = 4 * done // max(total, 1)
            if what != self._what or quarter > self._quarter:
                print(f"{what}: {25 * quarter} %", file=sys.stderr, flush=True)
            self._what, self._quarter = what, quarter
            return
        if what != self._what:
            from tqdm import tqdm

            self.close()
            self._what = what
            self._bar = tqdm(
                total=total,
                desc=what,
                unit=unit,
                unit_scale=unit in SCALED,
                leave=False,
                ncols=_columns(),
            )
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._what, self._quarter = None, "", -1

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _columns() -> int | None:
    """80 for a terminal that doesn't know its width (no bar would be drawn); None: tqdm asks."""
    try:
        return None if os.get_terminal_size(sys.stderr.fileno()).columns > 0 else 80
    except (OSError, ValueError):
        return None
