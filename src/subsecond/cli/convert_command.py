"""`subsecond convert`: a checkpoint becomes an artifact folder."""

from __future__ import annotations

from subsecond.cli import console
from subsecond.cli.options import Convert
from subsecond.formats.progress import TerminalProgress
from subsecond.tasks.canary import canaries_of


def run(options: Convert) -> int:
    """Exit code 0 if the artifact was written."""
    from subsecond.formats.convert import convert

    with TerminalProgress() as progress:
        made = convert(
            options.model,
            options.output,
            options.weights,  # type: ignore[arg-type]
            strict=options.strict,
            progress=progress,
            canaries=canaries_of,
        )
    for warning in made.warnings:
        console.note(f"subsecond: warning: {warning}")
    if options.json:
        console.write_json(
            {
                "path": str(made.path),
                "tensors": made.tensors,
                "tensors_exact": made.tensors_exact,
                "warnings": made.warnings,
            }
        )
    else:
        console.write(
            f"{made.path}: {made.tensors} tensors, {made.tensors_exact} taken over exactly\n"
        )
    return 0
