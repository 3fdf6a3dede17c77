"""`subsecond keys`: makes, lists and revokes the API keys of `subsecond serve`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

from subsecond.cli import console
from subsecond.cli.server_options import Keys
from subsecond.errors import InputError
from subsecond.serve.keys import Key, KeyFile, Right, default_path
from subsecond.serve.limits import KeyLimits

_OF_CREATE = ("right", "requests_per_minute", "tokens_per_minute", "concurrency", "priority")


def run(options: Keys) -> int:
    """Exit code 0 if what was asked for is done."""
    file = KeyFile(Path(options.keys).expanduser() if options.keys else default_path())
    if options.action != "create":
        for name in _OF_CREATE:
            if getattr(options, name) is not None:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is only for 'keys create'; leave it out")
    if options.action == "list":
        if options.name is not None:
            raise InputError("'keys list' takes no name; leave it out")
        return _list(file, options.json)
    if not options.name:
        raise InputError(f"name is missing; give the key's: subsecond keys {options.action} NAME")
    return _create(file, options) if options.action == "create" else _revoke(file, options)


def _create(file: KeyFile, options: Keys) -> int:
    limits = KeyLimits(
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        concurrency=options.concurrency,
    )
    rights = cast(list[Right], options.right or ["use"])
    secret, key = file.create(str(options.name), rights, limits, options.priority or 0)
    if options.json:
        console.write_json({"key": secret, **_plain(key)})
        return 0
    console.write(secret + "\n")
    console.note(
        f"subsecond: key {key.id} ({console.one_line(key.name)}) may {', '.join(key.rights)}; it "
        "is shown only now"
    )
    return 0


def _revoke(file: KeyFile, options: Keys) -> int:
    key = file.revoke(str(options.name))
    if options.json:
        console.write_json(_plain(key))
    else:
        console.write(f"revoked {key.id} ({console.one_line(key.name)})\n")
    return 0


def _list(file: KeyFile, as_json: bool) -> int:
    keys = file.read()
    if as_json:
        console.write_json({"keys": [_plain(own) for own in keys]})
        return 0
    rows = [("ID", "NAME", "RIGHTS", "LIMITS", "PRIORITY", "CREATED", "REVOKED"), *map(_row, keys)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if keys else []:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.write("  ".join(cells).rstrip() + "\n")
    console.note(f"subsecond: {len(keys)} key{'' if len(keys) == 1 else 's'} in {file.path}")
    return 0


def _row(key: Key) -> tuple[str, ...]:
    limits = (
        (key.limits.requests_per_minute, "requests/min"),
        (key.limits.tokens_per_minute, "tokens/min"),
        (key.limits.concurrency, "at once"),
    )
    shown = ", ".join(f"{value} {unit}" for value, unit in limits if value is not None) or "none"
    cells = (
        key.id, key.name, ",".join(key.rights), shown, str(key.priority), _date(key.created),
        "" if key.revoked is None else _date(key.revoked),
    )  # fmt: skip
    return tuple(console.one_line(cell) for cell in cells)


def _plain(key: Key) -> dict[str, Any]:
    """What may be shown of a key: all but the hash."""
    return {
        "id": key.id,
        "name": key.name,
        "rights": list(key.rights),
        "requests_per_minute": key.limits.requests_per_minute,
        "tokens_per_minute": key.limits.tokens_per_minute,
        "concurrency": key.limits.concurrency,
        "priority": key.priority,
        "created": _date(key.created),
        "revoked": None if key.revoked is None else _date(key.revoked),
    }


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
