"""The stored weight formats as numbers: group sizes, block sizes and the bytes of a packed matrix.

Owns: Python's copy of the constants in csrc/kernels/formats.h (a test keeps the two equal). Does
not import NumPy, so that an artifact can be checked without it, and knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE_CHANNELS = 16
GROUP_INT = 32
ALIGNMENT = 64  # every tensor of weights.bin starts at a multiple of this many bytes

# No dimension and no file of ours reaches this; anything beyond it is damage, and products below it
# cannot overflow the runtime's int64 arithmetic.
LIMIT_DIMENSION = 1 << 31
LIMIT_BYTES = 1 << 48


@dataclass(frozen=True)
class Format:
    """One stored format: K positions in a block, and bytes of a block of 16 channels."""

    name: str
    group: int
    block_bytes: int
    tile_extra: int = 0  # bytes that a tile has besides its blocks
    seldom_bytes: int = 0  # bytes of a block that a greedy choice among its products leaves out

    def groups(self, k: int) -> int:
        return -(-k // self.group)

    def matrix_bytes(self, n: int, k: int) -> int:
        """Bytes of a packed matrix [n, k], padding included."""
        return -(-n // TILE_CHANNELS) * (self.groups(k) * self.block_bytes + self.tile_extra)

    def greedy_bytes(self, n: int, k: int) -> int:
        """Bytes of a packed matrix [n, k] that a greedy choice among its products reads."""
        return self.matrix_bytes(n, k) - -(-n // TILE_CHANNELS) * self.groups(k) * self.seldom_bytes


FORMATS = {
    f.name: f
    for f in (
        Format("f32", 1, 64),
        Format("bf16", 2, 64),
        Format("int8", GROUP_INT, 544),
        Format("int4", GROUP_INT, 320),
        Format("int8_split", GROUP_INT, 544, 4 * TILE_CHANNELS, 128),
    )
}


def align(offset: int) -> int:
    """The first multiple of ALIGNMENT that is not below `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
