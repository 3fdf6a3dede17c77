"""The official `openai` client (extra [client]): every route, streams, shapes, tools, errors, and
what it does by itself when it is declined.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from running import Running, serving

openai = pytest.importorskip("openai", reason="the extra [client] isn't installed")
pydantic = pytest.importorskip("pydantic")

MESSAGES: Any = [{"role": "user", "content": "hello"}]


class Person(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    ok: bool
    colour: Literal["red", "green"]
    age: int = pydantic.Field(ge=0, le=99)


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "roll",
        "description": "rolls a die",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"sides": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["sides"],
            "additionalProperties": False,
        },
    },
}


def client_of(running: Running, **options: Any) -> Any:
    base_url = f"http://127.0.0.1:{running.port}/v1"
    return openai.AsyncOpenAI(base_url=base_url, api_key="none", timeout=30, **options)


def test_chat_whole_and_streamed(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running, client_of(running) as client:
            given: Any = {"model": "m", "messages": MESSAGES, "max_tokens": 12, "seed": 1}
            whole = await client.chat.completions.create(**given, logprobs=True, top_logprobs=2)
            choice = whole.choices[0]
            assert choice.message.role == "assistant" and choice.finish_reason == "length"
            assert len(choice.logprobs.content) == whole.usage.completion_tokens == 12
            assert whole.usage.prompt_tokens_details.cached_tokens == 0
            text, last = "", None
            stream = await client.chat.completions.create(
                **given, stream=True, stream_options={"include_usage": True}
            )
            async for chunk in stream:
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                last = chunk
            assert text == choice.message.content
            assert last is not None and last.usage.completion_tokens == 12
            names = [model.id async for model in client.models.list()]
            assert names == ["m"]
            assert (await client.models.retrieve("m")).id == "m"

            completion = await client.completions.create(
                model="m", prompt=["a", "b"], max_tokens=4, echo=True, logprobs=1
            )
            assert [own.text[0] for own in completion.choices] == ["a", "b"]
            assert completion.choices[0].logprobs.token_logprobs[0] is None

    asyncio.run(main())


def test_shapes_by_the_clients_own_helpers(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running, client_of(running) as client:
            given: Any = {"model": "m", "messages": MESSAGES, "max_tokens": 300}
            parsed = await client.chat.completions.parse(**given, response_format=Person)
            assert isinstance(parsed.choices[0].message.parsed, Person)
            made = await client.responses.parse(
                model="m", input="hello", text_format=Person, max_output_tokens=300
            )
            assert isinstance(made.output_parsed, Person)
            async with client.chat.completions.stream(**given, response_format=Person) as stream:
                final = await stream.get_final_completion()
            assert isinstance(final.choices[0].message.parsed, Person)
            chosen = await client.chat.completions.create(
                **given, extra_body={"structured_outputs": {"choice": ["left", "right"]}}
            )
            assert chosen.choices[0].message.content in ("left", "right")

    asyncio.run(main())


def test_tools_whole_and_streamed(tool_artifact: Path) -> None:
    async def main() -> None:
        async with serving(tool_artifact) as running, client_of(running) as client:
            given: Any = {
                "model": "m", "messages": MESSAGES, "max_tokens": 400, "tools": [TOOL],
                "tool_choice": "required", "parallel_tool_calls": False,
            }  # fmt: skip
            whole = await client.chat.completions.create(**given)
            (call,) = whole.choices[0].message.tool_calls
            assert 1 <= json.loads(call.function.arguments)["sides"] <= 9
            assert whole.choices[0].finish_reason == "tool_calls"
            async with client.chat.completions.stream(**given) as stream:
                kinds = [event.type async for event in stream]
                final = await stream.get_final_completion()
            assert "tool_calls.function.arguments.delta" in kinds
            assert "tool_calls.function.arguments.done" in kinds
            (same,) = final.choices[0].message.tool_calls
            assert same.function.arguments == call.function.arguments
            more = [
                *MESSAGES,
                whole.choices[0].message,
                {"role": "tool", "tool_call_id": call.id, "content": "4"},
            ]
            told = await client.chat.completions.create(
                **{**given, "messages": more, "tool_choice": "none", "max_tokens": 4}
            )
            assert told.choices[0].message.tool_calls is None

            flat = {"type": "function", **TOOL["function"]}
            asked: Any = {
                "model": "m", "input": "hello", "max_output_tokens": 400, "tools": [flat],
                "tool_choice": {"type": "function", "name": "roll"}, "parallel_tool_calls": False,
            }  # fmt: skip
            response = await client.responses.create(**asked)
            (item,) = response.output
            assert item.type == "function_call" and item.name == "roll"
            async with client.responses.stream(**asked) as events:
                seen = [event.type async for event in events]
                final_response = await events.get_final_response()
            assert seen[-1] == "response.completed"
            assert final_response.output[0].arguments == item.arguments

    asyncio.run(main())


def test_responses_and_embeddings(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running, client_of(running) as client:
            made = await client.responses.create(
                model="m", input="hello", instructions="be brief", max_output_tokens=10
            )
            assert made.status == "incomplete"
            assert made.incomplete_details.reason == "max_output_tokens"
            text = ""
            async with client.responses.stream(
                model="m", input="hello", instructions="be brief", max_output_tokens=10
            ) as stream:
                async for event in stream:
                    if event.type == "response.output_text.delta":
                        text += event.delta
            assert text == made.output_text
            # The client asks for base64 by itself and decodes it.
            vectors = await client.embeddings.create(model="m", input=["one", "two"])
            plain = await client.embeddings.create(
                model="m", input=["one", "two"], encoding_format="float"
            )
            for own, other in zip(vectors.data, plain.data, strict=True):
                assert own.embedding == pytest.approx(other.embedding, abs=1e-6)

    asyncio.run(main())


def test_errors_are_the_clients_own(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running, client_of(running) as client:
            given: Any = {"model": "m", "messages": MESSAGES, "max_tokens": 4}
            with pytest.raises(openai.BadRequestError) as bad:
                await client.chat.completions.create(**{**given, "temperature": 1000})
            assert bad.value.param == "temperature" and bad.value.code == "invalid_value"
            with pytest.raises(openai.NotFoundError) as absent:
                await client.chat.completions.create(**{**given, "model": "no"})
            assert absent.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as unknown:
                await client.chat.completions.create(**given, extra_body={"surprise": 1})
            assert unknown.value.param == "surprise"
            with pytest.raises(openai.BadRequestError) as schema:
                await client.chat.completions.create(
                    **given,
                    response_format={
                        "type": "json_schema",
                        "json_schema": {"name": "x", "schema": {"type": "no"}},
                    },
                )
            assert schema.value.param == "response_format.json_schema.schema"

    asyncio.run(main())


def test_a_declined_deadline_is_not_tried_again(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running, client_of(running, max_retries=2) as client:
            given: Any = {"model": "m", "messages": MESSAGES, "max_tokens": 200}
            with pytest.raises(openai.RateLimitError) as declined:
                await client.chat.completions.create(
                    **given, extra_body={"deadline_ms": 1, "on_deadline": "full"}
                )
            assert declined.value.code == "deadline_declined"
            assert declined.value.response.headers["x-should-retry"] == "false"
            assert running.server.ledger.total().declined == {"deadline": 1}, "asked once"
            kept = await client.chat.completions.create(
                **{**given, "max_tokens": 4}, extra_headers={"X-Deadline-Ms": "20000"}
            )
            assert kept.model_extra["subsecond"]["kept"] is True

    asyncio.run(main())
