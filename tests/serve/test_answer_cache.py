"""Answers that are given again: to the very same question of the same tenant, and to no other."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from running import Running, serving

from subsecond.engine.messages import SamplingFields
from subsecond.serve.answer_cache import FILE, AnswerCache, KeptText, key_of
from subsecond.serve.keys import KeyFile

GREEDY = SamplingFields(8)


def text(size: int = 5) -> list[KeptText]:
    return [KeptText("x" * size, [1, 2], [], "stop")]


def test_a_key_is_of_all_that_decides_an_answer() -> None:
    base: dict[str, Any] = {"identity": ("a", "b"), "tenant": "k", "prompts": [[1, 2]],
                            "fields": [GREEDY], "more": [["stop"], None]}  # fmt: skip
    changes: list[dict[str, Any]] = [
        {"identity": ("a", "c")}, {"identity": ("ab", "")}, {"tenant": "other"},
        {"prompts": [[1, 3]]}, {"prompts": [[1], [2]]}, {"more": [[], None]},
        {"fields": [SamplingFields(9)]}, {"fields": [SamplingFields(8, seed=1)]},
        {"fields": [SamplingFields(8, n=2)]}, {"fields": [SamplingFields(8, logprobs=0)]},
    ]  # fmt: skip
    keys = {key_of(**base), *(key_of(**{**base, **change}) for change in changes)}
    assert len(keys) == 1 + len(changes) and None not in keys
    assert key_of(**base) == key_of(**base)
    assert key_of(**{**base, "fields": [SamplingFields(8, temperature=1.0)]}) is None
    assert key_of(**{**base, "fields": [SamplingFields(8, temperature=1.0, seed=3)]}) is not None


def test_what_is_kept_is_found_after_a_restart(tmp_path: Path) -> None:
    async def keep() -> None:
        cache = AnswerCache(tmp_path, 1 << 20)
        assert await cache.find(b"k") is None
        cache.keep(b"k", text())
        assert await cache.find(b"k") == text()
        await cache.close()

    async def find() -> None:
        cache = AnswerCache(tmp_path, 1 << 20)
        assert await cache.find(b"k") == text()
        await cache.close()

    asyncio.run(keep())
    asyncio.run(find())
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_it_is_bounded_and_forgets_what_was_used_least_recently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("subsecond.serve.answer_cache.time.time", lambda: now)

    async def main() -> None:
        nonlocal now
        cache = AnswerCache(tmp_path, 100_000)
        cache.keep(b"large", text(100_000 // 16))
        assert await cache.find(b"large") is None
        for index in range(60):
            now += 100
            cache.keep(b"%d" % index, text(3000))
            if index:
                assert await cache.find(b"0") is not None  # used all the time
        held = [await cache.find(b"%d" % index) is not None for index in range(60)]
        assert held[0] and not any(held[1:20]) and all(held[-25:])
        assert cache._bytes <= 100_000
        await cache.close()

    asyncio.run(main())
    base = sqlite3.connect(tmp_path / FILE)
    (size,) = base.execute("SELECT SUM(LENGTH(value)) FROM answers").fetchone()
    base.close()
    assert 60_000 < size <= 100_000


def test_a_damaged_file_is_as_good_as_empty(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)

    async def main() -> None:
        cache = AnswerCache(tmp_path, 1 << 20)
        cache.keep(b"k", text())
        assert await cache.find(b"k") == text()
        await asyncio.get_running_loop().run_in_executor(
            cache._thread, lambda: cache._base.execute("UPDATE answers SET value = x'ff'")
        )
        assert await cache.find(b"k") is None and cache.problem
        await cache.close()

    asyncio.run(main())


def stripped(reply: Any) -> Any:
    """An answer without what differs between two of them."""
    found = dict(reply.json)
    for name in ("id", "created", "subsecond"):
        found.pop(name)
    found["usage"] = {k: v for k, v in found["usage"].items() if k != "prompt_tokens_details"}
    return found


async def submitted(running: Running, **fields: Any) -> tuple[int, Any]:
    """How many requests the engine had for a question, and the reply."""
    before = running.server.engine.submitted
    reply = await running.chat(**fields)
    assert reply.status == 200, reply.body
    return running.server.engine.submitted - before, reply


def test_the_same_question_is_not_computed_twice(artifact: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    secrets = [file.create(name, ["use", "metrics"])[0] for name in ("a", "b")]
    state = tmp_path / "state"
    given = {"keys": file.path, "state": state, "answer_cache_bytes": 1 << 20, "within_s": 30.0}

    async def main() -> None:
        question: dict[str, Any] = {"max_tokens": 6, "logprobs": True, "top_logprobs": 2, "n": 2}
        async with serving(artifact, **given) as running:
            running.headers["authorization"] = f"Bearer {secrets[0]}"
            first = await submitted(running, **question)
            again = await submitted(running, **question)
            assert (first[0], again[0]) == (1, 0)
            assert stripped(first[1]) == stripped(again[1])
            usage = again[1].json["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"]
            promise = again[1].json["subsecond"]
            assert promise["kept"] is True and promise["promised_tokens"] == 3
            count, streamed = await submitted(running, **question, stream=True)
            assert count == 0 and streamed.events[-1][1] == "[DONE]"
            for index in range(2):
                said = [choice["delta"].get("content", "") for _, data in streamed.events[:-1]
                        for choice in data["choices"] if choice["index"] == index]  # fmt: skip
                whole = first[1].json["choices"][index]["message"]["content"]
                assert "".join(said) == whole
            for other in ({"max_tokens": 5}, {"stop": "zz"}, {"seed": 1}, {"n": 1}):
                assert (await submitted(running, **{**question, **other}))[0] == 1, other
            chance = {"temperature": 1.0, "max_tokens": 3}
            assert [(await submitted(running, **chance))[0] for _ in range(2)] == [1, 1]
            running.headers["authorization"] = f"Bearer {secrets[1]}"
            assert (await submitted(running, **question))[0] == 1  # another tenant
            metrics = (await running.ask("/metrics")).body.decode()
            assert 'subsecond_answer_cache_hits_total{model="m"} 2.0' in metrics
            row = running.server.ledger.total()
            assert row.promised == row.kept == 10
        async with serving(artifact, **given) as running:
            running.headers["authorization"] = f"Bearer {secrets[0]}"
            count, kept = await submitted(running, **question)
            assert count == 0 and stripped(kept) == stripped(first[1])
        data = (state / FILE).read_bytes()
        assert b"hello" not in data

    asyncio.run(main())


def test_an_answer_that_a_deadline_cut_is_not_kept(roomy_artifact: Path, tmp_path: Path) -> None:
    async def main() -> None:
        settings = {"state": tmp_path, "answer_cache_bytes": 1 << 20}
        async with serving(roomy_artifact, **settings) as running:
            long = {"max_tokens": 20_000, "min_tokens": 3, "ignore_eos": True, "deadline_ms": 600}
            for _ in range(2):
                count, reply = await submitted(running, **long)
                assert reply.json["choices"][0]["finish_reason"] == "deadline"
                assert count == 1

    asyncio.run(main())


def test_the_sampling_fields_that_are_hashed_are_all_there_are() -> None:
    """A field that `SamplingFields` gains is part of the key by itself."""
    own = msgspec.msgpack.encode(SamplingFields(1))
    assert len(msgspec.msgpack.decode(own)) == len(SamplingFields.__struct_fields__)
