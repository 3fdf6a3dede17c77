"""Rows of one sampler: tokens, log probabilities, counts and KV cache are those of step by step,
whatever was drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_driver import ISAS, Driver, Packed, Text, pack
from test_same_bits import VOCAB, model

from subsecond.errors import RequestError
from subsecond.runtime.native import Sampler

STEPS = 40
PROMPTS = [[5, 6, 7], [9], list(range(60))]

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, all counts": {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.7,
        "logit_bias": [(3, 2.0), (4, -50.0)],
    },
    "sampled": {"temperature": 1.0, "seed": 5},
    "sampled from few, counted": {
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "seed": 6,
        "frequency_penalty": 0.4,
        "logprobs": 4,
    },
    "greedy, described": {"logprobs": 0},
    "stops": {"temperature": 1.0, "seed": 7, "stop_ids": list(range(0, 90, 9)), "min_tokens": 12},
}


@pytest.fixture(scope="module", params=[0, 20], ids=["full", "window"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    rng = np.random.default_rng(3)
    program = model(window=request.param)
    weights = {
        spec.name: (
            np.abs(rng.standard_normal(spec.shape)) * 0.3 + 0.1
            if spec.kind == "vector"
            else rng.standard_normal(spec.shape) * 2 / np.sqrt(spec.k)
        ).astype(np.float32)
        for spec in program.tensors
    }
    formats = {
        spec.name: "int8_split" if spec.name == "embedding" else "int8"
        for spec in program.tensors
        if spec.kind == "matrix"
    }
    packed = pack(tmp_path_factory.mktemp("drafts") / "weights.bin", program, weights, formats)
    packed.values["window"] = np.array([request.param], np.float32)
    return packed


def driver_of(packed: Packed, kv: str = "bf16") -> Driver:
    window = int(packed.values["window"][0])
    return Driver(model(window=window), packed, isa=ISAS[-1], threads=2, kv=kv)


class Answer:
    """A text that grows, with all that its sampler said."""

    def __init__(self, driver: Driver, prompt: list[int], options: dict[str, Any]) -> None:
        self.place: Text = driver.sequence(256)
        self.sampler = Sampler(**options)
        self.describes = options.get("logprobs", -1) >= 0
        self.next = prompt  # tokens of the next step; all but the last are what came before
        self.tokens: list[int] = []
        self.logprobs: list[Any] = []
        self.ended = 0


def advance(
    driver: Driver, answers: Sequence[Answer], drafts: Sequence[Sequence[int]], check: bool = True
) -> None:
    """One step of texts, each with a draft behind its own next tokens."""
    work = [(own.place, [*own.next, *draft]) for own, draft in zip(answers, drafts, strict=True)]
    total, row, end = driver.fill(work), 0, 0
    for own, draft, (_, tokens) in zip(answers, drafts, work, strict=True):
        end += len(tokens)
        for place in range(end - 1 - len(draft), end):
            driver.plan.row[row] = place
            driver.plan.set_sampler(row, own.sampler)
            row += 1
    assert driver.model.run(driver.plan, total, len(work), row, 1) == 1
    row = 0
    for own, draft in zip(answers, drafts, strict=True):
        got = [driver.plan.sampled[row + offset] for offset in range(1 + len(draft))]
        ends = [driver.plan.finish[row + offset] for offset in range(1 + len(draft))]
        taken = got.index(-1) if -1 in got else len(got)
        if check:
            assert got[taken:] == [-1] * (len(got) - taken)
            assert all(got[place] == draft[place] for place in range(taken - 1))
            assert ends[taken:] == [0] * (len(got) - taken)
        own.place.length += len(own.next) + taken - 1
        own.tokens += got[:taken]
        own.next = got[taken - 1 : taken]
        own.ended = ends[taken - 1]
        if own.describes:
            own.logprobs += [own.sampler.logprobs(place) for place in range(taken)]
            with pytest.raises(RequestError):
                own.sampler.logprobs(taken)
        row += 1 + len(draft)
    for used in range(row):
        driver.plan.set_sampler(used, None)


def alone(packed: Packed, prompt: list[int], options: dict[str, Any], kv: str) -> Answer:
    driver = driver_of(packed, kv)
    answer = Answer(driver, prompt, options)
    while len(answer.tokens) < STEPS and not answer.ended:
        advance(driver, [answer], [[]])
    return answer


def drafted(
    packed: Packed, expected: Sequence[Answer], options: dict[str, Any], kv: str, seed: int
) -> list[Answer]:
    """The same texts together, with drafts that are right up to a random place."""
    driver, rng = driver_of(packed, kv), np.random.default_rng(seed)
    answers = [Answer(driver, prompt, options) for prompt in PROMPTS]
    while any(len(own.tokens) < STEPS and not own.ended for own in answers):
        going, drafts = [], []
        for own, known in zip(answers, expected, strict=True):
            if len(own.tokens) >= STEPS or own.ended:
                continue
            done = len(own.tokens)
            draft = known.tokens[done : done + int(rng.integers(0, 9))]
            draft = [*draft, *rng.integers(0, VOCAB, 3).tolist()]  # behind a stop too
            draft = draft[: STEPS - done - 1]
            if draft and rng.random() < 0.5:
                draft = list(draft)
                draft[int(rng.integers(len(draft)))] = int(rng.integers(VOCAB))
            going.append(own)
            drafts.append(draft)
        advance(driver, going, drafts)
    return answers


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("name", SAMPLING)
def test_drafts_change_nothing(packed: Packed, name: str, kv: str) -> None:
    options = SAMPLING[name]
    expected = [alone(packed, prompt, options, kv) for prompt in PROMPTS]
    assert any(len(set(own.tokens)) > 3 for own in expected)
    for seed in range(2):
        for own, known in zip(drafted(packed, expected, options, kv, seed), expected, strict=True):
            assert own.tokens == known.tokens
            assert own.ended == known.ended
            assert own.logprobs == known.logprobs
            assert own.sampler.accepted == known.sampler.accepted == len(own.tokens)


def test_a_difference_would_be_found(packed: Packed) -> None:
    """Teeth: a draft whose tokens are taken whatever was chosen, each with a sampler of its own."""
    options = SAMPLING["greedy, all counts"]
    known = alone(packed, PROMPTS[0], options, "bf16")
    driver = driver_of(packed)
    answer = Answer(driver, PROMPTS[0], options)
    total = driver.fill([(answer.place, [*answer.next, *known.tokens[:7]])])
    for row in range(8):
        driver.plan.row[row] = total - 8 + row
        driver.plan.set_sampler(row, Sampler(**options))
    driver.model.run(driver.plan, total, 1, 8, 1)
    assert list(driver.plan.sampled[:8]) != known.tokens[:8]


def set_rows(places: list[int]) -> Callable[[Driver, Sampler], None]:
    def change(driver: Driver, sampler: Sampler) -> None:
        for row, place in enumerate(places):
            driver.plan.row[row] = place
            driver.plan.set_sampler(row, sampler)

    return change


@pytest.mark.parametrize(
    "places", [[0, 2], [1, 0], [0, 0], [2, 3]], ids=["gap", "back", "twice", "next sequence"]
)
def test_rows_that_are_no_draft_are_refused(packed: Packed, places: list[int]) -> None:
    driver = driver_of(packed)
    total = driver.fill([(driver.sequence(64), [1, 2, 3]), (driver.sequence(64), [4, 5, 6])])
    set_rows(places)(driver, Sampler())
    with pytest.raises(RequestError, match="two rows"):
        driver.model.run(driver.plan, total, 2, len(places), 1)


def test_a_draft_in_a_call_of_several_steps_is_refused(packed: Packed) -> None:
    driver = driver_of(packed)
    total = driver.fill([(driver.sequence(64), [1, 2]), (driver.sequence(64), [3])])
    set_rows([1, 2])(driver, Sampler())
    with pytest.raises(RequestError, match="two rows"):
        driver.model.run(driver.plan, total, 2, 2, 4)


def test_broken_logits_end_a_draft(tmp_path: Path) -> None:
    program = model(window=20)
    rng = np.random.default_rng(4)
    weights = {
        spec.name: (rng.standard_normal(spec.shape) / 8).astype(np.float32)
        for spec in program.tensors
    }
    weights["embedding"][7] = np.nan
    driver = Driver(program, pack(tmp_path / "w", program, weights, {}), threads=2)
    total = driver.fill([(driver.sequence(64), [1, 2, 3])])
    sampler = Sampler()
    set_rows([0, 1, 2])(driver, sampler)
    assert driver.model.run(driver.plan, total, 1, 3, 1) == 1
    assert list(driver.plan.sampled[:3]) == [-1, -1, -1]
    assert list(driver.plan.finish[:3]) == [3, 0, 0]
    assert sampler.accepted == 0
