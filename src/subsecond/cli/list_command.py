"""`subsecond list`: the converted models of the cache."""

from __future__ import annotations

import time

from subsecond.cli import console
from subsecond.cli.options import List
from subsecond.formats import cache
from subsecond.formats.kept import Kept, kept


def run(options: List) -> int:
    """Exit code 0, also for an empty cache."""
    found = kept()
    if options.json:
        models = [
            {
                "name": own.name,
                "model": own.model,
                "weights": own.weights,
                "source": own.source,
                "bytes": own.bytes,
                "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(own.made)),
                "path": str(own.path),
            }
            for own in found
        ]
        console.write_json({"home": str(cache.home()), "models": models})
        return 0
    rows = [("NAME", "MODEL", "WEIGHTS", "SIZE", "SOURCE", "DATE"), *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if found else []:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.write("  ".join(cells).rstrip() + "\n")
    total = sum(own.bytes for own in found) / 1e6
    count = f"{len(found)} model{'' if len(found) == 1 else 's'}"
    console.note(f"subsecond: {count}, {total:,.1f} MB in {cache.home() / 'models'}")
    return 0


def _row(own: Kept) -> tuple[str, ...]:
    size, date = f"{own.bytes / 1e6:,.1f} MB", time.strftime("%Y-%m-%d", time.localtime(own.made))
    cells = (own.name, own.model, own.weights, size, own.source or "unreadable", date)
    return tuple(console.one_line(cell) for cell in cells)
