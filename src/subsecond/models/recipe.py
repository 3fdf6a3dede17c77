"""Recipe: how a program's tensor comes from a checkpoint's tensors.

Owns: the description and its application to a NumPy array. Knows nothing of file formats; a loader
that wants to take quantized rows over unchanged can do so wherever a recipe only selects rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from subsecond.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Rows start + i * stride ... + size, for i in 0..count-1, one after another."""

    start: int
    size: int
    stride: int = 0
    count: int = 1

    def indices(self) -> list[int]:
        return [
            self.start + i * self.stride + j for i in range(self.count) for j in range(self.size)
        ]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Applied in this order: `source` is read as f32, transposed, its rows selected, `add` added.

    A tensor without a source is computed: its f32 `values` are given here. `shape` is the source's
    own shape.
    """

    source: str | None
    shape: tuple[int, ...] = ()
    transpose: bool = False
    rows: RowBlocks | None = None
    add: float = 0.0
    values: tuple[float, ...] = ()

    def apply(self, tensors: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The tensor as contiguous f32. `tensors` maps checkpoint names to f32 arrays.

        Raises ModelError where the source is absent or has another shape.
        """
        import numpy as np

        if self.source is None:
            return np.array(self.values, np.float32)
        if self.source not in tensors:
            raise ModelError(f"tensor {self.source!r} is missing from the checkpoint")
        array = tensors[self.source]
        if array.shape != self.shape:
            raise ModelError(
                f"tensor {self.source!r} has shape {list(array.shape)}, not {list(self.shape)}"
            )
        if self.transpose:
            array = array.T
        if self.rows is not None:
            array = array[self.rows.indices()]
        if self.add:
            array = array + np.float32(self.add)
        return np.ascontiguousarray(array, np.float32)
