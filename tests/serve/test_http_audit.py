"""What the audit log has of requests over HTTP: texts where the operator asks for them, and not one
where not.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from running import Running, becomes, closed, rests, serving

from subsecond.errors import InputError
from subsecond.serve.settings import ServeSettings

CANARY = "canary-of-a-client"


async def ask_everything(running: Running) -> dict[str, str]:
    """The answers, by their requests' ids."""
    said = {}
    chat = await running.chat(CANARY)
    said[chat.headers["x-request-id"]] = chat.json["choices"][0]["message"]["content"]
    stream = await running.chat(CANARY, stream=True)
    parts = [own["choices"][0]["delta"].get("content", "") for _, own in stream.events[:-1]]
    said[stream.headers["x-request-id"]] = "".join(parts)
    two = await running.complete(prompt=[CANARY, f"{CANARY} again"], n=2)
    texts = [own["text"] for own in two.json["choices"]]
    said[two.headers["x-request-id"]] = json.dumps(texts, separators=(",", ":"), ensure_ascii=False)
    body = {"model": "m", "input": CANARY, "max_output_tokens": 8}
    responses = await running.ask("/v1/responses", body)
    told = responses.json["output"][0]["content"][0]["text"]
    said[responses.headers["x-request-id"]] = told
    embedded = await running.ask("/v1/embeddings", {"model": "m", "input": CANARY})
    said[embedded.headers["x-request-id"]] = ""
    declined = await running.chat(f"{CANARY} now", deadline_ms=1)
    assert declined.status == 429
    said[declined.headers["x-request-id"]] = ""
    assert all(reply.status == 200 for reply in (chat, stream, two, responses, embedded))
    return said


def entries(state: Path) -> dict[str, dict[str, Any]]:
    lines = (state / "audit.jsonl").read_text().splitlines()
    return {own["request"]: own for own in map(json.loads, lines)}


def test_no_text_is_in_the_log_unless_it_is_asked_for(
    roomy_artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> dict[str, str]:
        async with serving(roomy_artifact, state=tmp_path) as running:
            said = await ask_everything(running)
            metrics = (await running.ask("/metrics")).body.decode()
            assert CANARY not in metrics
            return said

    said = asyncio.run(main())
    found = entries(tmp_path)
    assert set(said) <= set(found)
    for path in tmp_path.iterdir():
        data = path.read_bytes().decode("utf-8", "replace")
        assert CANARY not in data and 'prompt":' not in data and 'answer":' not in data
    assert CANARY not in caplog.text
    assert not any(len(text) > 3 and text in caplog.text for text in said.values())


def test_texts_are_there_where_they_are_asked_for(
    roomy_artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    given: dict[str, Any] = {"state": tmp_path, "audit_texts": True, "answer_cache_bytes": 1 << 20}

    async def main() -> tuple[dict[str, str], str]:
        async with serving(roomy_artifact, **given) as running:
            said = await ask_everything(running)
            said |= await ask_everything(running)  # from the cache, what can be
            long = running.chat_body(f"{CANARY} leaves", max_tokens=20_000, min_tokens=20_000)
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(running.request("/v1/chat/completions", {**long, "stream": True}))
            head = await reader.readuntil(b"\r\n\r\n")
            for _ in range(8):
                await reader.readuntil(b"data: ")
            await closed(writer)
            await becomes(lambda: not running.server.answering)
            await rests(running)
            gone = head.lower().partition(b"x-request-id: ")[2].split(b"\r")[0].decode()
            return said, gone

    said, gone = asyncio.run(main())
    found = entries(tmp_path)
    for request, answer in said.items():
        own = found[request]
        assert CANARY in own["prompt"] and own.get("answer", "") == answer, own
    asked = json.loads(found[next(iter(said))]["prompt"])
    assert asked == [{"role": "user", "content": CANARY}]
    assert found[gone]["outcome"] == "cancelled" and "leaves" in found[gone]["prompt"]
    assert found[gone]["answer"]
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert CANARY not in caplog.text  # it is the audit log alone


def test_it_needs_a_folder_for_the_log() -> None:
    with pytest.raises(InputError, match="--state"):
        ServeSettings(models=(("m", "m"),), audit_texts=True)
