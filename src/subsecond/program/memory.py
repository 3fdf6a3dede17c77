"""The memory plan: where each value of a program lies while it lives.

Owns: lifetimes and offsets. Knows nothing of bytes or of how many rows a step has: an offset
counts f32 values a row, in the arena of the value's kind of rows, and becomes an address once the
executor knows its largest step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from subsecond.program.ops import ROWS
from subsecond.program.program import Program

ALIGNMENT = 16  # f32 values: one cache line, and one tile of channels

# Ops that read element i of their inputs only to write element i of their output. Not linear with
# a residual: its products are written before the residual is read.
ELEMENTWISE = frozenset({"activation", "gated", "add", "scale", "softcap"})


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """offsets[v]: place of value v in its arena; size[rows]: f32 values a row that the arena of T,
    R or S needs.
    """

    offsets: tuple[int, ...]
    size: Mapping[str, int]


def padded(width: int) -> int:
    """The room a value of that width takes."""
    return -(-width // ALIGNMENT) * ALIGNMENT


def lifetimes(program: Program) -> list[tuple[int, int]]:
    """Per value: index of the op that makes it, and of the last that reads it (output: the end)."""
    first = {op.output: index for index, op in enumerate(program.ops)}
    last = dict(first)
    for index, op in enumerate(program.ops):
        for value in op.inputs:
            last[value] = index
    last[program.output] = len(program.ops)
    return [(first[value], last[value]) for value in range(len(program.values))]


def plan(program: Program, in_place: Collection[str] = ELEMENTWISE) -> MemoryPlan:
    """Offsets such that values that live at the same time never overlap.

    An op of a kind in `in_place` may write its result over an input that it is the last to read.
    """
    spans = lifetimes(program)
    offsets = [0] * len(program.values)
    size = dict.fromkeys(ROWS, 0)
    live: list[int] = []
    for index, op in enumerate(program.ops):
        value = program.values[op.output]
        over = _replaceable(program, op.inputs, spans, index) if op.kind in in_place else None
        live = [v for v in live if spans[v][1] >= index and v != over]
        width = padded(value.width)
        if over is not None and program.values[over] == value:
            offset = offsets[over]
        else:
            offset = _first_fit(program, live, offsets, value.rows, width)
        offsets[op.output] = offset
        size[value.rows] = max(size[value.rows], offset + width)
        live.append(op.output)
    return MemoryPlan(tuple(offsets), size)


def _replaceable(
    program: Program, inputs: tuple[int, ...], spans: list[tuple[int, int]], index: int
) -> int | None:
    """The first input that dies at op `index`."""
    return next((value for value in inputs if spans[value][1] == index), None)


def _first_fit(program: Program, live: list[int], offsets: list[int], rows: str, width: int) -> int:
    """The lowest free offset of `width` in the arena of `rows`."""
    taken = sorted(
        (offsets[v], offsets[v] + padded(program.values[v].width))
        for v in live
        if program.values[v].rows == rows
    )
    offset = 0
    for begin, end in taken:
        if begin - offset >= width:
            break
        offset = max(offset, end)
    return offset
