"""What clients of the OpenAI interface get: answers, streams, promises, refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from running import rests, serving

from subsecond import LLM, SamplingParams

USAGE = {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}


def test_answers_are_llms_streamed_or_not(artifact: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    given = {"max_tokens": 12, "temperature": 0.8, "seed": 7, "n": 2}
    with LLM(artifact, threads=1, max_sequences=4) as llm:
        alone = llm.chat(messages, SamplingParams(**given))  # type: ignore[arg-type]
        completed = llm.generate(["one", "two"], SamplingParams(max_tokens=9, logprobs=2))

    async def main() -> None:
        async with serving(artifact) as running:
            whole = await running.chat(**given)
            assert whole.status == 200
            answer = whole.json
            assert [c["message"]["content"] for c in answer["choices"]] == [
                output.text for output in alone.outputs
            ]
            assert [c["finish_reason"] for c in answer["choices"]] == [
                output.finish_reason for output in alone.outputs
            ]
            assert set(answer["usage"]) == USAGE
            assert answer["usage"]["prompt_tokens"] == alone.usage.prompt_tokens
            assert answer["usage"]["completion_tokens"] == alone.usage.completion_tokens
            assert answer["subsecond"]["promised_tokens"] is None

            stream = await running.chat(
                **given, stream=True, stream_options={"include_usage": True}
            )
            assert stream.headers["content-type"].startswith("text/event-stream")
            *chunks, (_, usage), (_, done) = stream.events
            assert done == "[DONE]" and usage["choices"] == []
            for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                assert usage["usage"][name] == answer["usage"][name]
            for index, output in enumerate(alone.outputs):
                own = [c for _, e in chunks for c in e["choices"] if c["index"] == index]
                assert own[0]["delta"]["role"] == "assistant"
                assert "".join(c["delta"].get("content", "") for c in own) == output.text
                assert [c["finish_reason"] for c in own if c["finish_reason"]] == [
                    output.finish_reason
                ]
            assert all(event["usage"] is None for _, event in chunks)
            assert [e for _, e in chunks if "subsecond" in e] == [chunks[-1][1]]

            texts = await running.complete(prompt=["one", "two"], max_tokens=9, logprobs=2)
            for choice, own in zip(texts.json["choices"], completed, strict=True):
                assert choice["text"] == own.text
                assert own.logprobs is not None
                assert choice["logprobs"]["token_logprobs"] == [e.logprob for e in own.logprobs]
                assert len(choice["logprobs"]["tokens"]) == len(own.token_ids)
            pieces = (await running.complete(prompt="one", max_tokens=9, stream=True)).events
            assert "".join(e["choices"][0]["text"] for _, e in pieces[:-1]) == completed[0].text
            assert pieces[-1][1] == "[DONE]"

    asyncio.run(main())


def test_a_stop_string_ends_the_text_before_it(artifact: Path) -> None:
    with LLM(artifact, threads=1, max_sequences=4) as llm:
        text = llm.generate("hello", SamplingParams(max_tokens=40))[0].text
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.index(stop)]

    async def main() -> None:
        async with serving(artifact) as running:
            for stream in (False, True):
                reply = await running.complete(max_tokens=40, stop=[stop], stream=stream)
                if stream:
                    choices = [e["choices"][0] for _, e in reply.events[:-1]]
                    assert "".join(c["text"] for c in choices) == expected
                    assert choices[-1]["finish_reason"] == "stop"
                else:
                    choice = reply.json["choices"][0]
                    assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
                    assert 0 < reply.json["usage"]["completion_tokens"] <= 40
            await rests(running)

    asyncio.run(main())


def test_promises_are_made_or_declined_and_counted(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact, within_s=20.0) as running:
            answer = (await running.chat(on_deadline="full")).json["subsecond"]
            assert (answer["deadline_ms"], answer["promised_tokens"]) == (20_000, 8)
            assert answer["kept"] is True
            halves = (await running.chat(headers={"x_deadline_ms": "15000"})).json["subsecond"]
            assert (halves["deadline_ms"], halves["promised_tokens"]) == (15_000, 4)
            own = (await running.chat(deadline_ms=9000, min_tokens=3)).json["subsecond"]
            assert (own["deadline_ms"], own["promised_tokens"]) == (9000, 3)

            declined = await running.chat(deadline_ms=1, on_deadline="full")
            assert declined.status == 429
            assert declined.error["code"] == "deadline_declined"
            assert declined.headers["x-should-retry"] == "false"
            assert int(declined.headers["retry-after"]) >= 1
            assert int(declined.headers["x-predicted-ms"]) > 0

            bad = await running.chat(headers={"x_deadline_ms": "soon"})
            assert (bad.status, bad.error["param"]) == (400, "X-Deadline-Ms")
            assert (await running.chat(deadline_ms=0)).error["param"] == "deadline_ms"
            row = running.server.ledger.total()
            assert (row.promised, row.kept, row.open) == (3, 3, 0)
            assert row.declined == {"deadline": 1}
            await rests(running)

    asyncio.run(main())


def test_what_is_not_served_is_refused_by_name(artifact: Path) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    chat_cases: list[tuple[dict[str, Any], str]] = [
        ({"tools": [tool]}, "tools"),
        ({"temperature": -1}, "temperature"),
        ({"n": 9}, "n"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"surprise": 1}, "surprise"),
        ({"messages": [{"role": "user", "content": "x" * 20_000}]}, "messages"),
    ]

    async def main() -> None:
        async with serving(artifact) as running:
            for fields, param in chat_cases:
                reply = await running.chat(**fields)
                assert (reply.status, reply.error["param"]) == (400, param), fields
            ids = await running.complete(prompt=[1, 99_999])
            assert (ids.status, ids.error["param"]) == (400, "prompt")
            unknown = await running.chat(model="../../etc/passwd")
            assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
            assert running.server.ledger.total().promised == 0
            assert (await running.chat()).status == 200
            await rests(running)

    asyncio.run(main())


def test_the_small_routes(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running:
            assert (await running.ask("/health/live")).json == {"status": "ok"}
            assert (await running.ask("/health/ready")).json == {"status": "ok"}
            listed = (await running.ask("/v1/models")).json["data"]
            assert [(m["id"], m["certificate"]) for m in listed] == [("m", "converted")]
            assert (await running.ask("/v1/models/m")).json == listed[0]
            assert (await running.ask("/v1/models/no")).status == 404
            made = (await running.ask("/tokenize", {"model": "m", "prompt": "hello"})).json
            back = await running.ask("/detokenize", {"model": "m", "tokens": made["tokens"]})
            assert back.json == {"prompt": "hello"}
            spoken = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
            assert (await running.ask("/tokenize", spoken)).json["count"] > made["count"]
            await running.chat()
            text = (await running.ask("/metrics")).body.decode()
            assert 'subsecond_generation_tokens_total{model="m"}' in text
            assert (await running.ask("/nothing")).status == 404
            wrong = await running.ask("/v1/chat/completions")
            assert (wrong.status, wrong.headers["allow"]) == (405, "POST")

    asyncio.run(main())


def test_responses(artifact: Path) -> None:
    body = {"model": "m", "input": "hello", "instructions": "be brief", "max_output_tokens": 8}

    async def main() -> None:
        async with serving(artifact, within_s=20.0) as running:
            whole = (await running.ask("/v1/responses", body)).json
            assert whole["status"] == "incomplete"
            assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
            (item,) = whole["output"]
            text = item["content"][0]["text"]
            assert whole["usage"]["output_tokens"] == 8
            assert whole["subsecond"]["kept"] is True
            stream = await running.ask("/v1/responses", {**body, "stream": True})
            events = stream.events
            assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
            assert all(name == event["type"] for name, event in events)
            deltas = [e["delta"] for name, e in events if name == "response.output_text.delta"]
            assert "".join(deltas) == text
            names = [name for name, _ in events]
            assert names[:2] == ["response.created", "response.in_progress"]
            assert names[-1] == "response.incomplete"
            assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == text
            long = await running.ask("/v1/responses", {**body, "max_output_tokens": 10**6})
            assert (long.status, long.error["param"]) == (400, "max_output_tokens")
            await rests(running)

    asyncio.run(main())
