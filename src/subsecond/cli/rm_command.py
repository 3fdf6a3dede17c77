"""`subsecond rm`: removes converted models from the cache."""

from __future__ import annotations

from subsecond.cli import console
from subsecond.cli.options import Rm
from subsecond.errors import InputError
from subsecond.formats.kept import kept, named, remove


def run(options: Rm) -> int:
    """Exit code 0 if what was named is gone."""
    if options.all and options.name is not None:
        raise InputError("a name and --all are both given; leave one of them out")
    if not options.all and not options.name:
        raise InputError("name is missing; give a name of 'subsecond list', or --all")
    for own in kept() if options.all else named(str(options.name)):
        remove(own)
        console.write(f"removed {console.one_line(own.name)} ({own.bytes / 1e6:,.1f} MB)\n")
    return 0
