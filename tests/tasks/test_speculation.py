"""LLM with speculation: the same answers to the bit, fewer steps, nothing held afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eager_drafts import make_eager
from engine_at_rest import assert_nothing_held

from subsecond import LLM, Constraint, InputError, SamplingParams
from subsecond.engine.drafting import RowCosts
from subsecond.engine.request import Request

OPTIONS: dict[str, Any] = {"threads": 2, "max_tokens_per_step": 64, "max_sequences": 8}
PROMPTS = ["the sky", "a b c d e f g a b c d e f g a b", "x" * 90]

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy with counts": {
        "temperature": 0.0,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.1,
        "logit_bias": {5: 3.0},
    },
    "sampled": {"temperature": 1.0, "seed": 7},
    "sampled from few": {"temperature": 0.7, "top_p": 0.9, "top_k": 30, "min_p": 0.01, "seed": 8},
    "three texts": {"temperature": 0.8, "seed": 9, "n": 3},
    "described": {"temperature": 0.6, "seed": 10, "logprobs": 5},
    "least length": {"temperature": 1.0, "seed": 11, "min_tokens": 20, "ignore_eos": False},
}


def params_of(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 60, "ignore_eos": True, **changes})


@pytest.fixture(scope="module", params=["bf16", "f32", "int8", "windows"])
def both(
    request: pytest.FixtureRequest, tiny_artifact: Path, tiny_window_artifact: Path
) -> Iterator[tuple[LLM, LLM]]:
    """Without and with."""
    windows = request.param == "windows"
    path = tiny_window_artifact if windows else tiny_artifact
    kv = None if windows else request.param
    with (
        LLM(path, kv=kv, speculation=False, **OPTIONS) as plain,
        LLM(path, kv=kv, **OPTIONS) as other,
    ):
        yield plain, other


@pytest.mark.parametrize("name", SAMPLING)
def test_answers_are_the_same(both: tuple[LLM, LLM], name: str) -> None:
    plain, other = both
    params = params_of(**SAMPLING[name])
    expected = plain.generate(PROMPTS, params)
    texts = [
        [*plain.encode(prompt), *output.token_ids]
        for prompt, answer in zip(PROMPTS, expected, strict=True)
        for output in answer.outputs
    ]
    engine = other._parts.engine
    drafting = make_eager(engine, texts, seed=3)
    for prompts in (PROMPTS, *([prompt] for prompt in PROMPTS)):
        answers = other.generate(prompts, params)
        for prompt, answer in zip(prompts, answers, strict=True):
            known = expected[PROMPTS.index(prompt)]
            assert repr(answer.outputs) == repr(known.outputs)  # floats to the bit
            assert answer.usage.completion_tokens == known.usage.completion_tokens
    assert 0 < drafting.accepted < drafting.drafted
    assert_nothing_held(engine)


def test_a_text_that_repeats_itself_takes_fewer_steps(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A step of so small a model takes less than what a call costs beside it: rows never pay.
    monkeypatch.setattr(RowCosts, "drafted", lambda *_: None)
    params = params_of(temperature=0.0, max_tokens=120)
    with LLM(tiny_artifact, speculation=False, **OPTIONS) as plain:
        known = [plain.generate(prompt, params)[0] for prompt in PROMPTS]
    with LLM(tiny_artifact, **OPTIONS) as other:
        for prompt, expected in zip(PROMPTS, known, strict=True):
            answer = other.generate(prompt, params)[0]
            assert answer.outputs == expected.outputs
            assert answer.usage.accepted_tokens <= answer.usage.drafted_tokens
        drafting = other._parts.engine.drafting
        assert drafting is not None
        assert drafting.accepted > 30  # greedy random models go round


def test_a_stop_string_inside_a_draft(both: tuple[LLM, LLM]) -> None:
    plain, other = both
    (whole,) = plain.generate("the sky", params_of(temperature=0.0))
    stop = whole.text[20:23]
    params = params_of(temperature=0.0, stop=stop)
    (expected,) = plain.generate("the sky", params)
    make_eager(other._parts.engine, [[*plain.encode("the sky"), *whole.token_ids]], seed=5)
    (answer,) = other.generate("the sky", params)
    assert answer.outputs == expected.outputs
    assert answer.finish_reason == "stop"
    assert list(other.stream("the sky", params))[-1].finish_reason == "stop"
    assert_nothing_held(other._parts.engine)


def test_a_stream_gives_the_same_pieces_and_may_be_left(both: tuple[LLM, LLM]) -> None:
    plain, other = both
    params = params_of(temperature=0.0)
    pieces = list(plain.stream("the sky", params))
    (whole,) = plain.generate("the sky", params)
    make_eager(other._parts.engine, [[*plain.encode("the sky"), *whole.token_ids]], seed=6)
    assert list(other.stream("the sky", params)) == pieces
    left = other.stream("the sky", params)
    assert [next(left) for _ in range(9)] == pieces[:9]
    left.close()
    assert_nothing_held(other._parts.engine)


def test_a_conversation_that_finds_its_beginning_known(both: tuple[LLM, LLM]) -> None:
    """Pages that hold a draft's rest are never found."""
    plain, other = both
    params = params_of(temperature=0.0, max_tokens=90)
    prompt = plain.encode("the sky " * 20)
    for llm in both:
        llm._parts.engine.prefixes.clear()
    for turn in range(4):
        (expected,) = plain.generate([prompt], params)
        make_eager(other._parts.engine, [[*prompt, *expected.token_ids]], seed=turn)
        (answer,) = other.generate([prompt], params)
        assert answer.outputs == expected.outputs
        assert answer.usage.cached_tokens == expected.usage.cached_tokens
        assert answer.usage.accepted_tokens > 0
        prompt = [*prompt, *answer.token_ids, *plain.encode("and")]


def test_a_text_with_a_constraint_has_no_drafts(tiny_artifact: Path) -> None:
    params = SamplingParams(max_tokens=40, constraint=Constraint.regex("(ab){6}c"))
    with LLM(tiny_artifact, **OPTIONS) as other:
        drafting = make_eager(other._parts.engine, [], seed=8)
        (answer,) = other.generate("the sky", params)
        assert answer.text == "ab" * 6 + "c"
        assert drafting.drafted == 0


def test_the_option_is_checked_and_turns_it_off(tiny_artifact: Path) -> None:
    with pytest.raises(InputError, match="speculation"):
        LLM(tiny_artifact, speculation="yes")  # type: ignore[arg-type]
    with LLM(tiny_artifact, speculation=False, **OPTIONS) as plain:
        assert plain._parts.engine.drafting is None
        request = Request([1], SamplingParams(), max_tokens=1, stop_ids=())
        assert request.drafted_tokens == 0
