"""What is left out: the model's own sampling, else greedy; 1,024 tokens, or what is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from subsecond import LLM, Chat, ModelError, RequestError, SamplingParams
from subsecond.engine.sampling import DEFAULT_MAX_TOKENS, Sampling

NOTHING = SamplingParams()


@pytest.fixture
def suggesting(tiny_artifact: Path) -> Iterator[Any]:
    """A model whose authors suggest a sampling: call it with their generation_config."""
    with LLM(tiny_artifact, threads=1, max_sequences=2) as model:

        def suggest(**generation: Any) -> LLM:
            settings = model._parts.settings
            changed = {**_fields(settings), "generation": generation}
            object.__setattr__(model._parts, "settings", type(settings)(**changed))
            return model

        yield suggest


def _fields(settings: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def test_without_suggestions_the_most_probable_tokens_are_taken(suggesting: Any) -> None:
    llm = suggesting()
    assert llm.request([1]).sampling == Sampling()
    assert Sampling().temperature == 0.0
    greedy = SamplingParams(temperature=0.0, max_tokens=20)
    few = SamplingParams(max_tokens=20)
    assert llm.generate("x", few)[0].outputs == llm.generate("x", greedy)[0].outputs


@pytest.mark.parametrize("params", [None, NOTHING], ids=["None", "SamplingParams()"])
def test_what_is_left_out_is_the_models_own(suggesting: Any, params: Any) -> None:
    llm = suggesting(temperature=0.6, top_k=20.0, top_p=0.9, repetition_penalty=1.05)
    expected = Sampling(temperature=0.6, top_k=20, top_p=0.9, repetition_penalty=1.05)
    assert llm.request([1], params).sampling == expected
    assert llm.default_params == SamplingParams(
        temperature=0.6, top_k=20, top_p=0.9, min_p=0.0, repetition_penalty=1.05
    )


def test_one_parameter_that_is_given_replaces_only_that_one(suggesting: Any) -> None:
    llm = suggesting(temperature=0.6, top_k=20, top_p=0.9)
    sampling = llm.request([1], SamplingParams(temperature=0, top_p=1)).sampling
    assert sampling == Sampling(temperature=0.0, top_k=20, top_p=1.0)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1},
         Sampling(temperature=0.0, repetition_penalty=1.1)),
        ({"do_sample": True}, Sampling(temperature=1.0)),
        ({"do_sample": True, "temperature": 0.3}, Sampling(temperature=0.3)),
        ({"repetition_penalty": 1.1}, Sampling(repetition_penalty=1.1)),
    ],
)  # fmt: skip
def test_do_sample_means_what_transformers_means(
    suggesting: Any, generation: dict[str, Any], expected: Sampling
) -> None:
    assert suggesting(**generation).request([1]).sampling == expected


def test_a_bad_suggestion_matters_only_where_it_is_used(suggesting: Any) -> None:
    llm = suggesting(top_p=7.0)
    with pytest.raises(ModelError, match=r"top_p must be .*not 7.*give SamplingParams\(top_p="):
        llm.generate("x")
    assert llm.generate("x", SamplingParams(top_p=1, max_tokens=1))


def test_an_answer_has_a_bound_that_nobody_has_to_give(suggesting: Any) -> None:
    llm = suggesting()
    scheduler = llm._parts.engine.scheduler
    scheduler.limits = replace(scheduler.limits, context=5000)
    assert DEFAULT_MAX_TOKENS == 1024
    for params in (None, NOTHING, SamplingParams(temperature=0.5)):
        assert llm.request([1] * 100, params).max_tokens == 1024
        assert llm.request([1] * 4900, params).max_tokens == 100
    assert llm.request([1], SamplingParams(min_tokens=2000)).max_tokens == 2000
    assert llm.request([1], SamplingParams(max_tokens=4999)).max_tokens == 4999


def test_chat_and_generate_have_the_same_bound(suggesting: Any) -> None:
    llm = suggesting()
    lengths = []
    run = llm._shared.run

    def counted(requests: Any) -> Any:
        lengths.extend(request.max_tokens for request in requests)
        return run(requests)

    llm._shared.run = counted
    llm.generate("x", SamplingParams(logit_bias={llm.tokenizer.control_tokens["<|end|>"]: 100}))
    llm.chat([{"role": "user", "content": "x"}], SamplingParams(stop_token_ids=list(range(64))))
    rooms = [len(llm.encode("x")), len(llm.encode_chat([{"role": "user", "content": "x"}]))]
    assert lengths == [min(1024, llm.context - room) for room in rooms]
    chat = Chat(llm, params=SamplingParams(stop_token_ids=list(range(64))))
    next(chat.stream("x"))
    assert chat._request is not None
    assert chat._request.max_tokens == lengths[1]


def test_min_tokens_that_do_not_fit_are_refused(suggesting: Any) -> None:
    llm = suggesting()
    with pytest.raises(RequestError, match=r"min_tokens is 600, .*holds only") as caught:
        llm.generate("x", SamplingParams(min_tokens=600))
    assert caught.value.param == "min_tokens"
