"""In which formats an artifact's matrices are stored, and where that isn't what was asked for.

Owns: the counting and its words. Does not know: why convert keeps a grid (it is exact, and smaller
or equal in error to any other choice).
"""

from __future__ import annotations

from subsecond.cli import console
from subsecond.formats import artifact
from subsecond.program.program import Program

GRIDS = ("int4", "int8")


def matrix_formats(opened: artifact.Artifact) -> dict[str, int]:
    """Number of matrices by format, in the order of the file."""
    counts: dict[str, int] = {}
    for tensor in opened.manifest.tensors:
        if tensor.kind == "matrix":
            grid = _grid(tensor.format)
            counts[grid] = counts.get(grid, 0) + 1
    return counts


def kept_grids(opened: artifact.Artifact, program: Program) -> dict[str, int]:
    """Number of matrices that were kept on the grid that they had, by its format, where the chosen
    weights say otherwise. (An embedding or output matrix is int8 under int4 by choice.)
    """
    weights = opened.manifest.weights
    if weights not in GRIDS:
        return {}
    linear = {spec.name for spec in program.tensors if spec.role == "linear"}
    counts: dict[str, int] = {}
    for tensor in opened.manifest.tensors:
        if tensor.kind != "matrix" or _grid(tensor.format) == weights:
            continue
        if weights == "int8" or tensor.name in linear:
            grid = _grid(tensor.format)
            counts[grid] = counts.get(grid, 0) + 1
    return counts


def _grid(format: str) -> str:
    """int8_split holds int8's values in another order of bytes."""
    return "int8" if format == "int8_split" else format


def say_where(opened: artifact.Artifact) -> None:
    """A line about the place of a model that has just been converted."""
    console.note(f"subsecond: converted once, kept at {console.one_line(str(opened.path))}")


def kept_line(opened: artifact.Artifact, program: Program) -> str | None:
    """One line for people about `kept_grids`, None if there are none."""
    kept = kept_grids(opened, program)
    if not kept:
        return None
    total = sum(matrix_formats(opened).values())
    parts = ", ".join(
        f"{count} of {total} matrices already lie on the {format} grid and were kept so, exactly"
        for format, count in kept.items()
    )
    return f"weights {opened.manifest.weights}: {parts}"
