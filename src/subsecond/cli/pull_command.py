"""`subsecond pull`: fetch, convert, check every byte."""

from __future__ import annotations

from subsecond.cli import console
from subsecond.cli.options import Pull
from subsecond.formats.locate import pull
from subsecond.formats.progress import TerminalProgress
from subsecond.tasks.canary import tried


def run(options: Pull) -> int:
    """Exit code 0 if the model is here and whole."""
    with TerminalProgress() as progress:
        path = pull(
            options.model,
            options.weights,  # type: ignore[arg-type]
            progress=progress,
            trial=tried,
        )
    if options.json:
        console.write_json({"model": options.model, "path": str(path)})
    else:
        console.write(f"{path}\n")
    return 0
