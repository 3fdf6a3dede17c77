"""The trial of a fresh artifact: which KV cache suits it, and its canaries.

Owns: the texts. Canaries are a few fixed prompts with the answers that the artifact gives to them;
they go into the certificate, so that any later copy, machine or version can be asked the same and
compared. Does not know: how an artifact is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from subsecond.engine.sampling import SamplingParams
from subsecond.formats.artifact import open_artifact
from subsecond.formats.certificate import Canary, Trial
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

# What the KV caches are compared on: prose, Chinese, code, numbers.
PROBE = (
    "The old lighthouse keeper climbed the stairs every evening, counting each of the two hundred "
    "and seven steps, and lit the lamp before the first ships came around the cape. In winter the "
    "wind shook the windows so hard that he could not hear himself speak. "
    "春天来了，河边的柳树发出新芽，孩子们在草地上放风筝，老人坐在长椅上下棋。"
    "def mean(values: list[float]) -> float:\n    total = 0.0\n    for value in values:\n"
    "        total += value\n    return total / len(values)\n"
    "Total: 3,482.17 EUR due on 2024-05-31, account 0049-7712, see page 12 of the contract."
)
PROBE_TOKENS = 192
# Integer kernels round activations, so that any other rounding before them moves the logits a
# little: int8 may move them so many times as far as bf16 does, and by so many nats more.
KV_RATIO = 1.5
KV_SLACK_NATS = 1e-3


def tried(folder: Path) -> Trial:
    """Runs the artifact in `folder` on the best executor of this machine."""
    weights = open_artifact(folder).manifest.weights
    kv = suitable_kv(folder) if weights in ("int4", "int8") else ""
    return Trial(kv, canaries_of(folder, kv or None))


def suitable_kv(folder: Path) -> Literal["int8", "bf16"]:
    """int8 if its logits lie about as near to those of an f32 cache as bf16's do.

    Measured on PROBE as the mean Kullback-Leibler divergence of the next token, nats. Keys with a
    few very large dimensions (biases of some families) lose most by one scale a head and token.
    """
    from subsecond.formats.compare import divergence  # with NumPy

    exact = _logits(folder, "f32")
    off = {kv: divergence(exact, _logits(folder, kv)) for kv in ("bf16", "int8")}
    return "int8" if off["int8"] <= KV_RATIO * off["bf16"] + KV_SLACK_NATS else "bf16"


def canaries_of(folder: Path, kv: str | None = None) -> list[Canary]:
    """Greedy answers of the artifact in `folder`, on the best executor of this machine."""
    with LLM(folder, max_sequences=len(PROMPTS), max_tokens_per_step=64, kv=kv) as llm:
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


def _logits(folder: Path, kv: str) -> list[memoryview[float]]:
    """A row after each position of PROBE."""
    with LLM(folder, max_sequences=1, max_tokens_per_step=64, kv=kv) as llm:
        return list(llm.logits(llm.encode(PROBE)[: min(PROBE_TOKENS, llm.context)]))
