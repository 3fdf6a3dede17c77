"""Sampling parameters: every bad value is a RequestError that names it, the edges are accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams
from subsecond.errors import RequestError

NAN, INF = float("nan"), float("inf")
WRONG_TYPES: list[Any] = ["1", [1], {}, object(), b"1", 1j]

# parameter -> (accepted edges, refused beyond them)
INTEGERS: Mapping[str, tuple[list[Any], list[Any]]] = {
    "max_tokens": ([None, 1, 2**31 - 1], [0, -1, 2**31, 2**63]),
    "min_tokens": ([0, 5], [-1, 2**31]),
    "top_k": ([0, 1, 2**31 - 1], [-1, 2**31]),
    "seed": ([None, 0, 2**64 - 1], [-1, 2**64]),
    "logprobs": ([None, 0, 20], [-1, 21]),
    "n": ([1, 1024], [0, -1, 1025]),
}
NUMBERS: Mapping[str, tuple[list[Any], list[Any]]] = {
    "temperature": ([0, 0.0, 1, 100.0], [-1e-9, 100.1]),
    "top_p": ([1e-9, 1, 1.0], [0, -0.1, 1.0001]),
    "min_p": ([0, 1.0], [-0.1, 1.1]),
    "repetition_penalty": ([0.01, 100], [0, -1, 101]),
    "presence_penalty": ([-2, 2.0], [-2.1, 2.1]),
    "frequency_penalty": ([-2, 2.0], [-2.1, 2.1]),
}


def refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert name in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", [*INTEGERS, *NUMBERS])
def test_edges_are_accepted_and_what_is_beyond_is_refused(name: str) -> None:
    accepted, beyond = (INTEGERS | NUMBERS)[name]  # type: ignore[operator]
    for value in accepted:
        assert getattr(SamplingParams(**{name: value}), name) == value
    for value in beyond:
        refused(name, value)


@pytest.mark.parametrize("name", [*INTEGERS, *NUMBERS])
@pytest.mark.parametrize("value", [True, False, NAN, INF, -INF, *WRONG_TYPES], ids=repr)
def test_wrong_types_bools_and_nan_are_refused(name: str, value: Any) -> None:
    refused(name, value)


def test_integers_must_be_integers() -> None:
    for name in INTEGERS:
        refused(name, 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", 1), ("stop", [1]), ("stop", ""), ("stop", [""]), ("stop", None), ("stop", {"a"}),
        ("stop", ["x"] * 65), ("stop", "x" * 1025), ("stop_token_ids", 5), ("stop_token_ids", [-1]),
        ("stop_token_ids", [True]), ("stop_token_ids", ["a"]), ("stop_token_ids", [2**31]),
        ("stop_token_ids", list(range(65))), ("ignore_eos", 1), ("ignore_eos", None),
        ("ignore_eos", "no"), ("logit_bias", [1]), ("logit_bias", {"x": 1.0}),
        ("logit_bias", {"-1": 1.0}),
        ("logit_bias", {"1": 1.0, 1: 1.0}), ("logit_bias", {object(): 1.0}),
        ("logit_bias", {1: "x"}), ("logit_bias", {1: NAN}),
        ("logit_bias", {1: 100.1}), ("logit_bias", {-1: 0.0}), ("logit_bias", {True: 0.0}),
        ("logit_bias", None), ("logit_bias", dict.fromkeys(range(4097), 0.0)),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_bad_stops_and_biases_are_refused(name: str, value: Any) -> None:
    refused(name, value)


def test_min_tokens_may_not_exceed_max_tokens() -> None:
    with pytest.raises(RequestError, match=r"min_tokens is 5, more than max_tokens \(4\)"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_values_that_cannot_be_printed_are_still_refused_politely() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    refused("n", Rude())
    refused("top_k", 10**5000)
    refused("temperature", "x" * 10_000)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_p", 2, "top_p must be a number above 0 and at most 1, not 2"),
        ("min_p", 1.5, "min_p must be a number from 0 to 1, not 1.5"),
        ("logprobs", 21, "logprobs must be an integer from 0 to 20, not 21"),
        ("seed", 2**64, "seed must be an integer from 0 to 18446744073709551615, not 184"),
        ("stop", ["ok", ""], "stop must hold strings of 1 to 1024 characters, not ''"),
        ("stop", "a\ud800", "not valid Unicode"),
        ("logit_bias", {-1: 3.0}, "has the token id -1; token ids are 0 to .*vocab_size"),
        ("stop_token_ids", [1.0], "stop_token_ids is 1.0, a float"),
    ],
)
def test_messages_name_the_range(name: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**{name: value})


def test_unknown_parameters_are_an_error() -> None:
    with pytest.raises(TypeError, match="top_kk"):
        SamplingParams(top_kk=1)  # type: ignore[call-arg]


def test_seeds_that_are_not_given_differ() -> None:
    seeds = {Request([1], SamplingParams(), max_tokens=1, stop_ids=()).seed for _ in range(8)}
    assert len(seeds) == 8
    assert Request([1], SamplingParams(seed=0), max_tokens=1, stop_ids=()).seed == 0


def test_logit_bias_takes_the_keys_of_json() -> None:
    assert SamplingParams(logit_bias={"5": 3.0, 6: 1}).logit_bias == {5: 3.0, 6: 1.0}  # type: ignore[dict-item]


def test_messages_hold_no_addresses() -> None:
    for name in ("max_tokens", "temperature", "stop", "logit_bias", "ignore_eos"):
        with pytest.raises(RequestError) as caught:
            SamplingParams(**{name: object()})
        assert "0x" not in str(caught.value)
        assert "a object" in str(caught.value)


def test_equal_parameters_are_one_key() -> None:
    one = SamplingParams(logit_bias={1: 2.0, 3: 4.0}, stop="x", stop_token_ids=[7])
    same = SamplingParams(logit_bias={3: 4.0, 1: 2.0}, stop=["x"], stop_token_ids=(7,))
    assert one == same
    assert len({one, same, SamplingParams(stop="x")}) == 2
