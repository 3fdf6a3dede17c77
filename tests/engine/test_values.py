"""Token ids and numbers of other libraries become plain Python; the rest is refused by name."""

from __future__ import annotations

from array import array
from collections import deque
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from subsecond.engine.sampling import SamplingParams
from subsecond.engine.values import check_token_ids
from subsecond.errors import RequestError


class Index:
    """An integer of some library."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class Tensor:
    """What PyTorch's tensors do that matters here."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def tolist(self) -> Any:
        return self.values


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2, 3], (1, 2, 3), range(1, 4), deque([1, 2, 3]), array("i", [1, 2, 3]),
        memoryview(array("q", [1, 2, 3])), np.array([1, 2, 3]), np.array([1, 2, 3], np.uint8),
        [np.int64(1), np.int32(2), 3], [Index(1), Index(2), Index(3)], Tensor([1, 2, 3]),
        [Tensor(1), Tensor(2), Tensor(3)], np.arange(1, 6)[:3],
    ],
    ids=lambda value: f"{type(value).__name__} {value!r:.20}",
)  # fmt: skip
def test_ids_of_every_kind_become_plain_integers(ids: Any) -> None:
    taken = check_token_ids(ids, 4)
    assert taken == [1, 2, 3]
    assert {type(token_id) for token_id in taken} == {int}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 1.5], r"prompt\[1\] is 1.5, a float; convert token ids to integers"),
        (np.array([1.0]), r"prompt\[0\] is 1.0, a float"),
        ([np.float32(1)], r"prompt\[0\] is np.float32\(1.0\), a float"),
        ([1, True], r"prompt\[1\] is True, a truth value"),
        (np.array([True]), r"prompt\[0\] is True, a truth value"),
        ([np.bool_(True)], r"prompt\[0\] is True, a truth value"),
        ([Tensor(True)], r"prompt\[0\] is True, a truth value"),
        (np.array([[1, 2]]), r"prompt\[0\] is a sequence, .*one dimension"),
        ([[1]], r"prompt\[0\] is a sequence"),
        ({1}, "not a set"),
        ([1, 100], r"prompt\[1\] is 100, outside the vocabulary: token ids are 0 to 99"),
        ([np.int64(-1)], r"prompt\[0\] is np.int64\(-1\), outside the vocabulary"),
        ([None], r"prompt\[0\] is None; token ids are integers"),
        ("abc", r"prompt must be a list of token ids, not a text \(LLM.encode makes ids of it\)"),
        (b"abc", "not bytes"), ({1: 2}, "not a dict"), (5, "not a int: 5"), ([], "prompt is empty"),
        (np.array([], np.int64), "prompt is empty"), (np.array(5), "not a ndarray"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_what_is_no_list_of_ids_is_refused_with_its_place(ids: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        check_token_ids(ids, 100)
    assert caught.value.param == "prompt"


def test_numbers_of_other_libraries_become_plain() -> None:
    params = SamplingParams(
        max_tokens=np.int64(5),  # type: ignore[arg-type]
        seed=np.uint64(2**64 - 1),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_p=Fraction(1, 2),  # type: ignore[arg-type]
        min_p=np.array(0.25),  # type: ignore[arg-type]
        logit_bias={np.int64(3): np.float64(1.0)},  # type: ignore[dict-item]
        stop_token_ids=np.array([7, 8]),  # type: ignore[arg-type]
        stop="x",
    )
    assert params == SamplingParams(
        max_tokens=5, seed=2**64 - 1, temperature=0.5, top_p=0.5, min_p=0.25,
        logit_bias={3: 1.0}, stop_token_ids=(7, 8), stop=("x",),
    )  # fmt: skip
    values = (params.max_tokens, params.seed, *params.logit_bias, *params.stop_token_ids)
    assert {type(value) for value in values} == {int}
    assert type(params.temperature) is float


def test_the_callers_lists_are_copied() -> None:
    stops, bias = ["a"], {1: 2.0}
    params = SamplingParams(stop=stops, logit_bias=bias)
    stops.append("b")
    bias[5] = 1.0
    assert (params.stops, dict(params.logit_bias)) == (("a",), {1: 2.0})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_p", 1e-300, r"top_p is 1e-300, which float32 can't hold; the smallest is 1.2e-38"),
        ("temperature", 1e-320, "temperature is 1e-320, which float32"),
        ("min_p", 5e-39, "min_p is 5e-39, which float32"),
        ("presence_penalty", -1e-40, "presence_penalty is -1e-40, which float32"),
        ("repetition_penalty", 1e-45, "must be a number from 0.01 to 100, not 1e-45"),
        ("repetition_penalty", 0.0099, "must be a number from 0.01 to 100, not 0.0099"),
    ],
    ids=lambda value: repr(value)[:24],
)  # fmt: skip
def test_numbers_that_float32_cannot_hold_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
