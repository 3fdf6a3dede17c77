"""Every field at, beyond and beside its bounds: the edges are taken, the rest is a 400 that names
the field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from bodies import BODIES, GENERATING, read, refusal

from subsecond.engine.sampling import SamplingParams
from subsecond.serve.limits import MAX_PRIORITY
from subsecond.serve.schema import shared
from subsecond.serve.schema.chat import ChatRequest
from subsecond.serve.schema.completions import CompletionRequest
from subsecond.serve.schema.embeddings import EmbeddingRequest
from subsecond.serve.schema.responses import ResponseRequest
from subsecond.serve.schema.tokens import DetokenizeRequest, TokenizeRequest

INT_MAX = 2**31 - 1
KINDS: dict[str, type[msgspec.Struct]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "responses": ResponseRequest,
    "embeddings": EmbeddingRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}

# name -> (routes, kind, least, most, whether null is taken)
NUMBERS: dict[str, tuple[tuple[str, ...], type, float, float, bool]] = {
    "temperature": (GENERATING, float, 0, 100, True),
    "top_p": (GENERATING, float, 2.0**-126, 1, True),
    "presence_penalty": (GENERATING, float, -2, 2, True),
    "frequency_penalty": (GENERATING, float, -2, 2, True),
    "seed": (GENERATING, int, 0, 2**64 - 1, True),
    "top_k": (GENERATING, int, 0, INT_MAX, True),
    "min_p": (GENERATING, float, 0, 1, True),
    "repetition_penalty": (GENERATING, float, 0.01, 100, True),
    "min_tokens": (GENERATING, int, 0, INT_MAX, False),
    "deadline_ms": ((*GENERATING, "embeddings"), float, 1, shared.MAX_DEADLINE_MS, True),
    "priority": ((*GENERATING, "embeddings"), int, -MAX_PRIORITY, MAX_PRIORITY, True),
    "max_tokens": (("chat", "completions"), int, 1, INT_MAX, True),
    "max_completion_tokens": (("chat",), int, 1, INT_MAX, True),
    "max_output_tokens": (("responses",), int, 1, INT_MAX, True),
    "n": (("chat", "completions"), int, 1, 1024, True),
    "top_logprobs": (("chat", "responses"), int, 0, 20, True),
    "logprobs": (("completions",), int, 0, 20, True),
    "dimensions": (("embeddings",), int, 1, 1 << 20, True),
}
WITH = {
    ("chat", "top_logprobs"): {"logprobs": True},
    ("responses", "top_logprobs"): {"include": ["message.output_text.logprobs"]},
}


def number_cases() -> Iterator[Any]:
    for name, (routes, kind, least, most, nullable) in NUMBERS.items():
        step = 1 if kind is int else 1e-3
        probes: list[Any] = [0, -1, 2**31, 2**63, 2**64, 10**400, -(10**400)]
        probes += [least - step, most + step, math.nan, math.inf, -math.inf, 1e308]
        probes += ["1", True, [], {}, [1], *([1.5, 1.0] if kind is int else [])]
        bad = [p for p in probes if type(p) not in (int, float) or not least <= p <= most]
        if kind is int:
            bad += [1.5, 1.0]
        if not nullable:
            bad.append(None)
        for route in routes:
            for value in bad:
                yield pytest.param(route, name, value, id=f"{route}-{name}-{value!r:.24}")


@pytest.mark.parametrize(("route", "name", "value"), list(number_cases()))
def test_a_number_beyond_its_bounds_names_the_field(route: str, name: str, value: Any) -> None:
    error = refusal(route, **{**WITH.get((route, name), {}), name: value})
    assert (error.status, error.param) == (400, name)
    assert name in str(error) or "is not a number of JSON" in str(error)


def edges() -> Iterator[Any]:
    for name, (routes, _, least, most, nullable) in NUMBERS.items():
        for route in routes:
            for value in (least, most, *([None] if nullable else [])):
                yield pytest.param(route, name, value, id=f"{route}-{name}-{value}")


@pytest.mark.parametrize(("route", "name", "value"), list(edges()))
def test_the_edges_are_accepted(route: str, name: str, value: Any) -> None:
    request = read(route, **{**WITH.get((route, name), {}), name: value})
    if route in GENERATING and value is not None and hasattr(SamplingParams(), name):
        assert getattr(request.params, name) == value
    if name in ("deadline_ms", "priority"):
        assert getattr(request.terms, name) == value
    if name in ("max_completion_tokens", "max_output_tokens"):
        assert request.params.max_tokens == value
    if name == "top_logprobs":
        assert request.params.logprobs == (value or 0)


@pytest.mark.parametrize("route", KINDS)
def test_the_documented_ranges_are_those_that_are_enforced(route: str) -> None:
    (_, components) = msgspec.json.schema_components([KINDS[route]])
    fields = components[KINDS[route].__name__]["properties"]
    ranged = {name for name, field in fields.items() if "minimum" in field or "maximum" in field}
    ours = {name for name, row in NUMBERS.items() if route in row[0]}
    assert ranged >= ours - {"dimensions"}
    for name in ranged & ours:
        _, _, least, most, _ = NUMBERS[name]
        if (route, name) == ("completions", "max_tokens"):
            least = 0  # with echo
        assert fields[name]["minimum"] == pytest.approx(least, abs=1e-30), name
        assert fields[name]["maximum"] == most, name


@pytest.mark.parametrize("route", BODIES)
def test_unknown_fields_are_named(route: str) -> None:
    for name in ("frobnicate", "Model", "max_token", "constructor", "é", "a.b", "`", ""):
        error = refusal(route, **{name: 1})
        assert (error.param, error.code) == (name, "unknown_parameter")
    for name in ("x" * 1_000_000, "\x00" * 1_000_000, " - at `$" * 100_000):
        assert len(refusal(route, **{name: 1}).to_bytes()) < 4000


@pytest.mark.parametrize("route", BODIES)
def test_every_field_refuses_a_value_of_another_kind(route: str) -> None:
    """A value that no field takes; what a field of any JSON could hold has none."""
    for name in KINDS[route].__struct_fields__:
        for value in ({"a": [{}]}, [[{"a": 1}]], "\u0000wrong", 1.5):
            try:
                error = refusal(route, **{name: value})
            except AssertionError:
                continue
            assert error.status == 400, (name, value)
            assert error.param is not None, (name, value)
            assert error.param.split("[")[0].split(".")[0] in (name, "tool_choice"), (name, value)
            break
        else:
            pytest.fail(f"{name} took everything")


@pytest.mark.parametrize("route", BODIES)
def test_required_fields(route: str) -> None:
    _, smallest = BODIES[route]
    for name in smallest:
        body = {key: value for key, value in smallest.items() if key != name}
        error = refusal(route, msgspec.json.encode(body))
        assert (error.status, error.param) == (400, name)
        assert error.code == "missing_required_parameter"
        if (route, name) != ("tokenize", "prompt"):
            assert refusal(route, **{name: None}).param == name


def test_stop() -> None:
    assert read("chat", stop="a").params.stops == ("a",)
    assert read("chat", stop=["a"] * 64).params.stops == ("a",) * 64
    assert read("chat", stop=None).params.stops == ()
    assert read("chat", stop="a" * 1024).params.stops == ("a" * 1024,)
    for bad in ("", [""], ["a"] * 65, "a" * 1025, ["a", ""]):
        assert refusal("chat", stop=bad).param == "stop"
    assert refusal("chat", stop=[1]).param == "stop[0]"


def test_stop_token_ids() -> None:
    assert read("chat", stop_token_ids=[0, INT_MAX]).params.stop_token_ids == (0, INT_MAX)
    for bad in ([-1], [2**31], [1] * 65):
        assert refusal("chat", stop_token_ids=bad).param == "stop_token_ids"
    assert refusal("chat", stop_token_ids=None).param == "stop_token_ids"
    assert refusal("chat", stop_token_ids=[1.0]).param == "stop_token_ids[0]"


def test_logit_bias() -> None:
    assert read("chat", logit_bias={"5": -100, "6": 100}).params.logit_bias == {5: -100, 6: 100}
    biases: list[Any] = [
        {"5": 100.1},
        {"a": 1},
        {"-1": 1},
        {"5": "1"},
        {"5": None},
        {"05": 1, "5": 1},
    ]
    biases += [{str(2**31): 1}, {str(own): 0 for own in range(4097)}, [1], {"": 1}]
    for bad in biases:
        assert refusal("chat", logit_bias=bad).param == "logit_bias", bad


def test_min_tokens_above_max_tokens() -> None:
    assert refusal("chat", min_tokens=6, max_tokens=5).param == "min_tokens"
    assert read("chat", min_tokens=5, max_tokens=5).params.min_tokens == 5
    error = refusal("responses", min_tokens=6, max_output_tokens=5)
    assert error.param == "min_tokens"
    assert "max_output_tokens" in str(error)


@pytest.mark.parametrize(
    ("text", "deadline_ms"), [("1", 1), ("250.5", 250.5), (" 1000 ", 1000), ("86400000", 86400000)]
)
def test_deadline_header(text: str, deadline_ms: float) -> None:
    assert shared.header_deadline_ms(text) == deadline_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "+1",
        "1e3",
        "nan",
        "inf",
        "0x10",
        "86400001",
        "9" * 400,
        "1,5",
        "1_0",
        "１",
        "a",
    ],
)
def test_bad_deadline_headers_name_the_header(text: str) -> None:
    with pytest.raises(shared.BadRequest) as caught:
        shared.header_deadline_ms(text)
    assert caught.value.param == "X-Deadline-Ms"


def test_of_two_deadlines_the_earlier_holds() -> None:
    own = read("chat", deadline_ms=500, on_deadline="full", priority=3).terms
    assert shared.earlier(own, None) == own
    assert shared.earlier(own, 900) == own
    assert shared.earlier(own, 100) == msgspec.structs.replace(own, deadline_ms=100)
    assert shared.earlier(shared.Terms(), 100).deadline_ms == 100


def test_promised_tokens() -> None:
    finish, full = shared.Terms(), shared.Terms(on_deadline="full")
    assert [finish.promised_tokens(0, most) for most in (1, 2, 3, 48)] == [1, 1, 2, 24]
    assert finish.promised_tokens(7, 48) == 7
    assert full.promised_tokens(7, 48) == 48
