"""The program of an opened artifact, with errors that name its file.

Owns: nothing else. Does not know: what is done with the program.
"""

from __future__ import annotations

from subsecond.formats import artifact, files
from subsecond.program.program import Program


def read_program(opened: artifact.Artifact) -> Program:
    """Raises ModelError naming the file and the fix where it is no valid program."""
    place = f"{opened.path}/{artifact.PROGRAM}"
    with files.named(place, fix=artifact.again(opened.path)):
        return Program.from_json(opened.read(artifact.PROGRAM))
