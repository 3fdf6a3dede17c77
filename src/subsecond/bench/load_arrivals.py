"""Which requests a load has, and when each is due: Poisson, all at once, or from a trace file.

Owns: the schedule, the requests' bodies and the format of trace files. Does not know: connections,
clocks, answers. The same seed gives the same schedule and the same prompts.

A trace is JSON lines. A line is an object; only `at_s` is required, what is left out comes from the
load's `Shape`:

    {"at_s": 0.25,            seconds after the start; the lines may come in any order
     "prompt": "...",         or "messages": [{"role": "user", "content": "..."}] (chat only),
                              or "prompt_words": 100 (as many words of the load's own text)
     "max_tokens": 48, "deadline_ms": 1000, "stream": true,
     "body": {"temperature": 0}}      further fields of the request, as they are
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from subsecond.errors import InputError

Endpoint = Literal["chat", "completions"]

PATHS: dict[Endpoint, str] = {"chat": "/chat/completions", "completions": "/completions"}
RESERVED = {"model", "messages", "prompt", "max_tokens", "stream"}
MAX_REQUESTS = 1_000_000
MAX_TRACE_BYTES = 256 << 20
MAX_SECONDS = 7 * 24 * 3600.0
WORDS = (  # noqa: SIM905 (a list of a hundred lines says no more)
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city community name president team minute idea body information back "
    "parent face others level office door health person art war history party result change "
    "morning reason research girl guy moment air teacher force education foot boy age policy music"
).split()
"""Common nouns: one token each in most vocabularies, so that words are nearly tokens."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What the requests of a load have in common.

    deadline_s: from a request's scheduled moment to the end of its answer. body: further fields of
    every request. text: where prompts are taken from; without it they are made of common words.
    """

    endpoint: Endpoint = "chat"
    prompt_words: int = 100
    max_tokens: int = 48
    deadline_s: float | None = None
    stream: bool = True
    body: Mapping[str, Any] = {}
    text: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises InputError naming the field that is out of bounds."""
        for name in ("prompt_words", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.deadline_s is not None and not 0 < self.deadline_s <= MAX_SECONDS:
            raise InputError(
                f"the deadline is {self.deadline_s:g} s; it must be above 0 and at most a week"
            )
        if own := RESERVED & set(self.body):
            raise InputError(f"the body's field {min(own)} has an option of its own; use that")
        if self.text is not None and not self.text.split():
            raise InputError("the text that prompts are taken from has no word; give another one")


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One request and when it is due.

    body: everything but the model's name and `stream_options`. deadline_s: from `at_s`.
    """

    at_s: float
    path: str
    body: dict[str, Any]
    deadline_s: float | None

    def encoded(self, model: str) -> bytes:
        """The body as JSON."""
        body: dict[str, Any] = {"model": model, **self.body}
        if body["stream"]:  # usage: the only count of tokens that a stream has
            body.setdefault("stream_options", {"include_usage": True})
        return msgspec.json.encode(body)


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A load: its requests in the order of their moments, and how long it lasts at least."""

    what: str
    duration_s: float
    arrivals: tuple[Arrival, ...]
    seed: int


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    at_s: float
    prompt: str | None = None
    messages: list[_Message] | None = None
    prompt_words: int | None = None
    max_tokens: int | None = None
    deadline_ms: float | None = None
    stream: bool | None = None
    body: dict[str, Any] | None = None


def poisson(shape: Shape, rate: float, duration_s: float, requests: int = 0) -> Schedule:
    """Independent arrivals, `rate` a second on average (exponential gaps), for `duration_s` seconds
    or until there are `requests`, whichever comes later. InputError for impossible values.
    """
    shape.check()
    if not 0 < rate <= 100_000:
        raise InputError(f"rate is {rate:g}; it must be above 0 and at most 100000 a second")
    if not 0 < duration_s <= MAX_SECONDS:
        raise InputError(f"duration is {duration_s:g}; it must be above 0 s and at most a week")
    if not 0 <= requests <= MAX_REQUESTS or rate * duration_s > MAX_REQUESTS:
        raise InputError(f"a load has at most {MAX_REQUESTS:,} requests; ask for fewer")
    moments: list[float] = []
    source = random.Random(f"{shape.seed} moments")  # noqa: S311 (a load, not a secret)
    moment = source.expovariate(rate)
    while moment < duration_s or len(moments) < requests:
        moments.append(moment)
        moment += source.expovariate(rate)
    return Schedule(
        what=f"Poisson, {rate:g} requests/s",
        duration_s=max(duration_s, moments[-1] if moments else 0.0),
        arrivals=_filled(shape, moments),
        seed=shape.seed,
    )


def burst(shape: Shape, count: int) -> Schedule:
    """`count` requests, all due at the start."""
    shape.check()
    if not 1 <= count <= MAX_REQUESTS:
        raise InputError(f"count is {count}; it must be 1 to {MAX_REQUESTS:,}")
    return Schedule(
        what=f"{count} requests at once",
        duration_s=0.0,
        arrivals=_filled(shape, [0.0] * count),
        seed=shape.seed,
    )


def read_trace(path: Path, shape: Shape) -> Schedule:
    """The schedule of a trace file; `shape` fills what its lines leave out. InputError names the
    line and the key.
    """
    shape.check()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRACE_BYTES + 1)
    except OSError as error:
        raise InputError(f"can't read {str(path)!r:.200}: {error.strerror}") from None
    if len(data) > MAX_TRACE_BYTES:
        raise InputError(f"{path.name!r:.200} has more than 256 MiB; split it into several traces")
    decoder = msgspec.json.Decoder(_Line)
    texts = _texts(shape)
    arrivals: list[Arrival] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path.name!r:.200}"
        if len(arrivals) == MAX_REQUESTS:
            raise InputError(f"{where}: a load has at most {MAX_REQUESTS:,} requests")
        try:
            arrivals.append(_arrival_of(decoder.decode(line), shape, texts))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InputError) as error:
            raise InputError(f"{where}: {error}") from None
    if not arrivals:
        raise InputError(f"{path.name!r:.200} has no request; a line is an object with at_s")
    arrivals.sort(key=lambda arrival: arrival.at_s)
    return Schedule(
        what=f"trace {path.name}",
        duration_s=arrivals[-1].at_s,
        arrivals=tuple(arrivals),
        seed=shape.seed,
    )


def _arrival_of(line: _Line, shape: Shape, texts: _Texts) -> Arrival:
    if not (math.isfinite(line.at_s) and 0 <= line.at_s <= MAX_SECONDS):
        raise InputError(f"at_s is {line.at_s:g}; it must be 0 to a week, in seconds")
    given = [
        name for name in ("prompt", "messages", "prompt_words") if getattr(line, name) is not None
    ]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are given; leave one")
    if line.messages == []:
        raise InputError("messages is empty; give at least one")
    if line.messages and shape.endpoint != "chat":
        raise InputError("messages are for the endpoint chat; give prompt")
    deadline_s = shape.deadline_s if line.deadline_ms is None else line.deadline_ms / 1e3
    own = msgspec.structs.replace(
        shape,
        deadline_s=deadline_s,
        prompt_words=shape.prompt_words if line.prompt_words is None else line.prompt_words,
        max_tokens=shape.max_tokens if line.max_tokens is None else line.max_tokens,
        stream=shape.stream if line.stream is None else line.stream,
        body={**shape.body, **(line.body or {})},
    )
    own.check()
    content: str | list[dict[str, str]]
    if line.messages:
        content = [msgspec.structs.asdict(message) for message in line.messages]
    else:
        content = line.prompt if line.prompt is not None else texts.take(own.prompt_words)
    return _arrival(own, line.at_s, content)


def _filled(shape: Shape, moments: Sequence[float]) -> tuple[Arrival, ...]:
    texts = _texts(shape)
    return tuple(_arrival(shape, at_s, texts.take(shape.prompt_words)) for at_s in moments)


def _arrival(shape: Shape, at_s: float, content: str | list[dict[str, str]]) -> Arrival:
    body: dict[str, Any] = {"max_tokens": shape.max_tokens, "stream": shape.stream, **shape.body}
    if shape.endpoint == "chat":
        if isinstance(content, str):
            content = [{"role": "user", "content": content}]
        body["messages"] = content
    else:
        body["prompt"] = content
    return Arrival(at_s=at_s, path=PATHS[shape.endpoint], body=body, deadline_s=shape.deadline_s)


def backwards(arrival: Arrival) -> Arrival:
    """The request with the words of its last text in the opposite order: as much work, and a prefix
    cache that has seen it can't help the request itself.
    """
    body = dict(arrival.body)
    if "messages" in body:
        last = body["messages"][-1]
        body["messages"] = [
            *body["messages"][:-1],
            {**last, "content": _backwards(last["content"])},
        ]
    else:
        body["prompt"] = _backwards(body["prompt"])
    return msgspec.structs.replace(arrival, body=body)


def _backwards(text: str) -> str:
    return " ".join(reversed(text.split()))


class _Texts:
    """Prompts that begin alike for a word or two by chance alone, so that a prefix cache doesn't
    help (a text that is shorter than all prompts together comes again).
    """

    def __init__(self, source: Iterator[list[str]]) -> None:
        self._source = source
        self._words: list[str] = []

    def take(self, count: int) -> str:
        while len(self._words) < count:
            self._words += next(self._source)
        taken, self._words = self._words[:count], self._words[count:]
        return " ".join(taken)


def _texts(shape: Shape) -> _Texts:
    def drawn() -> Iterator[list[str]]:
        source = random.Random(f"{shape.seed} words")  # noqa: S311
        while True:
            yield source.choices(WORDS, k=1000)

    def read(words: list[str]) -> Iterator[list[str]]:
        """Round and round, from a place that the seed says; no copy of the whole text each time."""
        place = random.Random(f"{shape.seed} place").randrange(len(words))  # noqa: S311
        while True:
            piece = words[place : place + 1000]
            place = (place + len(piece)) % len(words)
            yield piece

    return _Texts(drawn() if shape.text is None else read(shape.text.split()))
