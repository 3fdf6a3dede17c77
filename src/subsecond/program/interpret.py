"""The oracle: runs a program in NumPy, plain or fused, with its own KV store.

Owns: the order of ops and the bookkeeping of sequences. The meaning of an op is in ops_reference.
Knows nothing of files or packed layouts: weights come as f32 arrays, with the name of the format
whose activation grid to use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from subsecond.errors import ModelError
from subsecond.program.ops import KV_FORMATS, OPS, WEIGHT_FORMATS
from subsecond.program.ops_reference import F32, SequenceCache, Step, Weight
from subsecond.program.program import Program

__all__ = ["Interpreter", "SequenceCache"]


class Interpreter:
    """Executes `program` with f32 `weights` (logical name -> [n, k] or [n]).

    `formats` maps a matrix to the weight format whose activation grid its products use (default
    f32: no rounding); its values are expected to lie on that format's grid already. `kv` is the KV
    cache's format. Raises ModelError for missing, unexpected or misshapen weights and for unknown
    formats.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, F32],
        formats: Mapping[str, str] | None = None,
        kv: str = "f32",
    ) -> None:
        formats = formats or {}
        names = {spec.name for spec in program.tensors}
        for name in sorted(set(weights) ^ names):
            raise ModelError(f"tensor {name!r} is {'missing' if name in names else 'unexpected'}")
        for name in sorted(set(formats) - names):
            raise ModelError(f"formats names an unknown tensor {name!r}")
        if kv not in KV_FORMATS:
            raise ModelError(f"kv must be one of {', '.join(KV_FORMATS)}, not {kv!r}")
        self.program = program
        self.kv = kv
        self._weights: dict[str, Weight] = {}
        for spec in program.tensors:
            values = np.ascontiguousarray(weights[spec.name], np.float32)
            weight_format = formats.get(spec.name, "f32")
            if values.shape != spec.shape:
                raise ModelError(
                    f"tensor {spec.name!r} has shape {list(values.shape)}, not {list(spec.shape)}"
                )
            if weight_format not in WEIGHT_FORMATS:
                raise ModelError(f"tensor {spec.name!r}: unknown format {weight_format!r}")
            self._weights[spec.name] = Weight(values, weight_format)

    def step(
        self,
        work: Sequence[tuple[SequenceCache, Sequence[int]]],
        rows: Literal["all", "last"] | Sequence[int] = "last",
    ) -> F32:
        """One step over each sequence's next tokens: logits [R, vocab_size] of the asked rows.

        `rows` are indices into the step's tokens: all, the last of each sequence, or those given.
        The caches advance; a sequence may appear once in a step.
        """
        if len({id(cache) for cache, _ in work}) != len(work):
            raise ModelError("a sequence may appear only once in a step")
        start = [0]
        for _, tokens in work:
            if not tokens:
                raise ModelError("a sequence of a step needs at least one token")
            start.append(start[-1] + len(tokens))
        ids = np.array([t for _, tokens in work for t in tokens], np.int64)
        if not ((ids >= 0) & (ids < self.program.vocab_size)).all():
            raise ModelError(f"token ids must lie in 0..{self.program.vocab_size - 1}")
        positions = np.concatenate(
            [cache.length + np.arange(len(tokens)) for cache, tokens in work]
        )
        if positions.max() >= self.program.max_positions:
            raise ModelError(
                f"position {positions.max()} is beyond max_positions {self.program.max_positions}"
            )
        if rows == "all":
            chosen = np.arange(len(ids))
        else:
            chosen = np.array(start[1:]) - 1 if rows == "last" else np.array(rows, np.int64)
        step = Step(
            ids, positions, tuple(start), chosen, tuple(cache for cache, _ in work), self.kv
        )
        logits = self._run(step)
        for cache, tokens in work:
            cache.length += len(tokens)
        return logits

    def logits(self, tokens: Sequence[int], chunk: int = 0) -> F32:
        """Logits [T, vocab_size] of one prompt, in chunks of `chunk` tokens (0: at once)."""
        cache = SequenceCache()
        size = chunk or max(1, len(tokens))
        parts = [
            self.step([(cache, tokens[i : i + size])], "all") for i in range(0, len(tokens), size)
        ]
        return np.concatenate(parts)

    def _run(self, step: Step) -> F32:
        values: dict[int, F32] = {}
        for op in self.program.ops:
            weights = [self._weights[name] if name else None for name in op.weights]
            inputs = [values[i] for i in op.inputs]
            values[op.output] = OPS[op.kind].reference(inputs, weights, op.attributes, step)
        return values[self.program.output]
