"""Whether stored weights are numbers: no scale, minimum or plain value that is NaN or infinite.

Owns: the scan of packed tensors (csrc/kernels/formats.h). Knows nothing of hashes or files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from subsecond.formats.layout import FORMATS, TILE_CHANNELS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK_BYTES = 4 << 20
# fp16 numbers before the integers
_HALVES = {"int4": 2 * TILE_CHANNELS, "int8": TILE_CHANNELS, "int8_split": TILE_CHANNELS}
_UPPER_BYTES = 416  # of an upper block of int8_split


def all_finite(data: memoryview, format: str, n: int, k: int) -> bool:
    """Whether every number of a packed matrix is finite; vectors are "f32", with k = 0.

    Padding counts as well, because kernels compute it. What is no whole number of blocks isn't
    finite.
    """
    import numpy as np

    values = np.frombuffer(data, np.uint8)
    if format == "int8_split":
        from subsecond.formats.pack import split_parts

        if values.size != FORMATS[format].matrix_bytes(n, k):
            return False
        radius, _, upper = split_parts(values, n, k)
        return _blocks_finite(radius, "f32", 4) and _blocks_finite(upper, format, _UPPER_BYTES)
    return _blocks_finite(values, format, FORMATS[format].block_bytes if format in _HALVES else 4)


def _blocks_finite(values: NDArray[np.uint8], format: str, block: int) -> bool:
    if values.size % block:
        return False
    step = max(1, _CHUNK_BYTES // block) * block
    return all(
        _finite(values[start : start + step], format, block)
        for start in range(0, values.size, step)
    )


def _finite(data: NDArray[np.uint8], format: str, block: int) -> bool:
    """An exponent of all ones is an infinity or a NaN."""
    if format == "f32":
        bits, exponent = data.view("<u4"), 0x7F800000
    elif format == "bf16":
        bits, exponent = data.view("<u2"), 0x7F80
    else:
        bits, exponent = data.view("<u2").reshape(-1, block // 2)[:, : _HALVES[format]], 0x7C00
    return not bool(((bits & exponent) == exponent).any())
