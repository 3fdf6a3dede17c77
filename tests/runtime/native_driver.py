"""Runs a Program natively from f32 arrays: packs them into a file, keeps page tables, steps like
the interpreter.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from subsecond.formats.pack import from_bf16, pack_float, pack_grid, pack_split, to_bf16
from subsecond.formats.quantize import quantize
from subsecond.program.program import Program
from subsecond.runtime import native

F32 = npt.NDArray[np.float32]
ISAS = native.host()["isas"]
MAX_PAGES = 16


@dataclass(frozen=True)
class Place:
    """A tensor of the packed file (native.TensorPlace)."""

    name: str
    kind: str
    format: str
    n: int
    k: int
    offset: int
    size: int


@dataclass
class Packed:
    """A packed file: where its tensors lie, and what the stored values stand for."""

    path: Path
    places: list[Place]
    values: dict[str, F32]


def pack(
    path: Path, program: Program, weights: Mapping[str, F32], formats: Mapping[str, str]
) -> Packed:
    """Writes the tensors of `program`, matrices in their format of `formats` (default f32)."""
    places, values, data = [], {}, bytearray()
    for spec in program.tensors:
        x = np.ascontiguousarray(weights[spec.name], np.float32)
        form = formats.get(spec.name, "f32")
        if spec.kind == "vector":
            raw = x.view(np.uint8)
        elif form in ("int4", "int8"):
            grid = quantize(x, form, spec.name)
            raw, x = pack_grid(grid), grid.values()
        elif form == "int8_split":
            grid = quantize(x, "int8", spec.name)
            raw, x = pack_split(grid), grid.values()
        else:
            raw = pack_float(x, form)
            x = from_bf16(to_bf16(x)) if form == "bf16" else x
        data += bytes(-len(data) % 64)
        places.append(Place(spec.name, spec.kind, form, spec.n, spec.k, len(data), raw.size))
        values[spec.name] = x
        data += raw.tobytes()
    path.write_bytes(data)
    return Packed(path, places, values)


@dataclass
class Text:
    """A sequence on the native side: how much is computed, and its page of each block."""

    pages: list[int]
    length: int = 0


class Driver:
    """One native model with a plan. Pages are given out in a shuffled order of `seed`.

    `apart` keeps every value of a step readable; without it the memory plan is the shipped one.
    """

    def __init__(
        self,
        program: Program,
        packed: Packed,
        *,
        isa: str = "generic",
        threads: int = 1,
        kv: str = "f32",
        seed: int = 0,
        tokens: int = 320,
        pages: int = 64,
        steps: int = 16,
        apart: bool = True,
    ) -> None:
        self.program = program
        self.model = native.build(
            program,
            packed.places,
            native.Weights(str(packed.path)),
            isa=isa,
            threads=threads,
            kv=kv,
            pages=pages,
            limits=native.Limits(tokens, 8, tokens),
            offsets=_apart(program) if apart else None,
        )
        self.plan = native.Plan(self.model, MAX_PAGES, steps)
        self._free = np.random.default_rng(seed).permutation(pages).tolist()

    def sequence(self, positions: int = 512) -> Text:
        blocks = -(-positions // 64)
        taken, self._free = self._free[:blocks], self._free[blocks:]
        return Text(taken)

    def fill(self, work: Sequence[tuple[Text, Sequence[int]]]) -> int:
        """Writes the plan, one row a sequence (its last token); the number of tokens."""
        start = 0
        for s, (sequence, tokens) in enumerate(work):
            self.plan.sequence_start[s] = start
            self.plan.tokens[start : start + len(tokens)] = array("i", tokens)
            start += len(tokens)
            self.plan.position[s] = sequence.length
            self.plan.row[s] = start - 1
            for group in range(len(self.program.groups)):
                table = self.plan.page_table(group)
                table[s * MAX_PAGES : s * MAX_PAGES + len(sequence.pages)] = array(
                    "i", sequence.pages
                )
        self.plan.sequence_start[len(work)] = start
        return start

    def step(self, work: Sequence[tuple[Text, Sequence[int]]], rows: str = "last") -> F32:
        """One step; logits [R, vocab] of all tokens or of the last of each sequence."""
        total = self.fill(work)
        count = total if rows == "all" else len(work)
        for r in range(total if rows == "all" else 0):
            self.plan.row[r] = r
        self.model.run(self.plan, total, len(work), count)
        for sequence, tokens in work:
            sequence.length += len(tokens)
        out = np.empty((count, self.model.vocab), np.float32)
        self.model.logits(out)
        return out

    def value(self, index: int) -> F32:
        """A value of the last step: f32 [rows, width]."""
        width = self.program.values[index].width
        return np.frombuffer(self.model.value(index), np.float32).reshape(-1, width)


def _apart(program: Program) -> list[int]:
    """Offsets that keep every value of a program."""
    offsets, size = [], {"T": 0, "R": 0, "S": 0}
    for value in program.values:
        offsets.append(size[value.rows])
        size[value.rows] += -(-value.width // 16) * 16
    return offsets
