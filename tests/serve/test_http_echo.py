"""/v1/completions that begin with their prompt, and its tokens' log probabilities."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

from running import rests, serving

from subsecond import LLM, SamplingParams

PROMPT = "hello, one two three and some more words"


def expected(llm: LLM, ids: list[int]) -> list[float]:
    """By the model's logits, of each token from the second on."""
    found = []
    rows = llm.logits(ids)
    for place in range(1, len(ids)):
        row = list(rows[place - 1])
        most = max(row)
        total = most + math.log(sum(math.exp(value - most) for value in row))
        found.append(row[ids[place]] - total)
    return found


def test_prompts_are_echoed_with_their_scores(artifact: Path) -> None:
    with LLM(artifact, threads=1, max_sequences=4) as llm:
        ids = llm.encode(PROMPT)
        scores = expected(llm, ids)
        answer = llm.generate(PROMPT, SamplingParams(max_tokens=6, logprobs=2))[0]
        spelled = [llm.tokenizer.token_bytes(id) or b"" for id in ids]

    def check_prompt(found: dict[str, Any], tokens: int) -> None:
        assert len(found["tokens"]) == len(found["text_offset"]) == len(ids) + tokens
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        for ours, theirs in zip(found["token_logprobs"][1 : len(ids)], scores, strict=True):
            assert math.isclose(ours, theirs, abs_tol=1e-4)
        assert all(len(best) <= 2 for best in found["top_logprobs"][1:])
        assert all(best for best in found["top_logprobs"][1:])

    async def main() -> None:
        async with serving(artifact) as running:
            given: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 6, "echo": True}
            choice = (await running.complete(**given)).json["choices"][0]
            assert choice["text"] == PROMPT + answer.text and choice["logprobs"] is None

            whole = (await running.complete(**given, logprobs=2)).json
            choice = whole["choices"][0]
            assert choice["text"] == PROMPT + answer.text
            check_prompt(choice["logprobs"], 6)
            assert answer.logprobs is not None
            assert choice["logprobs"]["token_logprobs"][len(ids) :] == [
                own.logprob for own in answer.logprobs
            ]
            assert whole["usage"]["completion_tokens"] == 6

            events = (await running.complete(**given, logprobs=2, stream=True)).events
            choices = [event["choices"][0] for _, event in events[:-1]]
            assert "".join(choice["text"] for choice in choices) == PROMPT + answer.text
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                parts = [c["logprobs"][name] for c in choices if c["logprobs"]]
                assert [one for part in parts for one in part] == choice["logprobs"][name]

            # The prompt alone.
            alone = (await running.complete(**{**given, "max_tokens": 0}, logprobs=2)).json
            choice = alone["choices"][0]
            assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
            check_prompt(choice["logprobs"], 0)
            assert alone["usage"]["completion_tokens"] == 0

            # Several prompts as token ids, and several texts of each.
            many = await running.complete(
                prompt=[ids, ids[:5]], echo=True, logprobs=0, max_tokens=3, n=2, seed=1
            )
            found = many.json["choices"]
            assert [len(own["logprobs"]["tokens"]) for own in found] == [
                len(ids) + 3, len(ids) + 3, 8, 8,
            ]  # fmt: skip
            for own in found[:2]:
                check_scores = own["logprobs"]["token_logprobs"][1 : len(ids)]
                assert all(map(math.isfinite, check_scores))
                start = b"".join(spelled).decode()
                assert own["text"].startswith(start)
            await rests(running)

    asyncio.run(main())


def test_with_deadlines_and_bad_values(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact, within_s=20.0) as running:
            reply = await running.complete(echo=True, logprobs=1, max_tokens=4)
            assert reply.json["subsecond"]["kept"] is True
            bad = await running.complete(echo=True, logprobs=21)
            assert (bad.status, bad.error["param"]) == (400, "logprobs")
            zero = await running.complete(max_tokens=0)
            assert (zero.status, zero.error["param"]) == (400, "max_tokens")
            await rests(running)

    asyncio.run(main())
