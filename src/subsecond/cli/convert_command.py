"""`subsecond convert`: a checkpoint becomes an artifact folder."""

from __future__ import annotations

from subsecond.cli import console
from subsecond.cli.options import Convert
from subsecond.cli.stored import kept_line
from subsecond.errors import InputError
from subsecond.formats import artifact
from subsecond.formats.progress import TerminalProgress
from subsecond.formats.stored_program import read_program
from subsecond.tasks.canary import tried


def run(options: Convert) -> int:
    """Exit code 0 if the artifact was written."""
    from subsecond.formats.convert import convert

    if not options.output:
        raise InputError("--output is empty; give the folder to write")
    with TerminalProgress() as progress:
        made = convert(
            options.model,
            options.output,
            options.weights,  # type: ignore[arg-type]
            strict=options.strict,
            progress=progress,
            trial=tried,
        )
    if made.replaced:
        console.note(f"subsecond: replaced the artifact that stood at {made.path}")
    for warning in made.warnings:
        console.warn(warning)
    opened = artifact.open_artifact(made.path, check=False)
    kept = kept_line(opened, read_program(opened))
    if kept is not None:
        console.note(f"subsecond: {kept}")
    if options.json:
        console.write_json(
            {
                "path": str(made.path),
                "tensors": made.tensors,
                "tensors_exact": made.tensors_exact,
                "warnings": made.warnings,
                "replaced": made.replaced,
            }
        )
    else:
        console.write(
            f"{made.path}: {made.tensors} tensors, {made.tensors_exact} taken over exactly\n"
        )
    return 0
