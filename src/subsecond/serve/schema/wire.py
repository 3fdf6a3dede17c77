"""Bytes to structs and back: strict JSON in bounded time and memory.

Owns: what counts as JSON here (UTF-8 without a byte order mark, no NaN, no key twice in an object,
no half surrogates, bounded depth and number of parts), which field an error names, and the bytes of
answers and events. Does not know: the fields of any route.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar, cast

import msgspec

from subsecond.engine.values import short
from subsecond.serve.errors import (
    BadRequest,
    MalformedBody,
    ServeError,
    TooLarge,
    UnknownField,
    UnsupportedValue,
)
from subsecond.serve.limits import BodyLimits

T = TypeVar("T")

BOM = b"\xef\xbb\xbf"
DONE = b"data: [DONE]\n\n"
"""The end of a stream that succeeded."""

# A string (with the quote that ends it, and the colon after it, if they are there) or a bracket.
# Possessive, so that no input makes it try twice.
_PART = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)(?:[ \t\n\r]*+(:))?|[][{}]', re.DOTALL)
_PLACE_PART = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)(?:[ \t\n\r]*+(:))?|[][{},]', re.DOTALL)
_STARTS_WORD = re.compile(rb"-?(?:NaN|nan|NAN|Infinity|infinity|Inf|inf|INF)")

_ERROR = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
_WRONG_KIND = re.compile(r"Expected `(?P<wanted>[^`]*)`(?:, got `(?P<given>[^`]*)`)?")
_NOT_ONE_OF = re.compile(r"Invalid (?:enum )?value (?P<value>.*)", re.DOTALL)
_LENGTH = re.compile(r"Expected `(?P<kind>\w+)` of length (?P<length>.*)")
_BOUND = re.compile(r"Expected `(?P<kind>\w+)` (?P<bound>[<>]=? .*)")

_PATTERN = re.compile(r"Expected `str` matching regex '(?P<pattern>.*)'")

_KINDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def decode(
    kind: type[T], body: bytes, limits: BodyLimits, unsupported: Mapping[str, str] | None = None
) -> T:
    """The body as a `kind`, a struct that forbids unknown fields.

    unsupported: fields of OpenAI's interface that the struct leaves out, and what to do instead.
    Raises TooLarge, MalformedBody, UnknownField, UnsupportedValue or BadRequest, with `param`
    where a field is wrong. Time and memory are linear in the body, which `limits` bounds.
    """
    if len(body) > limits.body_bytes:
        raise TooLarge(
            f"the body has {len(body):,} bytes; at most {limits.body_bytes:,} are accepted"
        )
    if body.startswith(BOM):
        raise MalformedBody("the body begins with a byte order mark; send plain UTF-8")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not valid UTF-8 (byte {error.start})") from None
    _check_parts(body, limits)
    try:
        value: T = _decoder(cast(Any, kind)).decode(body)
        return value
    except msgspec.ValidationError as error:
        raise _explained(str(error), unsupported or {}, kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse_malformed(body, str(error))
    except RecursionError:  # deeper than the interpreter allows here; `limits` is far below that
        raise MalformedBody("the body is nested too deeply") from None


def convert(kind: type[T], value: Any, place: str) -> T:
    """A decoded value as a `kind`; errors as in `decode`, below the field `place`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error), {}, kind, place) from None


def encode(answer: msgspec.Struct) -> bytes:
    """An answer as JSON."""
    return msgspec.json.encode(answer)


def data_event(answer: msgspec.Struct) -> bytes:
    """An answer as an event of a stream, without a name (chat completions and completions)."""
    return b"data: " + msgspec.json.encode(answer) + b"\n\n"


def named_event(name: str, answer: msgspec.Struct) -> bytes:
    """An answer as an event of a stream that has a name (responses)."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(answer) + b"\n\n"


def error_event(error: ServeError) -> bytes:
    """The event that ends a stream that failed."""
    return named_event("error", error.body)


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _check_parts(body: bytes, limits: BodyLimits) -> None:
    """Refuses what msgspec would take: depth and parts beyond the limits, and a key twice in one
    object. What isn't JSON is left to msgspec.
    """
    open_keys: list[set[bytes] | None] = []  # of each open bracket; None for a list
    left = limits.parts
    for part in _PART.finditer(body):
        first = body[part.start()]
        if first in b"}]":
            if open_keys:
                open_keys.pop()
            continue
        left -= 1
        if left < 0:
            raise TooLarge(
                f"the body has more than {limits.parts:,} strings, lists and objects; send less "
                "at once"
            )
        if first == 0x22:  # a quote
            if part[2] is not None and open_keys and (keys := open_keys[-1]) is not None:
                name = body[part.start() + 1 : part.end(1) - 1]
                if b"\\" in name:
                    name = _unescaped(name)
                if name in keys:
                    shown = short(name.decode("utf-8", "replace"))
                    place = _place(body, part.end())
                    raise MalformedBody(f"the body has the key {shown} twice", place)
                keys.add(name)
        else:
            if len(open_keys) >= limits.depth:
                place = _place(body, part.start()).partition(".")[0].partition("[")[0]
                raise MalformedBody(
                    f"the body is nested deeper than {limits.depth} levels", place or None
                )
            open_keys.append(set() if first == 0x7B else None)


def _unescaped(name: bytes) -> bytes:
    try:
        return msgspec.json.decode(b'"' + name + b'"', type=str).encode()
    except msgspec.DecodeError:  # decoding the whole will say so
        return name


def _place(body: bytes, end: int) -> str:
    """The path of the value that byte `end` is in, such as messages[0].content."""
    path: list[str | int] = []  # a key or an index of each open bracket
    for part in _PLACE_PART.finditer(body, 0, end):
        first = body[part.start()]
        if first == 0x22:
            if part[2] is not None and path and isinstance(path[-1], str):
                name = _unescaped(body[part.start() + 1 : part.end(1) - 1])
                path[-1] = name.decode("utf-8", "replace")
        elif first in b"{[":
            path.append("" if first == 0x7B else 0)
        elif not path:
            break
        elif first == 0x2C:  # a comma
            path[-1] = path[-1] + 1 if isinstance(path[-1], int) else ""
        else:
            path.pop()
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path[:8])
    return text.removeprefix(".")


def _refuse_malformed(body: bytes, reason: str) -> NoReturn:
    for part in _PART.finditer(body):
        if part[1] and b"\\" in part[0] and not _is_string(body[part.start() : part.end(1)]):
            raise MalformedBody(
                "the body has a string with half a surrogate pair or an unknown escape",
                _place(body, part.start()) or None,
            )
    match = re.search(r"\(byte (\d+)\)", reason)
    if match is None:
        raise MalformedBody("the body is not complete JSON" if body else "the body is empty")
    at = int(match[1])
    for start in (at, at - 1):  # the sign comes before the word
        if start >= 0 and (word := _STARTS_WORD.match(body, start)):
            raise MalformedBody(
                f"{word[0].decode()} is not a number of JSON", _place(body, start) or None
            )
    raise MalformedBody(f"the body is not valid JSON: {reason.partition(': ')[2] or reason}")


def _is_string(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _explained(
    message: str, unsupported: Mapping[str, str], kind: type[Any], place: str = ""
) -> BadRequest:
    """msgspec's message as an error in our words that names the field."""
    found = _ERROR.fullmatch(message)
    what, path = (found["what"], found["path"] or "") if found else (message, "")
    param = (place + path.replace("[...]", "")).removeprefix(".")
    if match := _UNKNOWN.fullmatch(what):
        name = f"{param}.{match['name']}".removeprefix(".")
        if not path and (advice := unsupported.get(match["name"])) is not None:
            return UnsupportedValue(f"{name} is not supported; {advice}", name)
        return UnknownField(f"{short(name)[1:-1]} is not a field of this request; remove it", name)
    if match := _MISSING.fullmatch(what):
        name = f"{param}.{match['name']}".removeprefix(".")
        return BadRequest(f"{name} is missing", name, "missing_required_parameter")
    subject = param or "the body"
    if match := _NOT_ONE_OF.fullmatch(what):
        allowed = _allowed(kind, param) if not place else ""
        return UnsupportedValue(
            f"{subject} is {match['value'][:60]}, which is not supported{allowed}", param or None
        )
    if match := _LENGTH.fullmatch(what):
        of = "characters" if match["kind"] == "str" else "entries"
        bound = match["length"].replace("<=", "at most").replace(">=", "at least")
        return BadRequest(f"{subject} must have {bound} {of}", param or None)
    if match := _BOUND.fullmatch(what):
        bound = match["bound"].replace("<=", "at most").replace(">=", "at least")
        return BadRequest(f"{subject} must be {_KINDS[match['kind']]}, {bound}", param or None)
    if match := _PATTERN.fullmatch(what):
        pattern = match["pattern"].removeprefix("\\A").removesuffix("\\Z")
        return BadRequest(f"{subject} must match {pattern}", param or None)
    if match := _WRONG_KIND.fullmatch(what):
        if match["wanted"] == "null":
            return UnsupportedValue(f"{subject} is not supported; leave it out", param or None)
        wanted = " or ".join(_KINDS.get(one, one) for one in match["wanted"].split(" | "))
        given = f", not {_KINDS.get(match['given'], match['given'])}" if match["given"] else ""
        return BadRequest(f"{subject} must be {wanted}{given}", param or None, "invalid_type")
    return BadRequest(f"{subject}: {what[:1].lower()}{what[1:]}", param or None)


def _allowed(kind: type[Any], param: str) -> str:
    """The values that a field of the struct may have, for the words of an error."""
    try:
        info = msgspec.inspect.type_info(kind)
    except (TypeError, NameError):
        return ""
    for field in getattr(info, "fields", ()):
        if field.encode_name == param:
            kinds = getattr(field.type, "types", (field.type,))
            values = [repr(value) for one in kinds for value in getattr(one, "values", ()) or ()]
            return f"; it may be {' or '.join(values)}" if values else ""
    return ""
