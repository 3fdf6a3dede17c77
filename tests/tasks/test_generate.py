"""LLM on a tiny random model: texts, sampling, log probabilities, stop strings, cancels,
refusals.
"""

from __future__ import annotations

import codecs
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_at_rest import idle

from subsecond import LLM, RequestError, SamplingParams, TextError
from subsecond.engine.invariants import check, snapshot

GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
PROMPTS = ["the sky", "a", "hello there, " * 20, "你好 🎉", "x" * 90]


def pages_in_use(llm: LLM) -> int:
    engine = llm._parts.engine
    assert check(snapshot(engine)) == []
    return sum(pool.size - pool.available for pool in engine.pages.pools)


def sampling(**changes: Any) -> SamplingParams:
    values = {"max_tokens": 30, "ignore_eos": True, "temperature": 1.0, "seed": 7, **changes}
    return SamplingParams(**values)


def test_a_completion_is_complete(llm: LLM) -> None:
    (answer,) = llm.generate("the sky", GREEDY)
    assert len(answer.token_ids) == 40
    assert answer.finish_reason == "length"
    assert answer.text == llm.tokenizer.decode(answer.token_ids)
    assert answer.usage.prompt_tokens == len(llm.tokenizer.encode("the sky"))
    assert (answer.usage.completion_tokens, answer.usage.cached_tokens) == (40, 0)
    assert answer.timing.queue_s >= 0
    assert answer.timing.prefill_s > 0
    assert answer.timing.decode_s > 0
    assert answer.logprobs is None


def test_greedy_takes_the_largest_logit(llm: LLM) -> None:
    ids = llm.tokenizer.encode("the sky")
    (answer,) = llm.generate([ids], GREEDY)
    logits = np.asarray(llm.logits([*ids, *answer.token_ids]))
    assert logits.dtype == np.float32
    assert logits.shape == (len(ids) + 40, llm.vocab_size)
    assert np.argmax(logits[len(ids) - 1 : -1], axis=1).tolist() == list(answer.token_ids)


def test_a_batch_gives_what_each_prompt_gives_alone(llm: LLM) -> None:
    params = [sampling(seed=i, temperature=0.8, top_p=0.9, logprobs=3) for i in range(len(PROMPTS))]
    together = llm.generate(PROMPTS, params)
    for prompt, own, answer in zip(PROMPTS, params, together, strict=True):
        assert llm.generate(prompt, own)[0].outputs == answer.outputs
    assert pages_in_use(llm) == 0


def test_text_and_token_ids_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.tokenizer.encode("the sky")
    assert llm.generate(ids, GREEDY)[0].text == llm.generate("the sky", GREEDY)[0].text
    assert len(llm.generate([ids, ids], GREEDY)) == 2


def test_more_prompts_than_places(llm: LLM) -> None:
    answers = llm.generate([f"number {i}" for i in range(20)], GREEDY)
    assert len(answers) == 20
    assert answers[17].text == llm.generate("number 17", GREEDY)[0].text


def test_a_stream_gives_the_same_text_piece_by_piece(llm: LLM) -> None:
    (answer,) = llm.generate("the sky", GREEDY)
    pieces = list(llm.stream("the sky", GREEDY))
    assert "".join(piece.text for piece in pieces) == answer.text
    assert tuple(piece.token_id for piece in pieces) == answer.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * 39 + ["length"]


def test_pieces_never_end_inside_a_character(llm: LLM) -> None:
    """A random model makes any bytes: what is shown must be what decoding all at once shows."""
    emoji = "🎉".encode()
    ids = list(emoji)  # the tiny tokenizer's first 256 ids are bytes
    bias = dict.fromkeys(ids, 60.0)
    params = sampling(logit_bias=bias, max_tokens=200, temperature=1.5)
    pieces = list(llm.stream("x", params))
    assert {piece.token_id for piece in pieces} <= set(ids)
    shown = codecs.getincrementaldecoder("utf-8")("replace")  # not what ends inside a character
    whole = shown.decode(bytes(piece.token_id for piece in pieces))
    assert "".join(piece.text for piece in pieces) == whole
    assert "🎉" in whole
    assert any(piece.text == "🎉" for piece in pieces)


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    (answer,) = llm.generate("the sky", GREEDY)
    stop = answer.text[10:13]
    place = answer.text.find(stop)
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, stop=[stop, "never"])
    (stopped,) = llm.generate("the sky", params)
    assert (stopped.text, stopped.finish_reason) == (answer.text[:place], "stop")
    assert stopped.token_ids == answer.token_ids[: len(stopped.token_ids)]
    streamed = list(llm.stream("the sky", params))
    assert "".join(piece.text for piece in streamed) == stopped.text
    assert streamed[-1].finish_reason == "stop"
    assert pages_in_use(llm) == 0


def test_a_stop_token_ends_the_text_and_has_none(llm: LLM) -> None:
    (answer,) = llm.generate("the sky", GREEDY)
    place = 5
    while answer.token_ids[place] in answer.token_ids[:place]:
        place += 1
    params = SamplingParams(
        temperature=0.0, max_tokens=40, ignore_eos=True, stop_token_ids=[answer.token_ids[place]]
    )
    (stopped,) = llm.generate("the sky", params)
    assert stopped.token_ids == answer.token_ids[: place + 1]
    assert stopped.text == llm.tokenizer.decode(answer.token_ids[:place])
    assert stopped.finish_reason == "stop"


def test_the_end_of_text_is_obeyed_ignored_and_delayed(llm: LLM) -> None:
    end = llm.tokenizer.control_tokens["<|end|>"]
    bias = {end: 100.0}
    (ended,) = llm.generate("x", sampling(ignore_eos=False, logit_bias=bias))
    assert (ended.token_ids, ended.text, ended.finish_reason) == ((end,), "", "stop")
    (ignored,) = llm.generate("x", sampling(logit_bias=bias))
    assert ignored.token_ids == (end,) * 30
    (delayed,) = llm.generate("x", sampling(ignore_eos=False, logit_bias=bias, min_tokens=12))
    assert len(delayed.token_ids) == 13
    assert end not in delayed.token_ids[:12]


def test_a_seed_fixes_the_text(llm: LLM) -> None:
    same = [llm.generate("the sky", sampling(seed=5))[0].token_ids for _ in range(2)]
    assert same[0] == same[1]
    assert llm.generate("the sky", sampling(seed=6))[0].token_ids != same[0]
    free = {llm.generate("the sky", sampling(seed=None))[0].token_ids for _ in range(3)}
    assert len(free) > 1


@pytest.mark.parametrize("prompt", ["x", "the sky is " * 9])
def test_n_texts(llm: LLM, prompt: str) -> None:
    (answer,) = llm.generate(prompt, sampling(n=4, logprobs=1))
    texts = [output.token_ids for output in answer.outputs]
    assert len(set(texts)) == 4
    assert texts[0] == llm.generate(prompt, sampling(n=1))[0].token_ids
    assert answer.usage.completion_tokens == 120
    assert pages_in_use(llm) == 0
    streamed = list(llm.stream(prompt, sampling(n=4)))
    for choice in range(4):
        own = [piece for piece in streamed if piece.index == choice]
        assert tuple(piece.token_id for piece in own) == texts[choice]
        assert own[-1].finish_reason == "length"


def test_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    ids = llm.tokenizer.encode("hello")
    (answer,) = llm.generate([ids], sampling(logprobs=5, top_k=3, repetition_penalty=1.3))
    assert answer.logprobs is not None
    logits = np.asarray(llm.logits([*ids, *answer.token_ids])).astype(np.float64)
    for step, entry in enumerate(answer.logprobs):
        row = logits[len(ids) - 1 + step]
        expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert entry.token_id == answer.token_ids[step]
        assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-4)
        best = np.argsort(-row, kind="stable")[:5]
        assert [token_id for token_id, _ in entry.top] == best.tolist()
        assert [value for _, value in entry.top] == pytest.approx(expected[best].tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "changes", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str
)
def test_every_way_to_be_greedy_agrees(llm: LLM, changes: dict[str, Any]) -> None:
    greedy = llm.generate("the sky", GREEDY)[0].token_ids
    assert llm.generate("the sky", sampling(**changes))[0].token_ids == greedy[:30]


def test_penalties_keep_tokens_from_coming_back(llm: LLM) -> None:
    plain = llm.generate("x", sampling(temperature=0.0, max_tokens=100))[0].token_ids
    for changes in (
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"repetition_penalty": 50.0},
    ):
        penal = llm.generate("x", sampling(temperature=0.0, max_tokens=100, **changes))[0].token_ids
        assert len(set(penal)) > len(set(plain))


def test_closing_a_stream_gives_its_pages_back(llm: LLM) -> None:
    stream = llm.stream("the sky " * 10, GREEDY)
    other = llm.stream("hello", GREEDY)
    for _ in range(3):
        next(stream)
        next(other)
    assert pages_in_use(llm) > 0
    stream.close()
    expected = [piece.text for piece in llm.stream("hello", GREEDY)]
    assert [piece.text for piece in other] == expected[3:]
    assert pages_in_use(llm) == 0


def test_a_stream_closed_in_the_middle_of_a_step_ends_after_it(llm: LLM) -> None:
    """As the garbage collector may do it, in the thread that runs the step."""
    stream = llm.stream("the sky " * 10, GREEDY)
    next(stream)
    runner = llm._parts.engine.runner
    run = runner.run

    def closing(tokens: int, sequences: int, rows: int, max_steps: int) -> int:
        stream.close()  # type: ignore[attr-defined]
        return run(tokens, sequences, rows, max_steps)

    runner.run = closing  # type: ignore[method-assign]
    try:
        expected = llm.generate("hello", GREEDY)[0].text
    finally:
        del runner.run
    assert llm.generate("hello", GREEDY)[0].text == expected
    assert idle(llm._parts.engine)
    assert pages_in_use(llm) == 0


def test_a_stream_that_never_began_holds_nothing(llm: LLM) -> None:
    stream = llm.stream("the sky", GREEDY)
    del stream
    assert idle(llm._parts.engine)


def test_threads_may_share_a_model(llm: LLM) -> None:
    expected = {prompt: llm.generate(prompt, GREEDY)[0].text for prompt in PROMPTS}
    answers: dict[str, str] = {}

    def work(prompt: str) -> None:
        answers[prompt] = "".join(piece.text for piece in llm.stream(prompt, GREEDY))

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == expected


def test_the_context_is_used_to_its_end_and_never_cut(llm: LLM) -> None:
    ids = [5] * (llm.context - 3)
    (answer,) = llm.generate(ids, SamplingParams(temperature=0.0, ignore_eos=True))
    assert len(answer.token_ids) == 3
    with pytest.raises(
        RequestError, match=f"{llm.context} tokens.*context of {llm.context}"
    ) as caught:
        llm.generate([5] * llm.context, GREEDY)
    assert caught.value.param == "prompt"
    with pytest.raises(RequestError, match=rf"max_tokens is 40.*{llm.context}") as caught:
        llm.generate([5] * (llm.context - 3), GREEDY)
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        ("", RequestError), ([], RequestError), ([[]], RequestError), ([""], RequestError),
        (7, RequestError), ([None], RequestError), (["ok", [1, "a"]], RequestError),
        ([[-1]], RequestError), ([[320]], RequestError), ([[2**70]], RequestError),
        ("\ud800", TextError), (["ok", "\udfff"], TextError), ("a" * 10_000_000, TextError),
        ({"a": 1}, RequestError),
    ],
)  # fmt: skip
def test_bad_prompts_are_refused(llm: LLM, prompts: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        llm.generate(prompts, GREEDY)
    assert idle(llm._parts.engine)
    assert pages_in_use(llm) == 0


def test_a_bias_against_every_token_changes_nothing(llm: LLM) -> None:
    everything = dict.fromkeys(range(llm.vocab_size), -100.0)
    (answer,) = llm.generate("x", sampling(logit_bias=everything, temperature=0.0))
    assert answer.token_ids == llm.generate("x", sampling(temperature=0.0))[0].token_ids


def test_logits_refuse_what_generate_refuses(llm: LLM) -> None:
    for bad in ([], [-1], [llm.vocab_size], "text", [0] * (llm.context + 1)):
        with pytest.raises(RequestError):
            llm.logits(bad)  # type: ignore[arg-type]
    assert math.isfinite(llm.logits([1])[0, 0])


def test_logits_need_no_numpy_type(llm: LLM) -> None:
    logits, vocab = llm.logits([1, 2, 3]), llm.vocab_size
    assert (len(logits), logits.shape) == (3, (3, vocab))
    row = logits[-1]
    assert (row.format, row.shape) == ("f", (vocab,))
    assert logits[2, 5] == row[5] == list(logits)[2][5] == logits[1:][1][5] == logits[2].tolist()[5]
    assert logits.tolist() == [list(row) for row in logits]
    with pytest.raises(IndexError):
        logits[3]
    with pytest.raises(IndexError):
        logits[0, vocab]


def test_logits_are_an_array_without_a_copy(llm: LLM) -> None:
    logits = llm.logits([1, 2, 3])
    array = np.asarray(logits)
    assert (array.dtype, array.shape) == (np.float32, (3, llm.vocab_size))
    assert np.frombuffer(logits, np.float32).tolist() == array.ravel().tolist()
    assert bytes(logits) == array.tobytes()
    assert array.any()
    tail = logits[1:]
    assert (tail.shape, len(logits[3:]), logits[0:0].tolist()) == ((2, llm.vocab_size), 0, [])
    assert np.asarray(tail).tolist() == array[1:].tolist()
    with pytest.raises(ValueError, match="steps of 1"):
        logits[::2]
    array[2, 5] = 7.5
    assert tail[1:][0, 5] == 7.5
    assert logits[2, 5] == 7.5


def test_a_closed_model_says_so(tiny_artifact: Path) -> None:
    with LLM(tiny_artifact, threads=1) as model:
        stream = model.stream("x", GREEDY)
        next(stream)
    with pytest.raises(RequestError, match="closed"):
        model.generate("x")
    with pytest.raises(RequestError, match="closed"):
        next(stream)
    model.close()


def test_default_params_follow_the_model(llm: LLM) -> None:
    assert llm.default_params == SamplingParams(
        temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0
    )


def test_a_ready_formatted_text_gives_the_ids_of_its_conversation(llm: LLM) -> None:
    turns = [{"role": "user", "content": "the sky"}]
    ids = llm.encode_chat(turns)
    assert llm._template is not None
    text = llm._template.render(turns)
    assert llm.encode(text, control_tokens=True) == ids
    assert llm.generate(ids, GREEDY)[0].text == llm.chat(turns, GREEDY).text
    control = set(llm.tokenizer.control_tokens.values())
    assert control & set(ids)
    assert not control & set(llm.encode(text))
    with pytest.raises(RequestError, match="the prompt is empty"):
        llm.encode("", control_tokens=True)


def test_a_completion_becomes_json(llm: LLM) -> None:
    done = llm.generate("x", sampling(max_tokens=3, logprobs=2))[0]
    plain = json.loads(json.dumps(done.to_dict()))
    assert plain["outputs"][0]["text"] == done.text
    assert plain["outputs"][0]["token_ids"] == list(done.token_ids)
    assert len(plain["outputs"][0]["logprobs"][0]["top"]) == 2
    assert plain["usage"]["completion_tokens"] == 3
    assert plain["timing"]["decode_s"] == done.timing.decode_s
