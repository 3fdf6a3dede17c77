"""The state of a text after its last token, which embeddings are made of.

Owns: where a program has it (before the output matrix) and the norm that is fused into that matrix.
Does not know: requests, pooling, the length of a vector.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

from subsecond.errors import RuntimeFailure, UnsupportedError
from subsecond.program import memory
from subsecond.program.program import Op, Program
from subsecond.runtime import native


class FinalState:
    """Reads it of a model that has just done a step. UnsupportedError for a program whose output
    isn't made by one matrix of such a state.
    """

    def __init__(
        self, program: Program, tensors: Sequence[native.TensorPlace], weights: native.Weights
    ) -> None:
        op, behind = _output_matrix(program)
        self.value = op.inputs[0]
        self.width = program.values[self.value].width
        self._kind, self._eps = str(op.attributes["norm"]), float(op.attributes["eps"])
        if _is_overwritten(program, self.value, behind):
            raise UnsupportedError(
                "this model's final state isn't there any more when a step has ended, so it can't "
                "make embeddings"
            )
        places = {tensor.name: tensor for tensor in tensors}
        names = op.weights[-2:]
        self._weight, self._bias = (_vector(places[n], weights) if n else None for n in names)

    def read(self, model: native.Model, row: int) -> array[float]:
        """float32 [width] of a row of the last step, normed as the output matrix has it.
        RuntimeFailure if it isn't finite.
        """
        whole = memoryview(model.value(self.value)).cast("f")
        state = array("f", whole[row * self.width : (row + 1) * self.width])
        if self._kind != "none":
            state = self._normed(state)
        if not all(map(math.isfinite, state)):
            raise RuntimeFailure("the model's final state is NaN or infinite: a value overflowed")
        return state

    def _normed(self, state: array[float]) -> array[float]:
        mean = sum(state) / self.width if self._kind == "layer" else 0.0
        centred = [value - mean for value in state] if mean else list(state)
        variance = sum(value * value for value in centred) / self.width
        factor = 1.0 / math.sqrt(variance + self._eps)
        normed = [value * factor for value in centred]
        if self._weight is not None:
            normed = [value * own for value, own in zip(normed, self._weight, strict=True)]
        if self._bias is not None:
            normed = [value + own for value, own in zip(normed, self._bias, strict=True)]
        return array("f", normed)


def _output_matrix(program: Program) -> tuple[Op, list[Op]]:
    """The op that makes logits of states, and what is done to them behind it."""
    makers = {op.output: op for op in program.ops}
    behind: list[Op] = []
    op = makers[program.output]
    while op.kind in ("softcap", "scale"):
        behind.append(op)
        op = makers[op.inputs[0]]
    a = op.attributes
    if op.kind != "linear" or len(op.weights) != 4 or a["gate"] != "none" or a["residual"]:
        raise UnsupportedError(
            f"this model's logits are made by {op.kind} with {len(op.weights)} weights, so it "
            "can't make embeddings"
        )
    return op, behind


def _is_overwritten(program: Program, value: int, behind: Sequence[Op]) -> bool:
    """Whether the memory plan gives a later value the place of this one."""
    offsets = memory.plan(program).offsets

    def span(index: int) -> range:
        return range(offsets[index], offsets[index] + memory.padded(program.values[index].width))

    own = span(value)
    later = [span(op.output) for op in behind if program.values[op.output].rows == "R"]
    return any(own.start < other.stop and other.start < own.stop for other in later)


def _vector(place: native.TensorPlace, weights: native.Weights) -> array[float]:
    """A norm's weights: float32 [n]."""
    data = memoryview(weights)[place.offset : place.offset + 4 * place.n]
    return array("f", bytes(data))
