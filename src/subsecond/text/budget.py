"""What one rendering of a chat template may take: steps, sizes of values, processor time.

Owns: the limits, and the count of what is left. Does not know: what a template does (sandbox).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, MappingView
from typing import Any

from subsecond.errors import TextError
from subsecond.text.provenance import Traced

MAX_STEPS = 100_000
"""Loop passes, calls and filters of one rendering together; also the largest integer argument."""

MAX_SIZE = 1 << 20
"""Characters and entries of one value, nested ones included."""

MAX_WORK = 32 * MAX_SIZE
"""Characters and entries that one rendering may make."""

MAX_CPU_S = 0.7
"""Processor time of one rendering, checked at each step: one step may take as long again."""

MAX_NESTING = 64
MAX_INTEGER = 1 << 63
CONTAINER_SIZE = 16
"""What a list or mapping counts for beside its entries: walking through it takes time too."""


class Budget:
    """What is left of one rendering. `restart` before each; TextError when it is spent."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A full budget, counted in the processor time of this thread."""
        self._steps = MAX_STEPS
        self._work = MAX_WORK
        self._end_s = time.thread_time() + MAX_CPU_S

    def step(self, work: int = 0) -> bool:
        """One loop pass, call or filter, and the characters it writes. True, for conditions."""
        self._steps -= 1
        self._work -= work
        if self._steps < 0:
            raise TextError(f"the chat template takes more than {MAX_STEPS:,} steps")
        if self._work < 0:
            raise TextError(f"the chat template makes more than {MAX_WORK:,} characters")
        if time.thread_time() > self._end_s:
            raise TextError(f"the chat template takes more than {MAX_CPU_S:g} s")
        return True

    def made(self, value: Any) -> Any:
        """`value`, charged with its size. Iterators are charged as they are read."""
        if isinstance(value, Iterator):
            return self._steps_of(value)
        self.step(size_of(value))
        return value

    def _steps_of(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            yield value


def size_of(value: Any, depth: int = 0) -> int:
    """Characters and entries of a value as if it were written out; TextError above MAX_SIZE.

    A value that holds another one twice counts it twice: that is what writing it would do.
    """
    from jinja2.utils import Namespace

    if isinstance(value, (str, bytes)):
        return fits(len(value))
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise TextError("the chat template makes an integer of more than 64 bits")
        return 1
    if isinstance(value, Namespace) and depth > 0:
        raise TextError("the chat template puts a namespace into another value")
    if isinstance(value, dict):
        parts: Any = (part for item in value.items() for part in item)
    elif isinstance(value, (list, tuple, MappingView)):
        parts = value
    else:
        return 1
    if depth > MAX_NESTING:
        raise TextError(f"the chat template nests values deeper than {MAX_NESTING} levels")
    size = CONTAINER_SIZE
    if isinstance(value, list) and set(map(type, value)) <= {str, Traced}:
        return fits(size + len(value) + sum(map(len, value)))
    for part in parts:
        size = fits(size + 1 + size_of(part, depth + 1))
    return size


def fits(size: int) -> int:
    """`size`, or TextError if a value of this size is too large."""
    if size > MAX_SIZE:
        raise TextError(f"the chat template makes a value of more than {MAX_SIZE:,} characters")
    return size
