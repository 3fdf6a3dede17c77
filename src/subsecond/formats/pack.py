"""Packing: between plain arrays and the one packed layout that every kernel reads.

Owns: the byte order of csrc/kernels/formats.h, written with NumPy: tiles of 16 channels, blocks
along K, inside a block "16 channels x 4 along K". Knows nothing of where weights come from or of
files; choosing a grid is quantize.py's work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subsecond.errors import ModelError
from subsecond.formats.layout import FORMATS, GROUP_INT, TILE_CHANNELS

_CHUNK_VALUES = 1 << 20
_BLOCK_INT4 = np.dtype([("scale", "<f2", 16), ("minimum", "<f2", 16), ("quant", "u1", 256)])
_BLOCK_INT8 = np.dtype([("scale", "<f2", 16), ("quant", "u1", 512)])
_BLOCK_UPPER = np.dtype([("scale", "<f2", 16), ("quant", "u1", (2, 3, 64))])
_BLOCK_LOWER = np.dtype([("quant", "u1", (2, 64))])
_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Grid:
    """A matrix [n, k] on an integer grid with groups of 32 along K.

    int4: w = scale * q + minimum, q in 0..15. int8: w = scale * (q - 128), q in 0..255, `minimum`
    is None.

    scale, minimum: float16 [n, ceil(k / 32)]; quant: uint8 [n, k].
    """

    format: str
    scale: NDArray[np.float16]
    minimum: NDArray[np.float16] | None
    quant: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.quant.shape[0], self.quant.shape[1])

    def rows(self, index: slice | NDArray[np.intp]) -> Grid:
        """The grid of the chosen rows, in their order."""
        minimum = None if self.minimum is None else self.minimum[index]
        return Grid(self.format, self.scale[index], minimum, self.quant[index])

    def finite(self) -> bool:
        """Whether no scale and no minimum is NaN or infinite."""
        ok = bool(np.isfinite(self.scale).all())
        return ok and (self.minimum is None or bool(np.isfinite(self.minimum).all()))

    def values(self) -> NDArray[np.float32]:
        """The matrix as float32 [n, k], computed as the kernels' `lookup` does."""
        n, k = self.shape
        out = np.empty((n, k), dtype=np.float32)
        scale = self.scale.astype(np.float32)
        minimum = None if self.minimum is None else self.minimum.astype(np.float32)
        for start in range(0, k, GROUP_INT):
            group, part = start // GROUP_INT, slice(start, min(start + GROUP_INT, k))
            quant = self.quant[:, part].astype(np.float32)
            if minimum is None:
                out[:, part] = scale[:, group, None] * (quant - np.float32(128))
            else:
                out[:, part] = scale[:, group, None] * quant + minimum[:, group, None]
        return out


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Float32 to the bits of bfloat16, round to nearest even. NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(
        16
    )
    out = rounded.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        out[nan] = 0x7FC0
    return out


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The bits of bfloat16 as float32 (exact)."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def pack_float(values: NDArray[np.float32], format: str) -> NDArray[np.uint8]:
    """Packs float32 [n, k] as `f32` or `bf16`: uint8 [matrix_bytes(n, k)]."""
    layout = FORMATS[format]
    n, k = values.shape
    groups = layout.groups(k)
    out = np.empty(layout.matrix_bytes(n, k), np.uint8)
    # A few tiles at a time, so that the copies on the way stay small beside the matrix.
    tiles = max(1, _CHUNK_VALUES // (TILE_CHANNELS * k))
    tile_bytes = groups * layout.block_bytes
    for first in range(0, -(-n // TILE_CHANNELS), tiles):
        part = values[first * TILE_CHANNELS : (first + tiles) * TILE_CHANNELS]
        count = -(-len(part) // TILE_CHANNELS)
        stored = to_bf16(part) if format == "bf16" else part.astype("<f4", copy=False)
        full = _padded(stored, count * TILE_CHANNELS, groups * layout.group, 0)
        blocks = full.reshape(count, TILE_CHANNELS, groups, layout.group).transpose(0, 2, 1, 3)
        packed = np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)
        out[first * tile_bytes : (first + count) * tile_bytes] = packed
    return out


def pack_split(grid: Grid) -> NDArray[np.uint8]:
    """Packs an int8 grid as `int8_split`: uint8 [matrix_bytes(n, k)]."""
    n, k = grid.shape
    blocks = pack_grid(grid).view(_BLOCK_INT8).reshape(-(-n // TILE_CHANNELS), -1)
    radius = np.zeros(len(blocks) * TILE_CHANNELS, "<f4")
    upper, lower = np.empty(blocks.shape, _BLOCK_UPPER), np.empty(blocks.shape, _BLOCK_LOWER)
    step = max(1, _CHUNK_VALUES // (TILE_CHANNELS * k))
    for first in range(0, len(blocks), step):
        part = slice(first, first + step)
        rows = slice(first * TILE_CHANNELS, min((first + step) * TILE_CHANNELS, n))
        radius[rows] = _radius(grid.rows(rows))
        upper["scale"][part] = blocks["scale"][part]
        quads = blocks["quant"][part].reshape(-1, blocks.shape[1], 2, 4, 64)
        fourth = quads[..., 3, :]
        for j in range(3):
            pair = (fourth >> np.uint8(6 - 2 * j)) & np.uint8(3)
            upper["quant"][part, :, :, j] = (quads[..., j, :] & np.uint8(0xFC)) | pair
        low = quads & np.uint8(3)
        lower["quant"][part] = (
            low[..., 0, :]
            | (low[..., 1, :] << np.uint8(2))
            | (low[..., 2, :] << np.uint8(4))
            | (low[..., 3, :] << np.uint8(6))
        )
    parts = (radius, lower.reshape(-1), upper.reshape(-1))
    return np.concatenate([part.view(np.uint8) for part in parts])


def _radius(grid: Grid) -> NDArray[np.float32]:
    """How far a product of each row may be from its bound's middle, for activations of length 1.

    Exactly: sqrt(sum (scale * (q % 4 - 1.5))^2), by Cauchy and Schwarz. Two float sums differ from
    it by their rounding: each of at most 2 * groups FMAs, relative to the sum of the magnitudes of
    what is added (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), which is at
    most sqrt(sum (scale * (|q - 128| + 5))^2) per length of the activations. Eight operations more
    stand for what follows the sums. The result is rounded up.
    """
    k = grid.shape[1]
    scale = np.repeat(grid.scale.astype(np.float64), GROUP_INT, axis=1)[:, :k]
    quant = grid.quant.astype(np.float64)
    rest = np.sqrt(np.square(scale * (quant % 4 - 1.5)).sum(axis=1))
    size = np.sqrt(np.square(scale * (np.abs(quant - 128) + 5)).sum(axis=1))
    steps = (2 * grid.scale.shape[1] + 8) * _UNIT_ROUNDOFF
    exact = (rest + 2 * steps / (1 - steps) * size) * (1 + 1e-6)
    out: NDArray[np.float32] = np.nextafter(exact.astype(np.float32), np.float32(np.inf))
    return out


def pack_grid(grid: Grid) -> NDArray[np.uint8]:
    """Packs an int4 or int8 grid: uint8 [matrix_bytes(n, k)]. Padded channels have scale 0."""
    n, k = grid.shape
    tiles, groups = -(-n // TILE_CHANNELS), FORMATS[grid.format].groups(k)
    channels = tiles * TILE_CHANNELS
    int4 = grid.format == "int4"
    blocks = np.zeros((tiles, groups), dtype=_BLOCK_INT4 if int4 else _BLOCK_INT8)
    blocks["scale"] = _by_tile(grid.scale, channels)
    if grid.minimum is not None:
        blocks["minimum"] = _by_tile(grid.minimum, channels)
    full = _padded(grid.quant, channels, groups * GROUP_INT, 0 if int4 else 128)
    # Four K positions of a channel travel together, so they are moved as one 32-bit word.
    words = full.view(np.uint32).reshape(tiles, TILE_CHANNELS, groups, GROUP_INT // 4)
    quads = words.transpose(0, 2, 3, 1)
    if int4:
        packed = quads[:, :, :4] | (quads[:, :, 4:] << np.uint32(4))
    else:
        packed = quads
    blocks["quant"] = np.ascontiguousarray(packed).view(np.uint8).reshape(tiles, groups, -1)
    return blocks.reshape(-1).view(np.uint8)


def unpack_float(data: NDArray[np.uint8], format: str, n: int, k: int) -> NDArray[np.float32]:
    """Float32 [n, k] from a packed `f32` or `bf16` matrix."""
    layout = FORMATS[format]
    _check_size(data, format, n, k)
    tiles, groups = -(-n // TILE_CHANNELS), layout.groups(k)
    stored = data.view("<u2" if format == "bf16" else "<f4")
    blocks = stored.reshape(tiles, groups, TILE_CHANNELS, layout.group).transpose(0, 2, 1, 3)
    full = np.ascontiguousarray(blocks).reshape(tiles * TILE_CHANNELS, -1)[:n, :k]
    return from_bf16(full) if format == "bf16" else np.ascontiguousarray(full)


def unpack_grid(data: NDArray[np.uint8], format: str, n: int, k: int) -> Grid:
    """The grid of a packed int4, int8 or int8_split matrix [n, k]."""
    _check_size(data, format, n, k)
    if format == "int8_split":
        _, lower, upper = split_parts(data, n, k)
        data, format = _join(lower, upper), "int8"
    tiles, groups = -(-n // TILE_CHANNELS), FORMATS[format].groups(k)
    int4 = format == "int4"
    blocks = data.view(_BLOCK_INT4 if int4 else _BLOCK_INT8).reshape(tiles, groups)
    packed = np.ascontiguousarray(blocks["quant"]).view(np.uint32)
    packed = packed.reshape(tiles, groups, -1, TILE_CHANNELS)
    if int4:
        low = np.uint32(0x0F0F0F0F)
        packed = np.concatenate([packed & low, (packed >> np.uint32(4)) & low], axis=2)
    words = np.ascontiguousarray(packed.transpose(0, 3, 1, 2))
    quant = words.view(np.uint8).reshape(tiles * TILE_CHANNELS, groups * GROUP_INT)[:n, :k]
    scale = _by_channel(blocks["scale"], n)
    minimum = _by_channel(blocks["minimum"], n) if int4 else None
    return Grid(format, scale, minimum, np.ascontiguousarray(quant))


def unpack(data: NDArray[np.uint8], format: str, n: int, k: int) -> NDArray[np.float32]:
    """Float32 [n, k] from a packed matrix of any format."""
    if format in ("int4", "int8", "int8_split"):
        return unpack_grid(data, format, n, k).values()
    return unpack_float(data, format, n, k)


def split_parts(
    data: NDArray[np.uint8], n: int, k: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """The bytes of an int8_split matrix [n, k]: radii (f32), lower blocks, upper blocks."""
    tiles, groups = -(-n // TILE_CHANNELS), FORMATS["int8_split"].groups(k)
    lower = 4 * TILE_CHANNELS * tiles
    upper = lower + tiles * groups * _BLOCK_LOWER.itemsize
    return data[:lower], data[lower:upper], data[upper:]


def radii_hold(packed: memoryview, n: int, k: int) -> bool:
    """Whether every channel's radius of an int8_split matrix [n, k] is at least what `pack_split`
    would write: with a smaller one a greedy choice may miss the largest logit."""
    data = np.frombuffer(packed, np.uint8)
    _check_size(data, "int8_split", n, k)
    radii, lower, upper = (
        part.reshape(-(-n // TILE_CHANNELS), -1) for part in split_parts(data, n, k)
    )
    step = max(1, _CHUNK_VALUES // (TILE_CHANNELS * k))
    for first in range(0, len(radii), step):
        part = slice(first, first + step)
        joined = _join(lower[part].reshape(-1), upper[part].reshape(-1))
        channels = min(len(radii[part]) * TILE_CHANNELS, n - first * TILE_CHANNELS)
        least = _radius(unpack_grid(joined, "int8", channels, k))
        if not (radii[part].reshape(-1).view("<f4")[:channels] >= least).all():
            return False
    return True


def _join(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lower and upper blocks of some tiles of int8_split packed as int8."""
    lower, upper = low.view(_BLOCK_LOWER)["quant"], high.view(_BLOCK_UPPER)
    six = upper["quant"]
    blocks = np.empty(len(upper), _BLOCK_INT8)
    blocks["scale"] = upper["scale"]
    quads = blocks["quant"].reshape(-1, 2, 4, 64)
    quads[:, :, :3] = six & np.uint8(0xFC)
    quads[:, :, 3] = 0
    for j in range(4):
        if j < 3:
            quads[:, :, 3] |= (six[:, :, j] & np.uint8(3)) << np.uint8(6 - 2 * j)
        quads[:, :, j] |= (lower >> np.uint8(2 * j)) & np.uint8(3)
    blocks["quant"] = quads.reshape(-1, 512)
    return blocks.view(np.uint8)


def _check_size(data: NDArray[np.uint8], format: str, n: int, k: int) -> None:
    want = FORMATS[format].matrix_bytes(n, k)
    if data.size != want:
        raise ModelError(f"packed {format} matrix [{n}, {k}] has {data.size} bytes, not {want}")


def _padded(values: NDArray, rows: int, columns: int, fill: int) -> NDArray:  # type: ignore[type-arg]
    if values.shape == (rows, columns):
        return np.ascontiguousarray(values)
    out = np.full((rows, columns), fill, dtype=values.dtype)
    out[: values.shape[0], : values.shape[1]] = values
    return out


def _by_tile(values: NDArray[np.float16], channels: int) -> NDArray[np.float16]:
    """[n, groups] -> [tiles, groups, 16], missing channels zero."""
    full = _padded(values, channels, values.shape[1], 0)
    out: NDArray[np.float16] = full.reshape(-1, TILE_CHANNELS, values.shape[1]).transpose(0, 2, 1)
    return out


def _by_channel(values: NDArray[np.float16], n: int) -> NDArray[np.float16]:
    """[tiles, groups, 16] -> [n, groups]."""
    tiles, groups, _ = values.shape
    full = np.ascontiguousarray(values.transpose(0, 2, 1)).reshape(tiles * TILE_CHANNELS, groups)
    return np.ascontiguousarray(full[:n])
