"""/v1/embeddings: vectors of prompts, alone and in crowds, in both encodings, in time, refused."""

from __future__ import annotations

import array
import asyncio
import base64
import math
from pathlib import Path
from typing import Any

import pytest
from running import Reply, Running, rests, serving

TEXTS = ["hello", "one two three", "hello, one two three and some more words, and more of them"]


async def embed(running: Running, input: Any, **fields: Any) -> Reply:
    return await running.ask("/v1/embeddings", {"model": "m", "input": input, **fields})


def vectors(reply: Reply) -> list[list[float]]:
    assert reply.status == 200, reply.body
    data = reply.json["data"]
    assert [own["index"] for own in data] == list(range(len(data)))
    return [own["embedding"] for own in data]


def test_vectors_are_the_same_alone_and_in_a_crowd(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running:
            alone = [vectors(await embed(running, text))[0] for text in TEXTS]
            chat = asyncio.create_task(running.chat(max_tokens=60))
            reply = await embed(running, TEXTS * 5)
            assert vectors(reply) == alone * 5
            assert (await chat).status == 200
            for vector in alone:
                assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-6)
            assert len({tuple(vector) for vector in alone}) == 3
            usage = reply.json["usage"]
            assert usage["prompt_tokens"] == usage["total_tokens"] > 0

            ids = (await running.ask("/tokenize", {"model": "m", "prompt": TEXTS[1]})).json[
                "tokens"
            ]
            assert vectors(await embed(running, [ids]))[0] == alone[1]
            coded = await embed(running, TEXTS, encoding_format="base64")
            for text, vector in zip(vectors(coded), alone, strict=True):
                values = array.array("f", base64.b64decode(str(text)))
                assert list(values) == pytest.approx(vector, abs=1e-7)
            short = vectors(await embed(running, TEXTS[2], dimensions=8))[0]
            length = math.hypot(*alone[2][:8])
            assert short == pytest.approx([value / length for value in alone[2][:8]], abs=1e-6)
            await rests(running)

    asyncio.run(main())


def test_deadlines_and_refusals(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact, within_s=20.0) as running:
            assert (await embed(running, TEXTS)).status == 200
            row = running.server.ledger.total()
            assert (row.promised, row.kept) == (1, 1)
            declined = await embed(running, TEXTS[2], deadline_ms=1)
            assert declined.status == 429 and declined.headers["x-should-retry"] == "false"
            cases: list[tuple[dict[str, Any], str]] = [
                ({"input": ""}, "input"),
                ({"input": []}, "input"),
                ({"input": [99_999]}, "input"),
                ({"input": "x" * 20_000}, "input"),
                ({"input": "x", "dimensions": 0}, "dimensions"),
                ({"input": "x", "dimensions": 4096}, "dimensions"),
                ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
                ({"input": "x", "stream": True}, "stream"),
            ]
            for fields, param in cases:
                reply = await embed(running, **fields)
                assert (reply.status, reply.error["param"]) == (400, param), (fields, reply.error)
            assert (await embed(running, "x", model="no")).status == 404
            await rests(running)

    asyncio.run(main())
