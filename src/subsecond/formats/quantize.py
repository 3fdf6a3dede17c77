"""Quantization: float weights to the nearest int4 or int8 grid, group by group, by the error of the
weights alone.

Owns: round-to-nearest with scales and minima as they are stored (fp16), and a small search over
them for int4. Knows nothing of activations, models or files. Methods that look at data come from
elsewhere and produce the same Grid.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from subsecond.errors import ModelError
from subsecond.formats.layout import GROUP_INT
from subsecond.formats.pack import Grid

# Ranges tried for an int4 group, as fractions of its full range: cutting outliers off often lowers
# the squared error.
_SHRINK = (0.95, 0.9)
_CHUNK_GROUPS = 1 << 12  # 3 * 32 * 4096 float32 values stay in the second-level cache
_HALF_MAX = np.float32(65504)

_Groups = NDArray[np.float32]  # [groups, 32]
_Half = NDArray[np.float16]
_Values = NDArray[np.float32]


def quantize(values: NDArray[np.float32], format: str, name: str) -> Grid:
    """The grid nearest to float32 [n, k] in squared error, in `int4` or `int8`.

    int8: absmax / 127, rounded to nearest: |error| <= scale / 2. int4: never worse in squared error
    than scale and minimum taken from the group's range. K is extended with zeros to a multiple of
    32. Raises ModelError, naming `name`, for values that a fp16 scale or minimum cannot reach.
    """
    n, k = values.shape
    columns = -(-k // GROUP_INT)
    if k % GROUP_INT:
        values = np.pad(values, ((0, 0), (0, columns * GROUP_INT - k)))
    groups = np.ascontiguousarray(values, np.float32).reshape(-1, GROUP_INT)
    scale = np.empty(len(groups), np.float16)
    minimum = np.empty(len(groups), np.float16)
    quant = np.empty(groups.shape, np.uint8)

    def fill(start: int) -> None:
        part = slice(start, start + _CHUNK_GROUPS)
        if np.abs(groups[part]).max() > _HALF_MAX:
            raise ModelError(
                f"tensor {name!r} has values beyond {_HALF_MAX:g}, which {format} cannot hold; "
                "use --weights bf16"
            )
        if format == "int4":
            scale[part], minimum[part], quant[part] = _int4(groups[part])
        else:
            scale[part], quant[part] = _int8(groups[part])

    with ThreadPoolExecutor(_threads()) as pool:  # NumPy works without the interpreter's lock
        for _ in pool.map(fill, range(0, len(groups), _CHUNK_GROUPS)):
            pass
    low = minimum.reshape(n, columns) if format == "int4" else None
    return Grid(format, scale.reshape(n, columns), low, quant.reshape(n, -1)[:, :k])


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _int8(groups: _Groups) -> tuple[_Half, NDArray[np.uint8]]:
    largest = np.abs(groups).max(axis=1)
    scale = (largest / np.float32(127)).astype(np.float16)
    # Among the subnormal fp16 a scale may round down so far that the largest value would be cut
    # off.
    short = largest > scale.astype(np.float32) * np.float32(127.5)
    scale[short] = np.nextafter(scale[short], np.float16(np.inf))
    step: _Values = scale.astype(np.float32)[:, None]
    q = np.rint(groups / np.where(step > 0, step, np.float32(1)))
    return scale, (np.clip(q, -128, 127) + 128).astype(np.uint8)


def _int4(groups: _Groups) -> tuple[_Half, _Half, NDArray[np.uint8]]:
    """Tries shrunken ranges, refits scale and minimum to each choice of q by least squares, keeps
    the best of all."""
    search = _Search(groups)
    span = search.high - search.low
    search.trial(search.low, span / np.float32(15))
    search.trial(*search.refit())
    search.trial(*search.refit())
    for shrink in _SHRINK:
        cut: _Values = span * np.float32((1 - shrink) / 2)
        rest: _Values = span - np.float32(2) * cut
        search.trial(search.low + cut, rest / np.float32(15))
        search.trial(*search.refit())
    return search.scale, search.minimum, search.levels()


class _Search:
    """Groups that look for their best scale and minimum (`scale`, `minimum`: the best so far).

    Values lie transposed, [32, groups], so that what is one value a group runs along memory, and in
    buffers that are used again: this is most of a conversion's time. Every sum has one order, so
    that a matrix becomes the same bits on every machine.
    """

    def __init__(self, groups: _Groups) -> None:
        self._values: _Values = np.ascontiguousarray(groups.T)
        self._q = np.empty_like(self._values)
        self._work = np.empty_like(self._values)
        self._mean = _sum8(self._values) / np.float32(GROUP_INT)
        count = len(groups)
        self._error = np.full(count, np.inf, np.float32)
        self.low: _Values = self._values.min(axis=0)
        self.high: _Values = self._values.max(axis=0)
        self.scale = np.zeros(count, np.float16)
        self.minimum = np.zeros(count, np.float16)

    def trial(self, minimum: _Values, scale: _Values) -> None:
        """Rounds to these as they would be stored, and keeps them where the squared error falls."""
        half_scale = np.clip(scale, 0, _HALF_MAX).astype(np.float16)
        half_minimum = np.clip(minimum, -_HALF_MAX, _HALF_MAX).astype(np.float16)
        step, start = self._round(half_scale, half_minimum)
        miss = np.multiply(step, self._q, out=self._work)
        miss += start
        miss -= self._values
        miss *= miss
        error = _sum4(miss)
        better = error < self._error
        np.copyto(self._error, error, where=better)
        np.copyto(self.scale, half_scale, where=better)
        np.copyto(self.minimum, half_minimum, where=better)

    def refit(self) -> tuple[_Values, _Values]:
        """Minimum and scale of the least-squares line through (q, value) of each group, for the q
        of the last trial."""
        count = np.float32(GROUP_INT)
        mean_q = _sum8(self._q) / count
        spread = _sum4(np.multiply(self._q, self._q, out=self._work))
        spread -= count * mean_q * mean_q
        product = _sum4(np.multiply(self._q, self._values, out=self._work))
        product -= count * mean_q * self._mean
        scale = np.maximum(product / np.where(spread > 0, spread, np.float32(1)), 0)
        return self._mean - scale * mean_q, scale

    def levels(self) -> NDArray[np.uint8]:
        """q under the best scale and minimum, uint8 [groups, 32]."""
        self._round(self.scale, self.minimum)
        return np.ascontiguousarray(self._q.astype(np.uint8).T)

    def _round(self, scale: _Half, minimum: _Half) -> tuple[_Values, _Values]:
        """Sets q to the nearest levels; scale and minimum as float32."""
        step, start = scale.astype(np.float32), minimum.astype(np.float32)
        q = np.subtract(self._values, start, out=self._q)
        q /= np.where(step > 0, step, np.float32(1))
        np.clip(np.rint(q, out=q), 0, 15, out=q)
        return step, start


def _sum8(values: _Values) -> _Values:
    """Sums of [32, groups] over the first axis: eight running sums, then pairs of them."""
    part = values[:8] + values[8:16]
    part += values[16:24]
    part += values[24:]
    part = part[::2] + part[1::2]
    part = part[::2] + part[1::2]
    total: _Values = part[0] + part[1]
    return total


def _sum4(values: _Values) -> _Values:
    """The same with four running sums, each sixteen values taken from their end."""
    part = values[12:16] + values[8:12]
    for first in (4, 0, 28, 24, 20, 16):
        part += values[first : first + 4]
    part = part[::2] + part[1::2]
    total: _Values = part[0] + part[1]
    return total
