"""`subsecond bench`: how fast a model runs here, beside what the machine allows."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from subsecond.cli import console
from subsecond.cli.options import Bench, model_given
from subsecond.config import MAX_SEQUENCES, ModelOptions
from subsecond.errors import InputError
from subsecond.formats.progress import Progress, TerminalProgress

DEFAULTS = {"prompt": 128, "new": 128, "prefill": 512}
"""Lengths in tokens, where the context has room for them."""


def run(options: Bench) -> int:
    """Exit code 0."""
    from subsecond.bench.decode import Lengths, bench

    model = ModelOptions(**model_given(options))
    given = {
        name: getattr(options, name) for name in DEFAULTS if getattr(options, name) is not None
    }
    repeats = {"sequences": options.sequences, "repetitions": options.repetitions}
    Lengths(**repeats, **{"new": 2, **given}).check(1 << 62)  # bad values, before the model is made
    if options.sequences > MAX_SEQUENCES:
        raise InputError(f"sequences is {options.sequences}; it must be at most {MAX_SEQUENCES}")
    with TerminalProgress() as progress:
        context = _context(model, progress)
        chosen = fitting(given, context)
        lengths = Lengths(**repeats, **chosen)
        lengths.check(context)
        progress.close()
        shorter = [
            f"--{name} {value}"
            for name, value in chosen.items()
            if name not in given and value < DEFAULTS[name]
        ]
        if shorter:
            console.note(f"subsecond: the context has {context} tokens; {', '.join(shorter)}")
        result = bench(model, lengths, progress)
    if options.json:
        console.write_json(msgspec.to_builtins(result))
    else:
        console.write(result.text() + "\n")
    return 0


def fitting(given: Mapping[str, int], context: int) -> dict[str, int]:
    """All lengths: those that were given as they are, the others DEFAULTS or what fits beside
    them.
    """
    new = given.get("new", max(2, min(DEFAULTS["new"], context // 2)))
    prompt = given.get("prompt", max(1, min(DEFAULTS["prompt"], context - new)))
    return {
        "prompt": prompt,
        "new": given.get("new", max(2, min(DEFAULTS["new"], context - prompt))),
        "prefill": given.get("prefill", max(1, min(DEFAULTS["prefill"], context - 1))),
    }


def _context(model: ModelOptions, progress: Progress) -> int:
    """Tokens that a prompt and its answer may have."""
    from subsecond.formats import artifact
    from subsecond.formats.locate import locate
    from subsecond.formats.stored_program import read_program

    opened = artifact.open_artifact(
        locate(model.model, model.weights, progress=progress),  # type: ignore[arg-type]
        check=False,
    )
    return model.context or read_program(opened).max_positions
