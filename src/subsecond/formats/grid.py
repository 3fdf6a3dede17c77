"""Detection: whether float weights already lie on an int4 or int8 grid, so that they can be taken
over exactly.

Owns: the search for a scale and a minimum of each group that reproduce every value bit for bit.
Knows nothing of formats of files, and never approximates: a matrix is on a grid or it is not.
quantize.py approximates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from subsecond.formats.layout import GROUP_INT
from subsecond.formats.pack import Grid

_SAMPLE_GROUPS = 64
_CHUNK_GROUPS = 1 << 14
_LEVELS = 16  # of int4

_Groups = NDArray[np.float32]  # [groups, 32]
_Half = NDArray[np.float16]
_Levels = NDArray[np.uint8]
_Fit = tuple[_Half, _Half, NDArray[np.uint8]]  # scale, minimum, q


def find_grid(values: NDArray[np.float32]) -> Grid | None:
    """The int4 grid, else the int8 grid, that reproduces float32 [n, k] exactly; None where there
    is none.

    A sample of groups rejects ordinary weights at once.
    """
    # Overflow and NaN only make a trial fail.
    with np.errstate(all="ignore"):
        return _find(values)


def _find(values: NDArray[np.float32]) -> Grid | None:
    n, k = values.shape
    if k % GROUP_INT:
        return None
    groups = np.ascontiguousarray(values, np.float32).reshape(-1, GROUP_INT)
    picked = np.linspace(0, len(groups) - 1, min(_SAMPLE_GROUPS, len(groups))).astype(np.intp)
    sample = groups[picked]
    if not np.isfinite(sample).all():
        return None
    for name, fit in (("int4", _fit_int4), ("int8", _fit_int8)):
        found = _fit_all(groups, fit) if fit(sample) is not None else None
        if found is not None:
            scale, minimum, quant = found
            shape = (n, k // GROUP_INT)
            low = minimum.reshape(shape) if name == "int4" else None
            return Grid(name, scale.reshape(shape), low, quant.reshape(n, k))
    return None


def _fit_all(groups: _Groups, fit: Callable[[_Groups], _Fit | None]) -> _Fit | None:
    scale, minimum = np.empty(len(groups), np.float16), np.empty(len(groups), np.float16)
    quant = np.empty(groups.shape, np.uint8)
    for start in range(0, len(groups), _CHUNK_GROUPS):
        part = slice(start, start + _CHUNK_GROUPS)
        found = fit(groups[part])
        if found is None:
            return None
        scale[part], minimum[part], quant[part] = found
    return scale, minimum, quant


def _fit_int4(groups: _Groups) -> _Fit | None:
    """Scale, minimum and q of every group, or None as soon as one group has none.

    First the grids that quantizers make: range / 15 from the smallest value, and the largest
    magnitude at -8 or 7 steps around zero. Groups that are left are searched one by one.
    """
    search = _Search(groups)
    low, high = groups.min(axis=1), groups.max(axis=1)
    search.trial(np.zeros(len(groups), np.float16), _half(low))  # one value throughout
    for ulps in (0, 1, -1):
        search.trial(_half((high - low) / np.float32(15), ulps), _half(low))
    if len(search.left) and _distinct(groups[search.left]) > _LEVELS:
        return None
    extreme = np.where(high > -low, high, low)
    scale = _half(extreme / np.float32(-8))
    search.trial(scale, scale * np.float16(-8))
    for ulps in (0, 1, -1):
        scale = _half(np.abs(extreme) / np.float32(7), ulps)
        search.trial(scale, scale * np.float16(-8))
    for index in search.left:
        found = _search_one(groups[index])
        if found is None:
            return None
        search.scale[index], search.minimum[index], search.quant[index] = found
    return search.scale, search.minimum, search.quant


class _Search:
    """Groups that still need an int4 grid (`left`), and the grids of those that have one."""

    def __init__(self, groups: _Groups) -> None:
        self._groups = groups
        self.scale = np.zeros(len(groups), np.float16)
        self.minimum = np.zeros(len(groups), np.float16)
        self.quant = np.zeros(groups.shape, np.uint8)
        self.left = np.arange(len(groups))

    def trial(self, scale: _Half, minimum: _Half) -> None:
        """Keeps (scale, minimum), given for all groups, where they reproduce an open group."""
        if not len(self.left):
            return
        fits, q = _reproduced(self._groups[self.left], scale[self.left], minimum[self.left])
        chosen = self.left[fits]
        self.scale[chosen], self.minimum[chosen] = scale[chosen], minimum[chosen]
        self.quant[chosen] = q[fits]
        self.left = self.left[~fits]


# Every way to lay a group's range on the 16 levels: it spans `steps` steps and starts at level
# `first`; the scale may be off by one unit in the last place of fp16.
_TRIALS = np.array(
    [
        (steps, first, ulps)
        for steps in range(_LEVELS - 1, 0, -1)
        for first in range(_LEVELS - steps)
        for ulps in (0, 1, -1)
    ]
)


def _search_one(values: NDArray[np.float32]) -> tuple[np.float16, np.float16, _Levels] | None:
    """Scale, minimum and q of one group [32], rising or falling; None where there is none."""
    low, high = values.min(), values.max()
    steps, first, ulps = _TRIALS.T
    rising = _half(((high - low) / steps).astype(np.float32), ulps)
    shift = first.astype(np.float32) * rising.astype(np.float32)
    scale = np.concatenate([rising, -rising])
    minimum = np.concatenate([_half(low - shift), _half(high + shift)])
    fits, q = _reproduced(np.broadcast_to(values, (len(scale), len(values))), scale, minimum)
    index = int(fits.argmax())
    return (scale[index], minimum[index], q[index]) if fits[index] else None


def _reproduced(
    values: _Groups, scale: _Half, minimum: _Half
) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Which groups a scale and a minimum each reproduce bit for bit, and the nearest q."""
    step = scale.astype(np.float32)[:, None]
    start = minimum.astype(np.float32)[:, None]
    q = np.rint((values - start) / np.where(step == 0, np.float32(1), step))
    q = np.clip(q, 0, _LEVELS - 1)
    fits = (step * q + start == values).all(axis=1)
    return fits, q.astype(np.uint8)


def _fit_int8(groups: _Groups) -> _Fit | None:
    """As `_fit_int4`, for w = scale * (q - 128) with the largest magnitude at 127 steps, or at 128
    below zero."""
    count = len(groups)
    scale = np.zeros(count, np.float16)
    quant = np.full(groups.shape, 128, np.uint8)
    largest = np.abs(groups).max(axis=1)
    left = np.flatnonzero(largest > 0)
    for steps in (127, 128):
        for ulps in (0, 1, -1):
            if not len(left):
                break
            trial = _half(largest[left] / np.float32(steps), ulps)
            step = trial.astype(np.float32)[:, None]
            q = np.clip(np.rint(groups[left] / np.where(step == 0, np.float32(1), step)), -128, 127)
            fits = (step * q == groups[left]).all(axis=1)
            scale[left[fits]], quant[left[fits]] = trial[fits], (q[fits] + 128).astype(np.uint8)
            left = left[~fits]
    return None if len(left) else (scale, np.zeros(count, np.float16), quant)


def _distinct(groups: _Groups) -> int:
    """The largest number of different values in a group."""
    ordered = np.sort(groups, axis=1)
    return int((ordered[:, 1:] != ordered[:, :-1]).sum(axis=1).max()) + 1


def _half(values: NDArray[np.float32], ulps: int | NDArray[np.int64] = 0) -> _Half:
    """The nearest fp16, or its neighbour `ulps` steps away from (toward) zero."""
    half = values.astype(np.float16)
    return (half.view(np.int16) + np.asarray(ulps, np.int16)).view(np.float16)
