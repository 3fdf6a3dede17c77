"""The ledger: what was promised, and what became of it, by key and model.

Owns: the counts, their one law (promised = kept + broken + cancelled + open), and their file. The
file is JSON lines, each with the absolute counts of one row, so that reading a line twice, or
losing the last one, changes nothing else; it is appended to every half second, and replaced by its
own summary when it has grown. A crash loses at most the last second; promises that were open then
are broken. Does not know: deadlines, HTTP.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from subsecond.errors import InputError
from subsecond.serve.journal import Ticker, lines_of

INTERVAL_S = 0.5
MAX_ROWS = 10_000
"""Pairs of key and model that are counted apart; what comes beyond them is counted together."""
COMPACT_BYTES = 4 << 20

Broken = Literal["late", "short", "error", "engine", "lost"]
Declined = Literal[
    "deadline",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrency",
    "full",
    "draining",
    "not_ready",
]
OTHERS = "(others)"
MAX_NAME_CHARACTERS = 256
_BROKEN, _DECLINED = frozenset(get_args(Broken)), frozenset(get_args(Declined))

_Reason = TypeVar("_Reason", bound=str)
Count = Annotated[int, Meta(ge=0, le=2**62)]


class Row(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Counts of one key and model since the ledger began.

    kept: the end was sent in time with the promised tokens, or a natural stop. broken, declined: by
    reason; "lost" promises were open when the server died. cancelled: the client left.
    """

    key: Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]
    model: Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]
    promised: Count = 0
    kept: Count = 0
    cancelled: Count = 0
    broken: dict[Broken, Count] = {}
    declined: dict[Declined, Count] = {}

    @property
    def open(self) -> int:
        """Promises that have not ended."""
        return self.promised - self.kept - self.cancelled - sum(self.broken.values())

    def add(self, other: Row) -> None:
        """Adds another row's counts to these."""
        self.promised += other.promised
        self.kept += other.kept
        self.cancelled += other.cancelled
        _add(self.broken, other.broken)
        _add(self.declined, other.declined)


class Promise:
    """A promise that was made. It ends once: kept, broken or cancelled; what is said later is
    passed over.
    """

    __slots__ = ("_ledger", "_row", "ended")

    def __init__(self, ledger: Ledger, row: Row) -> None:
        self._ledger = ledger
        self._row = row
        self.ended = False

    def keep(self) -> None:
        """It was kept."""
        self._ledger._end(self, self._row, "kept", None)

    def break_(self, reason: Broken) -> None:
        """It was broken."""
        if reason not in _BROKEN:
            raise ValueError(f"{reason!r} is no reason of the ledger")
        self._ledger._end(self, self._row, "broken", reason)

    def cancel(self) -> None:
        """The client left, and so nobody can be disappointed."""
        self._ledger._end(self, self._row, "cancelled", None)


class Ledger:
    """The counts in memory and in a file (None: in memory only). May be used by several threads.

    `problem` says why the file could not be written last, if it couldn't; the counts go on, and
    are written as soon as it can be.
    """

    def __init__(self, path: Path | None = None, *, interval_s: float | None = INTERVAL_S) -> None:
        """Reads the file, and writes it anew without what was damaged in it (`damaged_lines`).
        interval_s: None leaves it to the caller to `flush`. OSError if it can't be written,
        InputError if another process has it.
        """
        self._path = path
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._rows: dict[tuple[str, str], Row] = {}
        self._changed: set[tuple[str, str]] = set()
        self._bytes = 0
        self.damaged_lines = 0
        self.problem: str | None = None
        self._ticker: Ticker | None = None
        self._held: int | None = None
        if path is not None:
            self._held = _hold(path)
            self._load(path)
            self._compact(path)
            if interval_s is not None:
                self._ticker = Ticker(self.flush, interval_s)

    def promise(self, key: str, model: str) -> Promise:
        """Counts a promise."""
        with self._lock:
            row = self._row(key, model)
            row.promised += 1
            return Promise(self, row)

    def decline(self, key: str, model: str, reason: Declined) -> None:
        """Counts a request that was declined at once."""
        if reason not in _DECLINED:
            raise ValueError(f"{reason!r} is no reason of the ledger")
        with self._lock:
            counts = self._row(key, model).declined
            counts[reason] = counts.get(reason, 0) + 1

    def rows(self) -> list[Row]:
        """A copy of all rows."""
        with self._lock:
            return [_copy(row) for row in self._rows.values()]

    def total(self) -> Row:
        """The sum of all rows, with empty names."""
        total = Row(key="", model="")
        for row in self.rows():
            total.add(row)
        return total

    def flush(self) -> None:
        """Writes what has changed, and forces it to the disk."""
        if self._path is None:
            return
        with self._writing:
            with self._lock:
                names, self._changed = self._changed, set()
                lines = [msgspec.json.encode(self._rows[name]) for name in names]
            if not lines:
                return
            try:
                if self._bytes > COMPACT_BYTES:
                    self._compact(self._path)
                else:
                    self._append(self._path, lines)
                self.problem = None
            except OSError as error:
                self.problem = error.strerror or str(error)
                # Part of a line may be written: the next attempt writes the whole file.
                self._bytes = COMPACT_BYTES + 1
                with self._lock:
                    self._changed |= names

    def close(self) -> None:
        """Writes what has changed; afterwards nothing is written by itself."""
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None
        self.flush()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _end(
        self,
        promise: Promise,
        row: Row,
        how: Literal["kept", "broken", "cancelled"],
        reason: Broken | None,
    ) -> None:
        with self._lock:
            if promise.ended:
                return
            promise.ended = True
            if reason is not None:
                row.broken[reason] = row.broken.get(reason, 0) + 1
            elif how == "kept":
                row.kept += 1
            else:
                row.cancelled += 1
            self._changed.add((row.key, row.model))

    def _row(self, key: str, model: str) -> Row:
        name = (key[:MAX_NAME_CHARACTERS], model[:MAX_NAME_CHARACTERS])
        if name not in self._rows and len(self._rows) >= MAX_ROWS:
            name = (OTHERS, OTHERS)
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = Row(key=name[0], model=name[1])
        self._changed.add(name)
        return row

    def _load(self, path: Path) -> None:
        decoder = msgspec.json.Decoder(Row)
        for line in lines_of(path):
            if not line:
                continue
            try:
                row = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.damaged_lines += 1
                continue
            name = (row.key, row.model)
            if name in self._rows or len(self._rows) <= MAX_ROWS:
                self._rows[name] = _latest(self._rows.get(name), row)
        for row in self._rows.values():
            if row.open > 0:
                row.broken["lost"] = row.broken.get("lost", 0) + row.open

    def _append(self, path: Path, lines: list[bytes]) -> None:
        data = b"".join(line + b"\n" for line in lines)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:  # somebody has deleted it
            self._compact(path)
            return
        try:
            written = os.write(descriptor, data)
            if written < len(data):
                raise OSError(28, "the disk is full")
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self._bytes += len(data)

    def _compact(self, path: Path) -> None:
        """Replaces the file by one line a row."""
        with self._lock:
            data = b"".join(msgspec.json.encode(row) + b"\n" for row in self._rows.values())
        fresh = path.parent / f".{path.name}.tmp-{secrets.token_hex(6)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with open(os.open(fresh, flags, 0o600), "wb") as file:  # noqa: PTH123 (a descriptor)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            with suppress(FileNotFoundError):
                fresh.unlink()
        self._bytes = len(data)


def _hold(path: Path) -> int:
    """A lock that ends with the process: two writers would count over each other."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = path.parent / f".{path.name}.lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"another server writes the ledger {path}; give each server its own"
        ) from None
    return descriptor


def reasons() -> Iterator[tuple[str, str]]:
    """Every (outcome, reason) that a row can count, for metrics that begin at 0."""
    yield from (("broken", reason) for reason in get_args(Broken))
    yield from (("declined", reason) for reason in get_args(Declined))


def _copy(row: Row) -> Row:
    return msgspec.structs.replace(row, broken=dict(row.broken), declined=dict(row.declined))


def _add(to: dict[_Reason, int], more: dict[_Reason, int]) -> None:
    for reason, count in more.items():
        to[reason] = to.get(reason, 0) + count


def _latest(old: Row | None, new: Row) -> Row:
    """Counts only grow, so of two states of a row the larger numbers are the later ones."""
    if old is None:
        return new
    return Row(
        key=new.key,
        model=new.model,
        promised=max(old.promised, new.promised),
        kept=max(old.kept, new.kept),
        cancelled=max(old.cancelled, new.cancelled),
        broken={
            reason: max(old.broken.get(reason, 0), new.broken.get(reason, 0))
            for reason in {**old.broken, **new.broken}
        },
        declined={
            reason: max(old.declined.get(reason, 0), new.declined.get(reason, 0))
            for reason in {**old.declined, **new.declined}
        },
    )
