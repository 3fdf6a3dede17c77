"""Answers that are given again to the very same question, kept on disk.

Owns: what makes two questions the same, what of an answer is kept, the file for it (SQLite, bounded
in bytes, least recently used first out), and the thread that uses it. Does not know: HTTP, how
answers are written. `redis_answers` keeps them elsewhere.

Within one executor an answer does not depend on what else is computed, so a greedy or seeded one is
the same whenever it is asked for. The key is a hash of all that decides it: the artifact's files,
the machine and build that compute, the token ids, every sampling field, and the tenant, so that
nobody learns what another has asked. Questions are not kept, answers are, for the operator's eyes
alone (mode 0600).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from subsecond.engine.messages import SamplingFields, TokenLogprob

log = logging.getLogger(__name__)

T = TypeVar("T")

FILE = "answers.sqlite3"
LARGEST_SHARE = 16  # an answer of more than a sixteenth of the cache is not kept
DROPPED_SHARE = 32  # what makes room: so much of the cache at once
PENDING = 64  # answers that wait to be written
TOUCH_S = 60.0  # use is noted no finer
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, value BLOB NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON answers (used);
"""


class KeptText(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One text of an answer, as `choice_text.Piece` has it."""

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: Literal["stop", "length"]


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(list[KeptText]).decode


class Answers(Protocol):
    """Where answers are kept. What can't be found, for whatever reason, is a miss."""

    problem: str | None

    async def find(self, key: bytes) -> list[KeptText] | None:
        """The answer of a question, if it was given before."""
        ...

    def keep(self, key: bytes, texts: list[KeptText]) -> None:
        """Keeps an answer, soon. Never waits; what comes too fast is not kept."""
        ...

    async def close(self) -> None:
        """Writes what waits."""
        ...


def key_of(
    identity: Sequence[str],
    tenant: str,
    prompts: Sequence[Sequence[int]],
    fields: Sequence[SamplingFields],
    more: Any,
) -> bytes | None:
    """The key of a question; None for one whose answer is chance. identity: of the artifact and of
    what computes it. more: what else decides, such as stop strings.
    """
    if any(own.temperature > 0 and own.seed is None for own in fields):
        return None
    return hashlib.sha256(encode([1, identity, tenant, prompts, fields, more])).digest()


class AnswerCache:
    """Of one server. A file that can't be used any more is as good as empty: `problem` says why."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Begins anew where the file is damaged. OSError where it can't be made."""
        self._most = most_bytes
        self._thread = ThreadPoolExecutor(1, "subsecond-answers")
        self._pending = 0
        self.problem: str | None = None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / FILE
        try:
            self._base = _open(path)
        except sqlite3.DatabaseError as error:
            log.warning("the answer cache is begun anew: %s", error)
            for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
                each.unlink(missing_ok=True)
            try:
                self._base = _open(path)
            except sqlite3.DatabaseError as again:
                raise OSError(5, str(again)) from None
        self._bytes = int(
            self._base.execute("SELECT COALESCE(SUM(LENGTH(value)), 0) FROM answers").fetchone()[0]
        )

    async def find(self, key: bytes) -> list[KeptText] | None:
        """Of Answers."""
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._find, key)
        return await work

    def keep(self, key: bytes, texts: list[KeptText]) -> None:
        """Of Answers."""
        value = encode(texts)
        if self._pending >= PENDING or len(value) > self._most // LARGEST_SHARE:
            return
        self._pending += 1
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._keep, key, value)
        work.add_done_callback(self._kept)

    async def close(self) -> None:
        """Of Answers."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._base.close)
        self._thread.shutdown()

    def _kept(self, _: asyncio.Future[None]) -> None:
        self._pending -= 1

    # In the thread.

    def _find(self, key: bytes) -> list[KeptText] | None:
        def find() -> list[KeptText] | None:
            row = self._base.execute(
                "SELECT value, used FROM answers WHERE key = ?", (key,)
            ).fetchone()
            if row is None:
                return None
            now = int(time.time())
            if now - row[1] > TOUCH_S:
                self._base.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key))
            return decode(row[0])

        return self._trying(find)

    def _keep(self, key: bytes, value: bytes) -> None:
        def keep() -> None:
            row = self._base.execute(
                "SELECT LENGTH(value) FROM answers WHERE key = ?", (key,)
            ).fetchone()
            self._bytes += len(value) - (0 if row is None else row[0])
            self._base.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, value, int(time.time()))
            )
            if self._bytes > self._most:
                self._drop()

        self._trying(keep)

    def _drop(self) -> None:
        """Makes room, by what was used least recently."""
        goal = self._most - self._most // DROPPED_SHARE
        oldest = self._base.execute("SELECT key, LENGTH(value) FROM answers ORDER BY used")
        gone: list[tuple[bytes]] = []
        for key, size in oldest:
            if self._bytes <= goal:
                break
            gone.append((key,))
            self._bytes -= size
        self._base.executemany("DELETE FROM answers WHERE key = ?", gone)

    def _trying(self, work: Callable[[], T]) -> T | None:
        try:
            with self._base:
                return work()
        except (sqlite3.Error, msgspec.MsgspecError, UnicodeDecodeError) as error:
            if self.problem is None:
                log.warning("the answer cache can't be used: %s", error)
            self.problem = str(error)
            return None


def _open(path: Path) -> sqlite3.Connection:
    # Made here, so that nobody else may ever read it; SQLite gives its other files the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    base = sqlite3.connect(path, check_same_thread=False)
    try:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = NORMAL")  # a crash may lose the newest answers
        base.execute("PRAGMA auto_vacuum = INCREMENTAL")
        with suppress(sqlite3.OperationalError):
            base.execute("PRAGMA trusted_schema = OFF")
        base.executescript(_SCHEMA)
        if base.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("the file is damaged")
        base.execute("SELECT key, value, used FROM answers LIMIT 1")
    except BaseException:
        base.close()
        raise
    return base
