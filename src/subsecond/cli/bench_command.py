"""`subsecond bench`: how fast a model runs here, beside what the machine allows."""

from __future__ import annotations

import msgspec

from subsecond.cli import console
from subsecond.cli.options import Bench, model_given
from subsecond.config import ModelOptions
from subsecond.formats.progress import TerminalProgress


def run(options: Bench) -> int:
    """Exit code 0."""
    from subsecond.bench.decode import Lengths, bench

    lengths = Lengths(
        prompt=options.prompt,
        new=options.new,
        prefill=options.prefill,
        sequences=options.sequences,
        repetitions=options.repetitions,
    )
    with TerminalProgress() as progress:
        result = bench(ModelOptions(**model_given(options)), lengths, progress)
    if options.json:
        console.write_json(msgspec.to_builtins(result))
    else:
        console.write(result.text() + "\n")
    return 0
