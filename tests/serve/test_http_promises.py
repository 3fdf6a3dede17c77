"""Promises over HTTP: what is declined, when, and what deadlines do to answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from running import serving

from subsecond.serve.generation import EARLY_CHARACTERS
from subsecond.serve.text_side import TextSide


def counted(patch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are tokenized from now on."""
    seen: list[str] = []
    encode = TextSide.encode

    def counting(self: TextSide, prompt: Any, context: int, vocab_size: int) -> list[int]:
        seen.append(prompt)
        return encode(self, prompt, context, vocab_size)

    patch.setattr(TextSide, "encode", counting)
    return seen


def test_a_long_text_is_declined_before_it_is_tokenized(
    roomy_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(roomy_artifact) as running:
            seen = counted(monkeypatch)
            long_ = "word " * (EARLY_CHARACTERS // 5 + 400)
            reply = await running.complete(prompt=long_, deadline_ms=1)
            assert (reply.status, reply.error["code"]) == (429, "deadline_declined")
            assert seen == []
            reply = await running.complete(prompt=long_, deadline_ms=60_000)
            assert (reply.status, seen) == (200, [long_])
            short = await running.complete(prompt="word", deadline_ms=1)
            assert (short.status, seen) == (429, [long_, "word"])
            told = running.server.ledger.total().declined
            assert told == {"deadline": 2}

    asyncio.run(main())


def test_what_cannot_fit_is_a_fault_and_no_decline(roomy_artifact: Path) -> None:
    async def main() -> None:
        async with serving(roomy_artifact) as running:
            reply = await running.complete(prompt=list(range(1, 40)) * 1000, deadline_ms=1)
            assert (reply.status, reply.error["param"]) == (400, "prompt")

    asyncio.run(main())


def test_full_answers_are_whole_and_finish_ends_in_time(roomy_artifact: Path) -> None:
    async def main() -> None:
        async with serving(roomy_artifact) as running:
            fields = {"deadline_ms": 400, "ignore_eos": True, "temperature": 0}
            whole = await running.complete(max_tokens=8, on_deadline="full", **fields)
            assert whole.json["usage"]["completion_tokens"] == 8
            assert whole.json["choices"][0]["finish_reason"] == "length"
            cut = await running.complete(max_tokens=20_000, min_tokens=4, **fields)
            assert cut.status == 200
            assert cut.json["choices"][0]["finish_reason"] == "deadline"
            assert 4 <= cut.json["usage"]["completion_tokens"] < 20_000

    asyncio.run(main())
