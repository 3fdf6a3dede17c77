"""Logits: what `LLM.logits` returns, readable with NumPy and without.

Owns: the shape over one block of memory. Does not know: what computes the values.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import overload


class Logits:
    """Float32 [T, V]: a row of V logits after each of T tokens.

    `logits[t]` is a row, a one-dimensional memoryview of floats; `logits[t, v]` one number;
    `logits[a:b]` the Logits of those tokens; negative indices count from the end. `len` is T,
    `shape` (T, V).
    The object is a buffer of that shape, so `numpy.asarray(logits)` makes an array of it without a
    copy, and `bytes(logits)` the values in their order. Rows, slices and arrays share its memory.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, vocabulary)."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[memoryview[float]]:
        return (self._row(index) for index in range(self.shape[0]))

    @overload
    def __getitem__(self, place: int) -> memoryview[float]: ...
    @overload
    def __getitem__(self, place: tuple[int, int]) -> float: ...
    @overload
    def __getitem__(self, place: slice) -> Logits: ...
    def __getitem__(
        self, place: int | tuple[int, int] | slice
    ) -> memoryview[float] | float | Logits:
        rows = range(self.shape[0])
        if isinstance(place, tuple):
            token, entry = place
            return self._row(rows[token])[entry]
        if isinstance(place, slice):
            chosen = rows[place]
            if chosen.step != 1:
                raise ValueError("logits are sliced in steps of 1; numpy.asarray takes any slice")
            vocab_size = self.shape[1]
            return _over(self, len(chosen), vocab_size, 4 * chosen.start * vocab_size)
        return self._row(rows[place])

    def tolist(self) -> list[list[float]]:
        """The rows as lists."""
        return [list(row) for row in self]

    def __repr__(self) -> str:
        return f"<Logits float32 {list(self.shape)}>"

    def _row(self, index: int) -> memoryview[float]:
        row = 4 * self.shape[1]
        whole = memoryview(self).cast("B")  # type: ignore[arg-type]
        return whole[index * row : (index + 1) * row].cast("f")


def empty(tokens: int, vocab_size: int) -> Logits:
    """Logits [tokens, vocab_size], both at least 1, all 0; the memory is taken when it is written.

    ctypes, because a class of plain Python exports no buffer before Python 3.12.
    """
    return _over(mmap.mmap(-1, 4 * tokens * vocab_size), tokens, vocab_size, 0)


def _over(memory: object, tokens: int, vocab_size: int, offset_bytes: int) -> Logits:
    fields = {
        "_type_": ctypes.c_float * vocab_size,
        "_length_": tokens,
        "shape": (tokens, vocab_size),
    }
    kind = type("Logits", (Logits, ctypes.Array), fields)
    made: Logits = kind.from_buffer(memory, offset_bytes)  # type: ignore[attr-defined]
    return made


def flat(logits: Logits) -> memoryview[float]:
    """All values in their order, one dimension, to be written."""
    return memoryview(logits).cast("B").cast("f")  # type: ignore[arg-type]
