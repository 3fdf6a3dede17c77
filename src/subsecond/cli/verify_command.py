"""`subsecond verify`: every claim of an artifact, tried here, a line each."""

from __future__ import annotations

import sys

import msgspec

from subsecond.cli import console
from subsecond.cli.options import Verify
from subsecond.config import ModelOptions
from subsecond.errors import InputError
from subsecond.formats.locate import locate
from subsecond.formats.progress import TerminalProgress
from subsecond.tasks.canary import tried
from subsecond.tasks.verify import Claim, verify

UNDECIDED = 3


def run(options: Verify) -> int:
    """Exit code 0 if every claim holds, 1 if one is refuted, 3 if this machine can't decide one."""
    ModelOptions(threads=options.threads)  # refuses a number out of its range, before any work
    if not options.artifact or "\0" in options.artifact:
        raise InputError("the artifact's name is empty; give its folder")
    claims: list[Claim] = []
    with TerminalProgress() as progress:
        path = locate(
            options.artifact,
            options.weights,  # type: ignore[arg-type]
            progress=progress,
            trial=tried,
        )
        shown = progress if sys.stderr.isatty() else None  # a check takes seconds
        for claim in verify(path, threads=options.threads, progress=shown):
            progress.close()
            if not options.json:
                _show(claims, claim)
            claims.append(claim)
        if not options.json:
            _show(claims, None)
    outcomes = {claim.outcome for claim in claims}
    outcome = next((o for o in ("refuted", "undecided") if o in outcomes), "holds")
    if options.json:
        console.write_json(
            {
                "artifact": options.artifact,
                "path": str(path),
                "outcome": outcome,
                "claims": [msgspec.to_builtins(claim) for claim in claims],
            }
        )
    elif outcome == "holds" and not any(claim.kind == "canary" for claim in claims):
        console.note("subsecond: the certificate records no answers, so none was asked for")
    return {"holds": 0, "refuted": 1, "undecided": UNDECIDED}[outcome]


def _show(before: list[Claim], claim: Claim | None) -> None:
    """The line of the next claim. Tensors that hold have one line together, after the last of
    them; there may be thousands.
    """
    if before and before[-1].kind == "xxh3" and (claim is None or claim.kind != "xxh3"):
        tensors = [own for own in before if own.kind == "xxh3" and own.outcome == "holds"]
        if tensors:
            console.write(f"{len(tensors)} tensors: xxh3: holds\n")
    if claim is not None and not (claim.kind == "xxh3" and claim.outcome == "holds"):
        console.write(f"{console.one_line(claim.text())}\n")
