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
_CHUNK_GROUPS = 1 << 12  # 32 * 4096 float32 values stay in the second-level cache
_HALF_MAX = np.float32(65504)

_Groups = NDArray[np.float32]  # [groups, 32]
_Half = NDArray[np.float16]
_Values = NDArray[np.float32]
_Rounded = tuple[_Half, _Half, _Values, _Values]  # scale, minimum, q, squared error


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
    low, high = groups.min(axis=1), groups.max(axis=1)
    scale, minimum, q, error = _rounded(groups, low, (high - low) / np.float32(15))
    trials = [_refit(groups, q)]
    for shrink in _SHRINK:
        cut = (high - low) * np.float32((1 - shrink) / 2)
        trials.append((low + cut, (high - low - 2 * cut) / np.float32(15)))
    for start, step in trials:
        other = _rounded(groups, start, step)
        _keep_better((scale, minimum, q, error), other)
        _keep_better((scale, minimum, q, error), _rounded(groups, *_refit(groups, other[2])))
    return scale, minimum, q.astype(np.uint8)


def _keep_better(kept: _Rounded, other: _Rounded) -> None:
    """Replaces in `kept`, in place, the groups that `other` has with a smaller error."""
    better = other[3] < kept[3]
    kept[0][better], kept[1][better] = other[0][better], other[1][better]
    kept[2][better], kept[3][better] = other[2][better], other[3][better]


def _rounded(groups: _Groups, minimum: NDArray[np.float32], scale: NDArray[np.float32]) -> _Rounded:
    """Scale and minimum as stored, the q nearest under them, and each group's squared error."""
    limit = _HALF_MAX
    half_scale = np.clip(scale, 0, limit).astype(np.float16)
    half_minimum = np.clip(minimum, -limit, limit).astype(np.float16)
    step: _Values = half_scale.astype(np.float32)[:, None]
    start: _Values = half_minimum.astype(np.float32)[:, None]
    divisor: _Values = np.where(step > 0, step, np.float32(1)).astype(np.float32)
    q: _Values = (groups - start) / divisor
    np.clip(np.rint(q, out=q), 0, 15, out=q)
    miss = step * q + start
    miss -= groups
    error: _Values = np.einsum("ij,ij->i", miss, miss)
    return half_scale, half_minimum, q, error


def _refit(
    groups: _Groups, q: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Minimum and scale of the least-squares line through (q, value) of each group."""
    mean_q, mean = q.mean(axis=1), groups.mean(axis=1)
    spread = np.einsum("ij,ij->i", q, q) - GROUP_INT * mean_q * mean_q
    product = np.einsum("ij,ij->i", q, groups) - GROUP_INT * mean_q * mean
    scale = np.maximum(product / np.where(spread > 0, spread, np.float32(1)), 0)
    return mean - scale * mean_q, scale
