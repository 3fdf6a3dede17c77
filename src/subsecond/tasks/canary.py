"""Canaries: a few fixed prompts with the answers that a fresh artifact gives to them.

Owns: the prompts. They go into the certificate, so that any later copy, machine or version can be
asked the same and compared. Does not know: how an artifact is written.
"""

from __future__ import annotations

from pathlib import Path

from subsecond.engine.request import SamplingParams
from subsecond.formats.certificate import Canary
from subsecond.tasks.generate import LLM

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "天空为什么是蓝色的？",
)
ANSWER_TOKENS = 16
CONTEXT = 256


def canaries_of(folder: Path) -> list[Canary]:
    """Greedy answers of the artifact in `folder`, on the best executor of this machine."""
    with LLM(folder, max_sequences=len(PROMPTS), max_tokens_per_step=64) as llm:
        room = min(CONTEXT, llm.context) - ANSWER_TOKENS
        prompts = [llm.encode(text)[: max(room, 1)] for text in PROMPTS]
        params = SamplingParams(temperature=0.0, max_tokens=min(ANSWER_TOKENS, llm.context - 1))
        answers = llm.generate(prompts, params)
        return [
            Canary(prompt, list(answer.token_ids), llm.executor)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
