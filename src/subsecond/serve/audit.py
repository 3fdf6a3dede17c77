"""The audit log: who asked for what, when, and what became of it. One JSON object a line.

Owns: the fields, and that prompts and answers are not among them unless the operator asks. Keys
appear as their public ids, never as secrets. Does not know: where the values come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from subsecond.serve.journal import Appender

MAX_FIELD_CHARACTERS = 512
MAX_TEXT_CHARACTERS = 1 << 18
_LINE_ENDS = {0x85: "\\x85", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request, or one act of an administrator.

    time: RFC 3339, UTC, milliseconds. request: our id. key: the id of the key ("" where none are
    used, None where nobody was recognized). user: who the client says it acts for. action: the
    route's name, or what was done. status: HTTP's. outcome: finish reason, or the error's code.
    promised, kept: the deadline's. prompt, answer: only if the operator asks for them.
    """

    time: str = ""
    request: str
    key: str | None
    client: str | None = None
    user: str | None = None
    action: str
    model: str | None = None
    status: int
    outcome: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    deadline_ms: float | None = None
    promised: bool | None = None
    kept: bool | None = None
    elapsed_ms: float | None = None
    prompt: str | None = None
    answer: str | None = None


def logged(entry: Entry) -> dict[str, Any]:
    """An entry's fields for a log that operators read: nothing that a client says of its users, no
    text, and times are the log's own.
    """
    plain: dict[str, Any] = msgspec.to_builtins(entry)
    for name in ("time", "user", "prompt", "answer"):
        plain.pop(name, None)
    return plain


class Texts:
    """What one request asked, and what it was told so far, for an operator who wants to know."""

    def __init__(self, prompt: Sequence[Any]) -> None:
        """prompt: texts, token ids or messages."""
        only = prompt[0] if len(prompt) == 1 else prompt
        self.prompt = only if isinstance(only, str) else msgspec.json.encode(only).decode()
        self._answers: dict[int, list[str]] = {}

    def take(self, index: int, text: str) -> None:
        """A piece of one of its answers."""
        if text:
            self._answers.setdefault(index, []).append(text)

    @property
    def answer(self) -> str | None:
        """The answer; of several, a JSON list in their order; None where there is no text."""
        if not self._answers:
            return None
        found = ["".join(self._answers.get(index, ())) for index in range(max(self._answers) + 1)]
        return found[0] if len(found) == 1 else msgspec.json.encode(found).decode()


class Audit:
    """The log. `record` never waits and never raises; `lost` counts what a full disk refused.
    texts: whether prompts and answers are in it.
    """

    def __init__(
        self, path: Path, *, texts: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """texts: log prompts and answers too. OSError if the file can't be opened."""
        self.texts = texts
        self._clock = clock
        self._file = Appender(path)

    @property
    def lost(self) -> int:
        """Entries that could not be written."""
        return self._file.lost

    def record(self, entry: Entry) -> None:
        """Adds an entry, with the time of now."""
        now_s = self._clock()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
        own = msgspec.structs.replace(entry, time=f"{moment}.{int(now_s % 1 * 1000):03d}Z")
        for name in Entry.__struct_fields__:
            value = getattr(own, name)
            if not isinstance(value, str):
                continue
            if name in ("prompt", "answer"):
                setattr(own, name, _valid(_cut(value)) if self.texts else None)
            else:
                setattr(own, name, _valid(value[:MAX_FIELD_CHARACTERS]))
        self._file.append(msgspec.json.encode(own))

    def flush(self) -> None:
        """Writes what is pending."""
        self._file.flush()

    def close(self) -> None:
        """Writes what is pending and closes the file."""
        self._file.close()


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT_CHARACTERS:
        return text
    return f"{text[:MAX_TEXT_CHARACTERS]}... ({len(text):,} characters)"


def _valid(text: str) -> str:
    """JSON escapes most line ends; half surrogates it can't hold, and some readers of lines take
    further characters for an end.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_LINE_ENDS)
