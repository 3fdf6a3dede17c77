"""What a server's answer says: text, when it came, tokens, why it ended, or what is wrong with it.

Owns: the bodies of OpenAI-compatible servers, whole and as server-sent events. Does not know: HTTP,
clocks (each piece comes with its time). Unknown fields are passed over, because every server has
some of its own; a body that isn't what was asked for is a Failure.
"""

from __future__ import annotations

from array import array
from typing import Any, Literal

import msgspec

FailureKind = Literal[
    "connect",  # no connection
    "closed",  # the connection ended before the answer did
    "http",  # not HTTP/1.1, or beyond the limits of its size
    "format",  # status 200, but no such answer: bad JSON, no choices, a stream without [DONE]
    "error event",  # a stream that ended with an error
    "status",  # a status other than 200, 429 and 503
    "timeout",  # not ended within the limit of one request
    "unfinished",  # not ended when the load's drain was over
]
MAX_LINE_BYTES = 1 << 20
MAX_BODY_BYTES = 32 << 20
DETAIL_CHARACTERS = 200
_DATA = b"data:"


class Failure(Exception):  # noqa: N818 (an end of a request, not an error of ours)
    """A request that ended without an answer."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: FailureKind = kind
        self.detail = shortened(detail)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Text(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    message: _Text | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        said = self.delta or self.message
        return bool(
            self.text or (said and (said.content or said.reasoning_content or said.reasoning))
        )


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Answer).decode


class Body:
    """A body that comes in pieces: `feed` each with its time, then `end` once.

    text_s: when text came, one entry a piece of text (a server may put several tokens into one).
    """

    def __init__(self) -> None:
        self.text_s = array("d")
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self._parts: list[bytes] = []
        self._bytes = 0

    def feed(self, data: bytes, now_s: float) -> None:
        """Takes what came at `now_s`. Failure if it can't be part of an answer."""
        self._keep(data, MAX_BODY_BYTES)

    def end(self, now_s: float) -> None:
        """The body ended at `now_s`. Failure if it isn't complete."""
        answer = _decoded(b"".join(self._parts))
        if not answer.choices:
            raise Failure("format", "the answer has no choices")
        self._take(answer, now_s)

    def _keep(self, data: bytes, limit_bytes: int) -> None:
        self._bytes += len(data)
        if self._bytes > limit_bytes:
            raise Failure("http", f"more than {limit_bytes:,} bytes in one piece")
        self._parts.append(data)

    def _take(self, answer: _Answer, now_s: float) -> None:
        if answer.error is not None:
            raise Failure("error event", message_of(answer.error))
        if answer.usage is not None:
            self.prompt_tokens = answer.usage.prompt_tokens
            self.completion_tokens = answer.usage.completion_tokens
        for choice in answer.choices:
            if choice.has_text:
                self.text_s.append(now_s)
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason


class EventStream(Body):
    """Server-sent events, each with one JSON object, and [DONE] at the end.

    Of the format's fields only `data` matters here; lines end with LF or CR LF.
    """

    def __init__(self) -> None:
        super().__init__()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._done = False

    def feed(self, data: bytes, now_s: float) -> None:
        end = data.rfind(b"\n") + 1
        if end:
            self._parts.append(data[:end])
            lines = b"".join(self._parts).split(b"\n")
            self._parts, self._bytes = [], 0
            for line in lines[:-1]:
                self._line(line, now_s)
        if end < len(data):
            self._keep(data[end:], MAX_LINE_BYTES)

    def end(self, now_s: float) -> None:
        if not self._done:
            raise Failure("format", "the stream ended without [DONE]")

    def _line(self, line: bytes, now_s: float) -> None:
        if line.startswith(_DATA):
            self._data.append(line[len(_DATA) :].strip())
            self._data_bytes += len(line)
            if self._data_bytes > MAX_LINE_BYTES:
                raise Failure("http", f"an event of more than {MAX_LINE_BYTES:,} bytes")
        elif line in (b"", b"\r") and self._data:
            data = b"\n".join(self._data)
            self._data.clear()
            self._data_bytes = 0
            if self._done:
                raise Failure("format", "an event after [DONE]")
            if data == b"[DONE]":
                self._done = True
            else:
                self._take(_decoded(data), now_s)


class Raw(Body):
    """Any body: `data` when it has ended."""

    data = b""

    def end(self, now_s: float) -> None:
        self.data = b"".join(self._parts)


class Refusal(Body):
    """The body of any status but 200: `message` when it has ended."""

    message = ""

    def end(self, now_s: float) -> None:
        data = b"".join(self._parts)
        try:
            error = _decode(data).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            error = data.decode("utf-8", "replace")
        self.message = message_of(error)


def message_of(error: Any) -> str:
    """The message of an error object, in whatever form a server has it."""
    if isinstance(error, dict):
        error = error.get("message", error)
    return shortened(str(error or ""))


def shortened(text: str) -> str:
    """One short line without control characters: what others sent is shown to people."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "?" for c in line[: DETAIL_CHARACTERS + 1])
    return line if len(line) <= DETAIL_CHARACTERS else line[: DETAIL_CHARACTERS - 3] + "..."


def _decoded(data: bytes) -> _Answer:
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Failure("format", f"{error}: {data[:80]!r}") from None
