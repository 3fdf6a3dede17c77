"""The difference of logits between a checkpoint and its artifact, in float32, one tensor in memory
at a time.

Owns: the fixed prompts and the comparison. The meaning of an op is program/ops_reference.py's;
activations are not rounded here, so the figure is what the stored weights alone cost. Knows nothing
of checkpoint formats.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from subsecond.formats.artifact import Tensor
from subsecond.formats.certificate import LogitsDifference
from subsecond.formats.pack import unpack
from subsecond.program.ops import OPS
from subsecond.program.ops_reference import SequenceCache, Step, Weight
from subsecond.program.program import Program

Load = Callable[[str], NDArray[np.float32]]
_PROMPTS, _PROMPT_TOKENS = 2, 16


class StoredTensors:
    """The tensors of a mapped weights.bin as float32."""

    def __init__(self, data: mmap.mmap, tensors: Iterable[Tensor]) -> None:
        self._data = data
        self._tensors = {tensor.name: tensor for tensor in tensors}

    def read(self, name: str) -> NDArray[np.float32]:
        """A matrix [n, k] or a vector [n], as stored. The result is a copy."""
        tensor = self._tensors[name]
        # A slice copies: no array may keep the mapping alive.
        raw = np.frombuffer(self._data[tensor.offset : tensor.offset + tensor.size], np.uint8)
        if tensor.kind == "vector":
            return raw.view("<f4")
        return unpack(raw, tensor.format, tensor.n, tensor.k)


def compare(program: Program, source: Load, stored: Load) -> LogitsDifference:
    """Runs the same pseudo-random prompts with both sets of weights. `program` is the plain one."""
    length = min(_PROMPT_TOKENS, program.max_positions)
    # Any spread of ids serves: a large odd stride walks over the whole vocabulary.
    ids = np.arange(_PROMPTS * length, dtype=np.int64) * 2654435761 % program.vocab_size
    a, b = (_logits(program, load, ids.reshape(_PROMPTS, length)) for load in (source, stored))
    difference = float(np.abs(a - b).max())
    return LogitsDifference("measured", ids.size, difference, float(a.std()))


def _logits(program: Program, load: Load, prompts: NDArray[np.int64]) -> NDArray[np.float32]:
    count, length = prompts.shape
    step = Step(
        prompts.reshape(-1),
        np.tile(np.arange(length), count),
        tuple(range(0, count * length + 1, length)),
        np.arange(count * length),
        tuple(SequenceCache() for _ in range(count)),
        "f32",
    )
    values: dict[int, NDArray[np.float32]] = {}
    for op in program.ops:
        weights = [Weight(load(name), "f32") if name else None for name in op.weights]
        inputs = [values[index] for index in op.inputs]
        values[op.output] = OPS[op.kind].reference(inputs, weights, op.attributes, step)
    return values[program.output]


def divergence(exact: Sequence[memoryview[float]], others: Sequence[memoryview[float]]) -> float:
    """Mean Kullback-Leibler divergence of the distributions that rows of float32 logits give, nats:
    how far `others` lie from `exact`. NaN where a row isn't finite.
    """
    total = 0.0
    for row, other in zip(exact, others, strict=True):
        p, q = (np.asarray(x, dtype=np.float64) for x in (row, other))
        p, q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (p, q))
        total += float((np.exp(p) * (p - q)).sum())
    return total / max(len(exact), 1)
