"""Functions that a model asks for, over HTTP: required, named, left to it, forbidden, refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from running import Reply, rests, serving

DAY = {"enum": ["monday", "friday"]}


def function(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"name": name, "parameters": parameters, **more}


PLAN = function("plan", {"day": DAY, "urgent": {"type": "boolean"}})
ROLL = function("roll", {"sides": {"type": "integer", "minimum": 1, "maximum": 9}}, strict=True)
TOOLS = [{"type": "function", "function": own} for own in (PLAN, ROLL)]
REQUIRED: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 400}


def fits(name: str, arguments: str) -> bool:
    value = json.loads(arguments)
    if name == "plan":
        return value["day"] in DAY["enum"] and isinstance(value["urgent"], bool) and len(value) == 2
    return name == "roll" and set(value) == {"sides"} and 1 <= value["sides"] <= 9


def gathered(reply: Reply) -> dict[int, tuple[str, list[dict[str, str]], str]]:
    """Of a stream: for each choice its content, its calls and why it ended, as clients gather
    them.
    """
    found: dict[int, tuple[str, list[dict[str, str]], str]] = {}
    for _, event in reply.events[:-1]:
        for choice in event["choices"]:
            text, calls, reason = found.get(choice["index"], ("", [], ""))
            delta = choice["delta"]
            text += delta.get("content") or ""
            for part in delta.get("tool_calls", []):
                if part["index"] == len(calls):
                    assert part["type"] == "function" and part["function"]["arguments"] == ""
                    calls.append({"id": part["id"], "name": part["function"]["name"], "args": ""})
                else:
                    assert set(part) == {"index", "function"}
                    assert set(part["function"]) == {"arguments"}
                calls[part["index"]]["args"] += part["function"]["arguments"]
            assert not reason, "nothing follows the end"
            found[choice["index"]] = (text, calls, choice["finish_reason"] or "")
    return found


def test_calls_are_well_formed_whole_and_streamed(tool_artifact: Path) -> None:
    async def main() -> None:
        async with serving(tool_artifact) as running:
            given = {**REQUIRED, "temperature": 1.3, "seed": 2, "n": 2}
            whole = (await running.chat(**given)).json
            streamed = gathered(await running.chat(**given, stream=True))
            ids = set()
            for choice in whole["choices"]:
                message = choice["message"]
                assert choice["finish_reason"] == "tool_calls" and message["content"] is None
                for call in message["tool_calls"]:
                    assert call["type"] == "function" and call["id"].startswith("call_")
                    assert fits(call["function"]["name"], call["function"]["arguments"])
                    ids.add(call["id"])
                text, calls, reason = streamed[choice["index"]]
                assert (text, reason) == ("", "tool_calls")
                assert [(c["name"], c["args"]) for c in calls] == [
                    (c["function"]["name"], c["function"]["arguments"])
                    for c in message["tool_calls"]
                ]
            assert len(ids) == sum(len(c["message"]["tool_calls"]) for c in whole["choices"])
            for seed in range(4):
                single = {
                    **REQUIRED,
                    "temperature": 2.0,
                    "seed": seed,
                    "parallel_tool_calls": False,
                }
                (call,) = (await running.chat(**single)).json["choices"][0]["message"]["tool_calls"]
                assert fits(call["function"]["name"], call["function"]["arguments"])
                single["tool_choice"] = {"type": "function", "function": {"name": "roll"}}
                (call,) = (await running.chat(**single)).json["choices"][0]["message"]["tool_calls"]
                assert call["function"]["name"] == "roll"
            await rests(running)

    asyncio.run(main())


def test_what_is_left_to_the_model(tool_artifact: Path) -> None:
    async def main() -> None:
        async with serving(tool_artifact) as running:
            for seed in range(3):
                given = {"tools": TOOLS, "temperature": 1.0, "seed": seed, "max_tokens": 30}
                message = (await running.chat(**given)).json["choices"][0]["message"]
                text, calls, _ = gathered(await running.chat(**given, stream=True))[0]
                assert text == (message["content"] or "")
                assert len(calls) == len(message.get("tool_calls", []))
            # A model that only wants to write the mark is led into a call.
            tokens = await running.ask("/tokenize", {"model": "m", "prompt": "<tool_call>"})
            wanted = {str(id): 100 for id in set(tokens.json["tokens"][-11:])}
            given = {"tools": TOOLS, "logit_bias": wanted, "max_tokens": 400}
            given["parallel_tool_calls"] = False
            choice = (await running.chat(**given)).json["choices"][0]
            for call in choice["message"].get("tool_calls", []):
                assert fits(call["function"]["name"], call["function"]["arguments"])

            plain = (await running.chat()).json["usage"]["prompt_tokens"]
            told = (await running.chat(tools=TOOLS)).json["usage"]["prompt_tokens"]
            none = await running.chat(tools=TOOLS, tool_choice="none")
            assert told > plain == none.json["usage"]["prompt_tokens"]
            assert "tool_calls" not in none.json["choices"][0]["message"]

            body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
            bare = (await running.ask("/tokenize", body)).json["count"]
            assert (await running.ask("/tokenize", {**body, "tools": TOOLS})).json["count"] > bare
            await rests(running)

    asyncio.run(main())


def test_a_conversation_with_calls_goes_on(tool_artifact: Path) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "roll", "arguments": '{"sides": 6}'},
    }
    messages = [
        {"role": "user", "content": "roll a die"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "4"},
    ]

    async def main() -> None:
        async with serving(tool_artifact) as running:
            reply = await running.chat(messages=messages, tools=TOOLS, max_tokens=4)
            assert reply.status == 200, reply.body
            items: list[dict[str, Any]] = [
                {"role": "user", "content": "roll a die"},
                {
                    "type": "function_call",
                    "call_id": "call_1",
                    "name": "roll",
                    "arguments": '{"sides": 6}',
                },
                {"type": "function_call_output", "call_id": "call_1", "output": "4"},
            ]
            body = {"model": "m", "input": items, "max_output_tokens": 4}
            assert (await running.ask("/v1/responses", body)).status == 200

    asyncio.run(main())


def test_responses_have_items_of_calls(tool_artifact: Path) -> None:
    body = {
        "model": "m",
        "input": "hello",
        "max_output_tokens": 400,
        "tools": [{"type": "function", **own} for own in (PLAN, ROLL)],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }

    async def main() -> None:
        async with serving(tool_artifact) as running:
            whole = (await running.ask("/v1/responses", body)).json
            assert whole["status"] == "completed"
            (item,) = whole["output"]
            assert item["type"] == "function_call" and item["status"] == "completed"
            assert fits(item["name"], item["arguments"])
            events = (await running.ask("/v1/responses", {**body, "stream": True})).events
            names = [name for name, _ in events]
            assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
            assert names[:3] == [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
            ]
            assert names[-3:] == [
                "response.function_call_arguments.done",
                "response.output_item.done",
                "response.completed",
            ]
            deltas = "".join(
                event["delta"]
                for name, event in events
                if name == "response.function_call_arguments.delta"
            )
            assert deltas == item["arguments"] == events[-3][1]["arguments"]
            added, done = events[2][1]["item"], events[-2][1]["item"]
            assert added["arguments"] == "" and done["arguments"] == deltas
            assert added["id"] == done["id"] == events[-3][1]["item_id"]
            (last,) = events[-1][1]["response"]["output"]
            assert last == done
            await rests(running)

    asyncio.run(main())


def test_refusals_name_the_field(artifact: Path, tool_artifact: Path) -> None:
    strange = function("odd", {"x": {"not": {"type": "string"}}})

    def one(own: dict[str, Any]) -> list[dict[str, Any]]:
        return [*TOOLS, {"type": "function", "function": own}]

    async def main() -> None:
        async with serving(artifact) as running:
            reply = await running.chat(tools=TOOLS)
            assert (reply.status, reply.error["param"]) == (400, "tools")
            assert "template" in reply.error["message"]
            listed = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": TOOLS}
            assert (await running.ask("/tokenize", listed)).error["param"] == "tools"
        async with serving(tool_artifact) as running:
            cases: list[tuple[dict[str, Any], str]] = [
                ({"tools": one({**strange, "strict": True})}, "tools[2].function.parameters"),
                ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
                ({"tools": one(PLAN)}, "tools"),
                ({"tools": TOOLS, "tool_choice": "often"}, "tool_choice"),
                (
                    {
                        "tools": TOOLS,
                        "tool_choice": {"type": "function", "function": {"name": "absent"}},
                    },
                    "tool_choice.function.name",
                ),
            ]
            for fields, param in cases:
                reply = await running.chat(**fields)
                assert (reply.status, reply.error["param"]) == (400, param), reply.error
            named = {"type": "function", "function": {"name": "odd"}}
            reply = await running.chat(tools=one(strange), tool_choice=named, max_tokens=400)
            assert reply.status == 200
            await rests(running)

    asyncio.run(main())


def test_a_call_is_closed_at_its_deadline(tool_artifact: Path) -> None:
    digits = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}}
    tool = {"type": "function", "function": function("list", {"of": digits})}

    async def main() -> None:
        async with serving(tool_artifact) as running:
            reply = await running.chat(
                tools=[tool],
                tool_choice="required",
                deadline_ms=1500,
                max_tokens=200,
                min_tokens=2,
                messages=[{"role": "user", "content": "x"}],
            )
            assert reply.status == 200, reply.body
            told = reply.json["subsecond"]
            assert (told["on_deadline"], told["kept"]) == ("finish", True)
            choice = reply.json["choices"][0]
            if choice["finish_reason"] != "length":
                (call,) = choice["message"]["tool_calls"][:1]
                assert isinstance(json.loads(call["function"]["arguments"])["of"], list)
            await rests(running)

    asyncio.run(main())
