"""Same bits: what a sequence gets doesn't depend on its batch, its place, chunks of the prompt,
pages or threads.

The comparison is exact, and has teeth: planted violations, as small as one unit in the last place,
must be found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from subsecond import LLM, SamplingParams

LENGTHS = (1, 7, 64, 65, 130, 3, 200)


def prompts_of(vocab_size: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    return [[(31 * i * i + 7 * n) % vocab_size for i in range(1, n + 1)] for n in lengths]


def answers(llm: LLM, prompts: list[list[int]], n: int = 1) -> list[str]:
    """Tokens and log probabilities, bit by bit (repr of a float tells its bits)."""
    params = SamplingParams(
        temperature=0.9,
        top_p=0.95,
        repetition_penalty=1.2,
        frequency_penalty=0.5,
        seed=11,
        max_tokens=12,
        logprobs=4,
        n=n,
        ignore_eos=True,
    )
    return [repr(completion.outputs) for completion in llm.generate(prompts, params)]


def differences(
    open_llm: Callable[..., LLM],
    plant: Callable[[LLM], Any] | None = None,
    lengths: Sequence[int] = LENGTHS,
) -> list[str]:
    """Runs the same prompts in many ways; the names of the ways that differ from running each
    alone.
    """
    found = []
    with open_llm(threads=1, max_tokens_per_step=512, max_sequences=8) as llm:
        prompts = prompts_of(llm.vocab_size, lengths)
        alone = [answers(llm, [prompt])[0] for prompt in prompts]
        scores = [bytes(llm.logits(prompt)) for prompt in prompts]
    for name, options, order in (
        ("batch", {"threads": 2, "max_tokens_per_step": 512, "max_sequences": 8}, 1),
        ("another order", {"threads": 1, "max_tokens_per_step": 512, "max_sequences": 8}, -1),
        ("small chunks", {"threads": 2, "max_tokens_per_step": 8, "max_sequences": 3}, 1),
        ("odd chunks", {"threads": 1, "max_tokens_per_step": 37, "max_sequences": 5}, -1),
    ):
        with open_llm(**options) as llm:
            if plant is not None:
                plant(llm)
            if answers(llm, prompts[::order])[::order] != alone:
                found.append(name)
            if [bytes(llm.logits(prompt)) for prompt in prompts] != scores:
                found.append(f"{name}: logits")
    return found


@pytest.mark.parametrize("kv", ["bf16", "int8", "f32"])
def test_the_tiny_model_has_same_bits(tiny_artifact: Path, kv: str) -> None:
    assert differences(lambda **options: LLM(tiny_artifact, kv=kv, **options)) == []


def test_a_model_with_windows_has_same_bits(tiny_window_artifact: Path) -> None:
    assert differences(lambda **options: LLM(tiny_window_artifact, **options)) == []


@pytest.mark.real_model
def test_the_default_model_has_same_bits(real_artifact: Path) -> None:
    lengths = (65, 7, 130, 1)
    ways = differences(lambda **options: LLM(real_artifact, **options), lengths=lengths)
    assert ways == []


def plant_wrong_position(llm: LLM) -> None:
    """The second sequence of a batch is one position late."""
    plan = llm._parts.engine.plan
    place = plan.set_sequence

    def wrong(index: int, tokens: Sequence[int], **rest: Any) -> None:
        place(index, tokens, **rest)
        if index == 1:
            plan.position[index] += 1

    plan.set_sequence = wrong  # type: ignore[method-assign]


def plant_foreign_page(llm: LLM) -> None:
    """The second sequence reads the first one's oldest page, once it no longer writes there."""
    plan, runner = llm._parts.engine.plan, llm._parts.engine.runner
    run = runner.run

    def wrong(tokens: int, sequences: int, rows: int, max_steps: int) -> int:
        stride = runner.max_pages_per_sequence
        if sequences > 2 and plan.position[1] >= 64 and plan.position[2] >= 64:
            plan.tables[0][stride] = plan.tables[0][2 * stride]
        return run(tokens, sequences, rows, max_steps)

    runner.run = wrong  # type: ignore[method-assign]


def plant_last_place(llm: LLM) -> None:
    """Logits of steps with several rows are off by one unit in the last place of one value."""
    runner = llm._parts.engine.runner
    logits = runner.logits

    def wrong(out: memoryview) -> int:
        broken = logits(out)
        if len(out) > runner.vocab_size:
            bits = out.cast("B").cast("I")
            bits[5] ^= 1
        return broken

    runner.logits = wrong  # type: ignore[method-assign]


@pytest.mark.parametrize("plant", [plant_wrong_position, plant_foreign_page, plant_last_place])
def test_planted_violations_are_found(tiny_artifact: Path, plant: Callable[[LLM], None]) -> None:
    assert differences(lambda **options: LLM(tiny_artifact, **options), plant) != []


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_known_beginnings_change_nothing_but_time(tiny_artifact: Path, kv: str) -> None:
    """Cached, computed again after preemption, in chunks: the same bits, logprobs included."""
    assert cache_differences(tiny_artifact, kv=kv) == []


def test_known_beginnings_with_windows_change_nothing(tiny_window_artifact: Path) -> None:
    assert cache_differences(tiny_window_artifact) == []


@pytest.mark.real_model
def test_known_beginnings_of_the_default_model_change_nothing(real_artifact: Path) -> None:
    assert cache_differences(real_artifact, context=512) == []


def cache_differences(path: Path, **options: Any) -> list[str]:
    """The ways in which answers out of a full cache, or out of a memory that is too small for all,
    differ from those of a model that knows nothing.
    """
    found: list[str] = []
    with LLM(path, threads=1, max_sequences=8, **options) as llm:
        base = prompts_of(llm.vocab_size, (200,))[0]
        prompts = [base[:length] + [9] * 3 for length in (1, 55, 56, 64, 65, 120, 121, 185)]
        engine = llm._parts.engine
        alone = []
        for prompt in prompts:
            engine.prefixes.clear()
            alone.append(answers(llm, [prompt], n=2)[0])
    for chunk in (8, 37, 512):
        with LLM(path, threads=2, max_sequences=8, max_tokens_per_step=chunk, **options) as llm:
            engine = llm._parts.engine
            for way in ("empty", "cached", "preempted", "cached after all"):
                if way == "preempted":  # the prompts fit, the answers don't
                    engine.prefixes.clear()
                    for pool in engine.pages.pools:
                        pool.free = pool.free[-6:]
                preempted = counted_preemptions(llm)
                if answers(llm, prompts, n=2) != alone:
                    found.append(f"{way}, {chunk} tokens a step")
                if way == "preempted" and not preempted and chunk == 512:
                    found.append("nothing was preempted")
    return found


def counted_preemptions(llm: LLM) -> list[int]:
    """A list that gets an element with each preemption."""
    engine, found = llm._parts.engine, list[int]()
    scheduler = engine.scheduler
    displace = type(scheduler).displace

    def counted(text: Any) -> None:
        found.append(text.generated)
        displace(scheduler, text)

    scheduler.displace = counted  # type: ignore[method-assign]
    return found


def test_small_memory_changes_nothing_but_time(tiny_artifact: Path) -> None:
    """A KV cache for one context: requests wait for each other, and answer as ever."""
    with LLM(tiny_artifact, threads=1, max_sequences=8) as llm:
        prompts = prompts_of(llm.vocab_size)
        expected = answers(llm, prompts)
        pool = llm._parts.engine.pages.pools[0]
        llm._parts.engine.prefixes.clear()
        pool.free = pool.free[-8:]  # one context of 512
        assert answers(llm, prompts) == expected
        assert pool.available == 8
