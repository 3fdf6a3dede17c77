"""The errors that a client sees: status, body and headers.

    ServeError
    +-- BadRequest (400)         a value or a field; `param` names it
    |   +-- UnknownField             no field of this route
    |   +-- UnsupportedValue         a field or a value of OpenAI's that is not served here
    |   +-- MalformedBody            no JSON, or JSON that is ambiguous
    +-- Unauthorized (401)       no key, or none that is known
    +-- Forbidden (403)          a key without that right
    +-- NotFound (404)           a route
    |   +-- UnknownModel
    +-- MethodNotAllowed (405)
    +-- SlowRequest (408)        the request took longer to arrive than it may
    +-- TooLarge (413)           the body, or a text in it
    +-- WrongType (415)          the body is said to be something else than JSON
    +-- RateLimited (429)        a limit of the key
    +-- DeadlineDeclined (429)   the deadline can't be met; nothing was begun
    +-- HeadersTooLarge (431)
    +-- ServerFault (500)        ours; says nothing of what happened
    +-- Unavailable (503)        not ready, draining or full
    +-- PromiseBroken (504)      a deadline that was promised and missed

Owns: the status, `type` and `code` of each, the headers that go with it, and the bytes of the body
`{"error": {"message", "type", "param", "code"}}`. Messages never hold a trace, a path or an
address: only errors raised on purpose about the request itself have their own words. Does not know:
routes, HTTP frameworks.
"""

# ruff: noqa: N818 (the names say what a client is told)
from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from subsecond.errors import EngineUnavailable, RequestError, SubsecondError, TextError

MAX_MESSAGE_CHARACTERS = 1000
MAX_PARAM_CHARACTERS = 200
LONGEST_RETRY_S = 86_400.0


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inside of an error's body. param: the field that is wrong. code: for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success, and of an `error` event in a stream."""

    error: ErrorDetail


class ServeError(SubsecondError):
    """Base of what a client is told. `code` and `param` may be given; the status is the class's.

    headers: those that go with it, names in lower case.
    """

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(_clean(message, MAX_MESSAGE_CHARACTERS))
        self.param = None if param is None else _clean(param, MAX_PARAM_CHARACTERS)
        if code is not None:
            self.code = code
        self.headers: dict[str, str] = {}

    @property
    def body(self) -> ErrorBody:
        """What is sent."""
        return ErrorBody(ErrorDetail(str(self), self.type, self.param, self.code))

    def to_bytes(self) -> bytes:
        """The body as JSON."""
        return msgspec.json.encode(self.body)


class BadRequest(ServeError):
    """A value is out of its range, of the wrong kind, or missing."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnknownField(BadRequest):
    """A field that this route does not have."""

    code = "unknown_parameter"


class UnsupportedValue(BadRequest):
    """A field, or a value of it, that OpenAI's interface has and this server has not."""

    code = "unsupported_parameter"


class MalformedBody(BadRequest):
    """The body is not JSON, or not unambiguous JSON."""

    code = "invalid_json"


class Unauthorized(ServeError):
    """No key, or none that is known."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.headers["www-authenticate"] = 'Bearer realm="subsecond"'


class Forbidden(ServeError):
    """The key is known and has not that right."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class NotFound(ServeError):
    """There is nothing of that name."""

    status = 404
    type = "not_found_error"
    code = "not_found"


class UnknownModel(NotFound):
    """No model of that name is served."""

    code = "model_not_found"

    def __init__(self, model: str) -> None:
        shown = repr(model if len(model) <= 60 else model[:57] + "...")
        super().__init__(f"the model {shown} is not served here; see /v1/models", "model")


class MethodNotAllowed(ServeError):
    """The route exists, for other methods."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, method: str, allowed: Collection[str]) -> None:
        methods = ", ".join(sorted(allowed))
        super().__init__(f"the method {method[:20]!r} is not allowed here; use {methods}")
        self.headers["allow"] = methods


class SlowRequest(ServeError):
    """The request took longer to arrive than it may."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.headers["connection"] = "close"


class TooLarge(ServeError):
    """The body is longer than it may be."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class WrongType(ServeError):
    """The body is said to be something else than JSON."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class RateLimited(ServeError):
    """A limit of the key is reached. limit: its name. retry_after_s: when it has room again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, limit: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.limit = limit
        self.headers.update(retry_headers(retry_after_s))


class DeadlineDeclined(ServeError):
    """The deadline can't be met, so nothing was begun. The official client would repeat a 429 by
    itself, which makes an overload worse: it is told not to.

    predicted_s: seconds that the answer would take. retry_after_s: when it is worth another try.
    """

    status = 429
    type = "deadline_error"
    code = "deadline_declined"

    def __init__(self, message: str, predicted_s: float, retry_after_s: float) -> None:
        super().__init__(message, "deadline_ms")
        self.predicted_s = predicted_s
        self.headers.update(retry_headers(retry_after_s))
        self.headers["x-should-retry"] = "false"
        if math.isfinite(predicted_s):
            self.headers["x-predicted-ms"] = str(math.ceil(max(predicted_s, 0.0) * 1e3))


class HeadersTooLarge(ServeError):
    """The headers are longer, or more, than they may be."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class ServerFault(ServeError):
    """Our fault. The log says what happened; the client is told nothing about our insides."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str = "the server failed to answer; try again") -> None:
        super().__init__(message)


class Unavailable(ServeError):
    """Not ready, draining or full. code: which."""

    status = 503
    type = "unavailable_error"
    code = "not_ready"

    def __init__(self, message: str, retry_after_s: float, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.headers.update(retry_headers(retry_after_s))


class PromiseBroken(ServeError):
    """The deadline was promised and has passed."""

    status = 504
    type = "deadline_error"
    code = "promise_broken"


def retry_headers(retry_after_s: float) -> dict[str, str]:
    """`retry-after` (whole seconds, at least 1, as HTTP has it) and `retry-after-ms`, which the
    official client prefers.
    """
    wait_s = retry_after_s if math.isfinite(retry_after_s) else LONGEST_RETRY_S
    wait_s = min(max(wait_s, 0.001), LONGEST_RETRY_S)
    return {
        "retry-after": str(max(1, math.ceil(wait_s))),
        "retry-after-ms": str(math.ceil(wait_s * 1e3)),
    }


def error_for(error: BaseException, param: str | None = None) -> ServeError:
    """What a client is told about any exception.

    param: the field to name where the exception doesn't (a text, say). Errors about the request
    keep their words; of an engine that is gone 503 is told, of everything else only 500.
    """
    if isinstance(error, ServeError):
        return error
    if isinstance(error, RequestError):
        return BadRequest(str(error), error.param or param)
    if isinstance(error, TextError):
        return BadRequest(str(error), param)
    if isinstance(error, EngineUnavailable):
        return Unavailable(
            "the engine ended before the answer did, and starts again; try again",
            1.0,
            "engine_unavailable",
        )
    return ServerFault()


def _clean(text: str, characters: int) -> str:
    """`text` as valid Unicode in one line, and not too long: it may quote what a client sent."""
    start = text[: characters + 1]  # a field's name may be as long as a body
    valid = start.encode("utf-8", "backslashreplace").decode("utf-8")
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in valid)
    return line if len(line) <= characters else line[: characters - 3] + "..."
