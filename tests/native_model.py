"""A native model made from plain arrays: logits of one prompt, as the interpreter gives them.

Import it only where `subsecond._native` is built.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from subsecond.program.program import Program

sys.path.insert(0, str(Path(__file__).resolve().parent / "runtime"))
from native_driver import F32, Driver, pack


class NativeModel:
    """`program` with f32 `weights` on the native executor, in the memory plan that is shipped."""

    def __init__(
        self, program: Program, weights: Mapping[str, F32], *, isa: str, threads: int = 1
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:  # the mapping outlives the file's name
            packed = pack(Path(folder) / "weights.bin", program, weights, {})
            self._driver = Driver(program, packed, isa=isa, threads=threads, apart=False)
        self._sequence = self._driver.sequence(512)

    def logits(self, tokens: Sequence[int], chunk: int = 0) -> F32:
        """Logits [T, vocab_size] of one prompt, in chunks of `chunk` tokens (0: at once)."""
        self._sequence.length = 0
        size = chunk or len(tokens)
        parts = [tokens[i : i + size] for i in range(0, len(tokens), size)]
        return np.concatenate(
            [self._driver.step([(self._sequence, part)], "all") for part in parts]
        )
