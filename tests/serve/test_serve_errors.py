"""What a client is told: status, body, headers, and nothing else."""

from __future__ import annotations

import math

import msgspec
import pytest

from subsecond.errors import EngineUnavailable, ModelError, RequestError, RuntimeFailure, TextError
from subsecond.serve import errors
from subsecond.serve.errors import ServeError, error_for

EVERY: list[ServeError] = [
    errors.BadRequest("m", "p"),
    errors.UnknownField("m", "p"),
    errors.UnsupportedValue("m", "p"),
    errors.MalformedBody("m"),
    errors.Unauthorized("m"),
    errors.Forbidden("m"),
    errors.NotFound("m"),
    errors.UnknownModel("m"),
    errors.MethodNotAllowed("PUT", ["POST", "GET"]),
    errors.SlowRequest("m"),
    errors.TooLarge("m"),
    errors.WrongType("m"),
    errors.RateLimited("m", "concurrency", 2.5),
    errors.DeadlineDeclined("m", 1.25, 0.4),
    errors.HeadersTooLarge("m"),
    errors.ServerFault(),
    errors.Unavailable("m", 3, "draining"),
    errors.PromiseBroken("m"),
]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_every_error_has_the_one_shape(error: ServeError) -> None:
    body = msgspec.json.decode(error.to_bytes())
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert isinstance(body["error"]["message"], str) and body["error"]["code"]
    assert all(name == name.lower() and value.isascii() for name, value in error.headers.items())


def test_every_class_is_among_them() -> None:
    classes = {
        own
        for own in vars(errors).values()
        if isinstance(own, type) and issubclass(own, ServeError)
    }
    assert classes - {ServeError} == {type(error) for error in EVERY}


def test_statuses() -> None:
    assert [error.status for error in EVERY] == [
        400, 400, 400, 400, 401, 403, 404, 404, 405, 408, 413, 415, 429, 429, 431, 500, 503, 504
    ]  # fmt: skip


def test_headers() -> None:
    by_class = {type(error): error.headers for error in EVERY}
    assert by_class[errors.Unauthorized] == {"www-authenticate": 'Bearer realm="subsecond"'}
    assert by_class[errors.MethodNotAllowed] == {"allow": "GET, POST"}
    assert by_class[errors.RateLimited] == {"retry-after": "3", "retry-after-ms": "2500"}
    assert by_class[errors.DeadlineDeclined] == {
        "retry-after": "1",
        "retry-after-ms": "400",
        "x-should-retry": "false",
        "x-predicted-ms": "1250",
    }
    assert by_class[errors.Unavailable]["retry-after"] == "3"


@pytest.mark.parametrize("wait_s", [0.0, -1.0, 1e-9, 0.4, 1e12, math.inf, math.nan])
def test_retry_after_is_always_a_positive_integer(wait_s: float) -> None:
    made = errors.retry_headers(wait_s)
    assert 1 <= int(made["retry-after"]) <= 86_400
    assert 1 <= int(made["retry-after-ms"]) <= 86_400_000
    assert "x-predicted-ms" not in errors.DeadlineDeclined("m", math.inf, 1).headers


def test_only_errors_about_the_request_keep_their_words() -> None:
    told = error_for(RequestError("n must be 1", "n"))
    assert (told.status, told.param, str(told)) == (400, "n", "n must be 1")
    told = error_for(TextError("too long"), "messages")
    assert (told.status, told.param) == (400, "messages")
    assert error_for(errors.TooLarge("m")).status == 413
    gone = error_for(EngineUnavailable("pid 7 of /root"))
    assert (gone.status, gone.code, gone.headers["retry-after"]) == (503, "engine_unavailable", "1")
    assert "root" not in str(gone)
    secret = "/root/secret at 0x7f00"
    for error in (ModelError(secret), RuntimeFailure(secret), OSError(secret), ValueError(secret)):
        told = error_for(error)
        assert told.status == 500
        assert secret not in told.to_bytes().decode()


def test_messages_are_one_bounded_line_of_valid_unicode() -> None:
    error = errors.BadRequest("a\ud800\nb\x00" + "é" * 5000, "p\udfff" * 500)
    body = msgspec.json.decode(error.to_bytes())["error"]
    assert body["message"].startswith("a\\ud800\\nb\\x00é")
    assert len(body["message"]) <= 1000 and len(body["param"]) <= 200
    assert len(str(errors.UnknownModel("x" * 10_000))) < 200
