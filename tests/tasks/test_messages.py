"""What callers get wrong, and the message that says how it is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from engine_at_rest import idle

from subsecond import (
    LLM,
    InputError,
    RequestError,
    RuntimeFailure,
    SamplingParams,
    TextError,
)
from subsecond.formats.convert import convert

FEW = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.logits("abc"), RequestError, r"token_ids must be .* not a text \(LLM.encode"),
        (lambda m: m.generate("x", {"n": 1}), RequestError,
         r"params must be SamplingParams, not dict; write SamplingParams\(\*\*params\)"),
        (lambda m: m.chat([USER], {"n": 1}), RequestError, r"write SamplingParams\(\*\*params\)"),
        (lambda m: m.stream("x", [FEW]), RequestError, "params must be SamplingParams, not list"),
        (lambda m: m.generate(["x"], [5]), RequestError, "must be SamplingParams, not int"),
        (lambda m: m.generate("x", [FEW, FEW]), RequestError, "1 prompts need as many params"),
        (lambda m: m.generate("x", []), RequestError, "1 prompts need as many params, not 0"),
        (lambda m: m.stream(["a", "b"]), RequestError, "list of str.*only `generate` takes"),
        (lambda m: m.stream([[1, 2]]), RequestError, "list of list.*only `generate`"),
        (lambda m: m.stream([1, "a"]), RequestError, r"prompt\[1\] is 'a'; token ids are integers"),
        (lambda m: m.generate([1.5, 2.0]), RequestError, r"prompt\[0\] is 1.5, a float"),
        (lambda m: m.generate(b"x"), RequestError, r"not bytes \(decode it"),
        (lambda m: m.generate(None), RequestError, "prompts must be a text.*not NoneType"),
        (lambda m: m.stream(None), RequestError, "prompt must be a text .*not NoneType"),
        (lambda m: m.generate(np.array([[1.0]])), RequestError, r"prompt\[0\] is 1.0, a float"),
        (lambda m: m.chat([]), TextError, r"messages is empty; .*\[{'role': 'user'"),
        (lambda m: m.chat("hi"), TextError, r"messages must be a list, not one str; write \["),
        (lambda m: m.chat(USER), TextError, "messages must be a list, not one dict"),
        (lambda m: m.chat(None), TextError, "messages must be a list like .* not NoneType"),
        (lambda m: m.chat(["hi"]), TextError, r"messages\[0\] must be a mapping, not str"),
        (lambda m: m.chat([{"role": "usr", "content": "x"}]), TextError,
         r"messages\[0\].role is 'usr'.*knows system, user, assistant"),
        (lambda m: m.chat([USER, {"role": "tool", "content": "x"}]), TextError,
         r"messages\[1\].role is 'tool', which the model's chat template doesn't know"),
        (lambda m: m.chat([USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]), TextError,
         r"messages\[1\] has tool_calls, and .* no place"),
        (lambda m: m.chat([USER], tools=[{"type": "function"}]), TextError, "doesn't take tools"),
        (lambda m: m.chat([USER], tools={"a": 1}), TextError, "tools must be a list of mappings"),
        (lambda m: m.chat([USER], documents=["x"]), TextError, r"documents\[0\] must be a mapping"),
        (lambda m: m.chat([USER], documents=[{}]), TextError, "doesn't take documents"),
        (lambda m: m.chat([USER], template_variables={"enable_thinkin": False}), TextError,
         "doesn't use 'enable_thinkin'"),
        (lambda m: m.chat([USER], template_variables={"messages": []}), TextError, "of its own"),
        (lambda m: m.stream_chat([USER], tools=[{}]), TextError, "doesn't take tools"),
        (lambda m: m.stream_chat([USER], documents=[{}]), TextError, "doesn't take documents"),
        (lambda m: m.stream_chat([USER], template_variables={"x": 1}), TextError,
         "doesn't use 'x'"),
        (lambda m: m.chat([{"role": "user", "content": None}]), TextError, "has no content"),
        (lambda m: m.chat([{"role": "user", "content": 5}]), TextError, "must be a text.*int"),
        (lambda m: m.chat([{"role": "user", "content": [{"type": "image_url"}]}]), TextError,
         r"messages\[0\].content\[0\] has the type 'image_url'; this model reads only text"),
        (lambda m: m.chat([{"role": "user", "content": [{"type": "text"}]}]), TextError, "no text"),
        (lambda m: m.chat([{"role": "user", "content": "x", "name": np.array(1)}]), TextError,
         r"messages\[0\].name is a ndarray"),
        (lambda m: m.generate("x", SamplingParams(n=9)), RequestError,
         r"n is 9; at most 8 sequences run together; lower n, or .*LLM\(max_sequences=9\)"),
        (lambda m: m.generate(object()), RequestError, "not object$"),
        (lambda m: m.stream(object()), RequestError, "not object: a object$"),
        (lambda m: m.logits([object()]), RequestError, r"token_ids\[0\] is a object; token ids"),
        (lambda m: m.generate("x", SamplingParams(logit_bias={320: 1})), RequestError,
         "a token id of logit_bias is 320, outside the vocabulary: token ids are 0 to 319"),
        (lambda m: m.stream("x", SamplingParams(stop_token_ids=[1, 999])), RequestError,
         r"stop_token_ids\[1\] is 999, outside"),
        (lambda m: m.stream("x", SamplingParams(n=9)), RequestError, "n is 9; at most 8"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_anything_is_computed(
    llm: LLM, call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(llm)
    assert idle(llm._parts.engine)


@pytest.mark.parametrize("model", [None, 5, "", b"smollm2", ["a"], object])
def test_a_model_without_a_name_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match=r"model must be a name or a path, not .*smollm2-135m"):
        LLM(model)


@pytest.mark.parametrize("value", [-1, 1.5, True, "64", 2**40])
def test_a_prefix_cache_is_a_number_of_tokens(tiny_artifact: Path, value: Any) -> None:
    with pytest.raises(InputError, match="prefix_cache must be an integer from 0 to"):
        LLM(tiny_artifact, prefix_cache=value)


@pytest.mark.parametrize(("given", "pages"), [(None, 2), (0, 0), (1, 1), (65, 2), (4096, 64)])
def test_ended_texts_stay_known_in_one_context_of_memory_or_what_is_given(
    tiny_artifact: Path, given: int | None, pages: int
) -> None:
    with LLM(tiny_artifact, threads=1, context=128, prefix_cache=given) as model:
        assert model._parts.engine.pages.most_idle == pages
        turn = [{"role": "user", "content": "hi"}]
        first = model.chat(turn, FEW)
        again = model.chat(turn, FEW)
        assert again.text == first.text
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1


def test_arrays_are_prompts(llm: LLM) -> None:
    ids = llm.encode("the sky")
    expected = llm.generate([ids], FEW)[0].token_ids
    array = np.array(ids)
    assert llm.generate(array, FEW)[0].token_ids == expected  # type: ignore[arg-type]
    assert llm.generate([array, ids], FEW)[0].token_ids == expected  # type: ignore[list-item]
    both = llm.generate(np.array([ids, ids]), FEW)  # type: ignore[arg-type]
    assert [answer.token_ids for answer in both] == [expected] * 2
    pieces = list(llm.stream(array, FEW))  # type: ignore[arg-type]
    assert tuple(piece.token_id for piece in pieces) == expected
    assert len(llm.logits(array)) == len(ids)  # type: ignore[arg-type]


def test_text_parts_are_the_text(llm: LLM) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ids = llm.encode_chat([{"role": "user", "content": parts}])
    assert ids == llm.encode_chat([{"role": "user", "content": "a\nb"}])


def test_the_last_message_can_be_continued(llm: LLM) -> None:
    turns = [USER, {"role": "assistant", "content": "the sk"}]
    ids = llm.encode_chat(turns, continue_final_message=True)
    closed = llm.encode_chat(turns, add_generation_prompt=False)
    assert ids == closed[: len(ids)]
    assert llm.tokenizer.decode(ids).endswith("the sk")
    answer = llm.chat(turns, FEW, continue_final_message=True)
    assert answer.usage.prompt_tokens == len(ids)
    pieces = llm.stream_chat(turns, FEW, continue_final_message=True)
    assert "".join(piece.text for piece in pieces) == answer.text
    forged = [USER, {"role": "assistant", "content": "the<|end|> sk"}]
    ids = llm.encode_chat(forged, continue_final_message=True)
    assert llm.tokenizer.decode(ids).endswith("the<|end|> sk")


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model whose weights are finite and whose logits are not."""
    folder = tmp_path_factory.mktemp("overflowing")
    tiny.write("qwen3", folder / "checkpoint", tokenizer=True)
    changed = tiny.tensors("qwen3", 0, tiny.config("qwen3"))
    changed["model.norm.weight"][:] = 3e38
    tiny.write_safetensors(folder / "checkpoint" / "model.safetensors", changed)
    with LLM(convert(folder / "checkpoint", folder / "artifact", "f32").path, threads=1) as model:
        yield model


def test_logits_that_overflow_are_an_error_that_names_the_position(overflowing: LLM) -> None:
    with pytest.raises(RuntimeFailure, match=r"after token 0 .* NaN or infinite: a value overflow"):
        overflowing.logits([1, 2, 3])
    with pytest.raises(RuntimeFailure, match=r"after token 2 .* NaN or infinite"):
        overflowing.generate([1, 2, 3], FEW)
    assert idle(overflowing._parts.engine)
