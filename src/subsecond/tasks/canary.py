"""Canaries: a few fixed prompts with the answers that a fresh artifact gives to them.

Owns: the prompts. They go into the certificate, so that any later copy, machine or version can be
asked the same and compared. Does not know: how an artifact is written.
"""

from __future__ import annotations

from pathlib import Path

from subsecond.engine.sampling import SamplingParams
from subsecond.formats.certificate import Canary
from subsecond.runtime.build import native_build
from subsecond.tasks.generate import LLM

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "天空为什么是蓝色的？",
)
ANSWER_TOKENS = 16
BEST_LOGITS = 8
CONTEXT = 256


def canaries_of(folder: Path) -> list[Canary]:
    """Greedy answers of the artifact in `folder`, on the best executor of this machine."""
    with LLM(folder, max_sequences=len(PROMPTS), max_tokens_per_step=64) as llm:
        room = min(CONTEXT, llm.context) - ANSWER_TOKENS
        prompts = [llm.encode(text)[: max(room, 1)] for text in PROMPTS]
        params = SamplingParams(temperature=0.0, max_tokens=min(ANSWER_TOKENS, llm.context - 1))
        answers = llm.generate(prompts, params)
        rows = [llm.logits(prompt)[-1] for prompt in prompts]
        build = native_build()
        return [
            Canary(
                prompt,
                list(answer.token_ids),
                llm.executor,
                logits_xxh3=logits_hash(row),
                best=sorted(enumerate(row), key=lambda entry: (-entry[1], entry[0]))[:BEST_LOGITS],
                build=build,
            )
            for prompt, answer, row in zip(prompts, answers, rows, strict=True)
        ]


def logits_hash(row: memoryview[float]) -> str:
    """xxh3 of the bits of one row of logits, float32, little endian."""
    import xxhash

    return xxhash.xxh3_64_hexdigest(row.cast("B"))
