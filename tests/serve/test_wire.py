"""Bytes that are no JSON, or more of it than anybody needs."""

from __future__ import annotations

import json

import msgspec
import pytest
from bodies import BODIES, LIMITS, MESSAGES, read, refusal
from hypothesis import example, given, settings
from hypothesis import strategies as st

from subsecond.serve.errors import MalformedBody, ServeError, TooLarge
from subsecond.serve.limits import BodyLimits
from subsecond.serve.schema import chat, wire

START = b'{"model":"m","messages":[{"role":"user","content":"hi"}],'


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b" ", None),
        (b"{", None),
        (b"nul", None),
        (b'{"model":"m"', None),
        (b'{"model":"m",}', None),
        (b"{'model':'m'}", None),
        (START[:-1] + b"} x", None),
        (b'\xef\xbb\xbf{"model":"m"}', None),
        ('{"model":"m"}'.encode("utf-16"), None),
        (b'{"model":"\xff"}', None),
        (b'{"model":"\xed\xa0\x80"}', None),
        (b'{"model":"a\x00b"}', None),
        (b'{"model":"a\nb"}', None),
        (b'{"model":"\\ud800"}', "model"),
        (b'{"model":"\\udc00"}', "model"),
        (b'{"model":"\\ud800\\u0041"}', "model"),
        (b'{"model":"\\q"}', "model"),
        (
            b'{"messages":[{"role":"user","content":""},{"content":"\\udfff"}]}',
            "messages[1].content",
        ),
        (b'{"\\ud800":1}', None),
        (START + b'"temperature":NaN}', "temperature"),
        (START + b'"temperature":-NaN}', "temperature"),
        (START + b'"temperature":Infinity}', "temperature"),
        (START + b'"temperature": -Infinity }', "temperature"),
        (START + b'"logit_bias":{"5":NaN}}', "logit_bias.5"),
        (START + b'"stop":["a","b",NaN]}', "stop[2]"),
        (START + b'"seed":01}', None),
        (START + b'"seed":+1}', None),
        (START + b'"seed":0x10}', None),
        (START + b'"seed":1,"seed":2}', "seed"),
        (START + b'"seed":1,"se\\u0065d":2}', "seed"),
        (START + b'"logit_bias":{"5":1,"5":1}}', "logit_bias.5"),
        (b'{"model":"a","model" : "b"}', "model"),
        (b'{"messages":[{"role":"user","role":"user"}]}', "messages[0].role"),
        (START + b'"tools":[' + b"[" * 100_000, "tools"),
        (b"[" * 100_000, None),
        (b'{"a":' * 100_000, "a"),
        (b'{"a"' * 10, None),
    ],
)
def test_malformed_bodies(body: bytes, param: str | None) -> None:
    error = refusal("chat", body)
    assert isinstance(error, MalformedBody)
    assert error.param == param
    json.loads(error.to_bytes())


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"a"', b"true"])
def test_a_body_that_is_no_object(body: bytes) -> None:
    error = refusal("chat", body)
    assert (error.status, error.param, error.code) == (400, None, "invalid_type")


def test_integers_beyond_64_bits() -> None:
    for digits in (b"9223372036854775808", b"18446744073709551616", b"9" * 400, b"9" * 5000):
        for sign in (b"", b"-"):
            error = refusal("chat", START + b'"max_tokens":' + sign + digits + b"}")
            assert (error.status, error.param) == (400, "max_tokens")
    assert refusal("chat", START + b'"temperature":1e400}').param == "temperature"


def test_a_body_of_many_bytes() -> None:
    assert refusal("chat", b"x" * (LIMITS.body_bytes + 1)).status == 413
    small = BodyLimits(body_bytes=100, depth=4, parts=12)
    smallest = json.dumps({"model": "m", "messages": MESSAGES}).encode()
    assert chat.read(smallest, small).model == "m"
    with pytest.raises(TooLarge):
        chat.read(smallest + b" " * 100, small)
    with pytest.raises(TooLarge):
        chat.read(b'{"stop":[' + b'"a",' * 10 + b'"a"]}', small)


def test_depth_is_counted_outside_of_strings() -> None:
    text = '{["\\' * 1000
    assert read("chat", messages=[{"role": "user", "content": text}]).messages[0]["content"] == text
    deep: object = 1
    for _ in range(LIMITS.depth - 3):
        deep = [deep]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"a": None}}}
    assert read("chat", tools=[tool]).tools[0].parameters == {"a": None}
    tool["function"]["parameters"]["a"] = deep  # type: ignore[index]
    error = refusal("chat", tools=[tool])
    assert (error.status, error.param, error.code) == (400, "tools", "invalid_json")


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b"\\" * LIMITS.body_bytes,
        b'{"a":"' + b'\\"' * (LIMITS.body_bytes // 2 - 10),
        b'"' * LIMITS.body_bytes,
        b'"":' * (LIMITS.body_bytes // 3),
        b"[]" * (LIMITS.body_bytes // 2),
        b"{}" * 20_000,
        b'{"a":[' + b"1," * (LIMITS.body_bytes // 2 - 10) + b"1]}",
        b'{"prompt":[' + b"1," * (LIMITS.body_bytes // 2 - 20) + b"1]}",
        b'{"prompt":"' + b"\\u4e2d" * (LIMITS.body_bytes // 6 - 10) + b"\\ud800" + b'"}',
    ],
    ids=lambda body: repr(body[:16]),
)
def test_large_evil_bodies_are_refused(body: bytes) -> None:
    """About 0.1 s each; were the scan quadratic, this would not end."""
    for route in ("chat", "completions"):
        assert refusal(route, body).status in (400, 413)


def test_place_of_a_byte() -> None:
    body = b'{"a":{"b":[1,{"c":2}],"d":[[],[3]]},"e":4}'
    assert wire._place(body, body.index(b"1")) == "a.b[0]"
    assert wire._place(body, body.index(b"2")) == "a.b[1].c"
    assert wire._place(body, body.index(b"3")) == "a.d[1][0]"
    assert wire._place(body, body.index(b"4")) == "e"
    assert wire._place(body, 0) == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = sorted({name for _, body in BODIES.values() for name in body} | {
    "temperature", "stop", "tools", "tool_choice", "response_format", "logit_bias", "stream",
    "stream_options", "text", "include", "metadata", "deadline_ms", "store", "reasoning", "echo",
})  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(BODIES)),
    st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON),
    st.data(),
)
def test_any_fields_are_taken_or_refused(
    route: str, fields: dict[str, object], data: st.DataObject
) -> None:
    reader, smallest = BODIES[route]
    body = json.dumps({**smallest, **fields}).encode()
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, len(body)))
        body = body[:cut] + data.draw(st.binary(max_size=3)) + body[cut + 1 :]
    try:
        reader(body, LIMITS)
    except ServeError as error:
        assert error.status in (400, 413)
        own = msgspec.json.decode(error.to_bytes())["error"]
        assert set(own) == {"message", "type", "param", "code"}
        assert own["message"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
@example(b'{"a":"' + b"\xc3")
@example(b'{"":1,"":2}')
def test_any_bytes_are_refused_with_a_typed_error(body: bytes) -> None:
    for route in BODIES:
        assert refusal(route, body).status == 400


@settings(max_examples=200, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
))  # fmt: skip
def test_valid_json_passes_the_scan(value: object) -> None:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        body.decode()
    except UnicodeDecodeError:
        return
    wire._check_parts(body, LIMITS)
    twice = b'{"k":1,"v":' + body + b',"k":2}'
    with pytest.raises(MalformedBody) as caught:
        wire._check_parts(twice, LIMITS)
    assert caught.value.param == "k"
