"""Answers that must look like something: over HTTP, whole and streamed, in time and refused."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from running import rests, serving

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}
DIGITS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


def check(text: str) -> None:
    value = json.loads(text)
    assert list(value) == list(SCHEMA["properties"])  # type: ignore[call-overload]
    assert len(value["name"]) <= 6 and 0 <= value["age"] <= 99
    assert len(value["tags"]) <= 3 and set(value["tags"]) <= {"red", "green"}
    assert isinstance(value["ok"], bool)


def test_schemas_are_followed_whole_and_streamed(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running:
            given: dict[str, Any] = {"max_tokens": 400, "response_format": FORM}
            whole = (await running.chat(**given)).json["choices"][0]
            assert whole["finish_reason"] == "stop"
            check(whole["message"]["content"])
            events = (await running.chat(**given, stream=True)).events
            pieces = [c["delta"].get("content", "") for _, e in events[:-1] for c in e["choices"]]
            assert "".join(pieces) == whole["message"]["content"]

            many = await running.chat(**given, n=3, temperature=2.0, seed=5, logprobs=True)
            texts = [choice["message"]["content"] for choice in many.json["choices"]]
            assert len(set(texts)) == 3
            for text in texts:
                check(text)
            for choice in many.json["choices"]:
                spelled = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
                assert spelled.decode() == choice["message"]["content"]

            body = {"model": "m", "input": "hello", "max_output_tokens": 400}
            form = {"type": "json_schema", "name": "person", "schema": SCHEMA}
            made = await running.ask("/v1/responses", {**body, "text": {"format": form}})
            assert made.json["status"] == "completed"
            check(made.json["output"][0]["content"][0]["text"])

            text = (await running.complete(**given)).json["choices"][0]["text"]
            check(text)
            await rests(running)

    asyncio.run(main())


def test_expressions_choices_and_objects(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running:
            for seed in range(3):
                given = {"temperature": 1.5, "seed": seed, "max_tokens": 60}
                shaped = await running.chat(
                    **given, structured_outputs={"regex": "[0-9]{3}-[a-f]{2,4}"}
                )
                choice = shaped.json["choices"][0]
                assert re.fullmatch("[0-9]{3}-[a-f]{2,4}", choice["message"]["content"])
                assert choice["finish_reason"] == "stop"
                shaped = await running.complete(
                    **given, structured_outputs={"choice": ["on", "off"]}
                )
                assert shaped.json["choices"][0]["text"] in ("on", "off")
            whole = await running.chat(
                structured_outputs={"json": json.dumps(SCHEMA)}, max_tokens=400
            )
            check(whole.json["choices"][0]["message"]["content"])
            begun = await running.chat(response_format={"type": "json_object"}, max_tokens=5)
            choice = begun.json["choices"][0]
            assert choice["message"]["content"].startswith("{")
            assert choice["finish_reason"] in ("length", "stop")
            # More tokens than it lets follow are not waited for.
            short = await running.chat(
                structured_outputs={"choice": ["on"]}, min_tokens=8, ignore_eos=True
            )
            assert short.json["choices"][0]["message"]["content"] == "on"
            await rests(running)

    asyncio.run(main())


def test_what_cant_be_followed_names_its_field(artifact: Path) -> None:
    def form(schema: Any) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}

    place = "response_format.json_schema.schema"
    deep: Any = {"type": "string"}
    for _ in range(60):
        deep = {"type": "array", "items": deep}
    wide = {f"k{index}": {"type": "integer"} for index in range(2500)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"response_format": form({"type": "nothing"})}, place),
        ({"response_format": form({"$ref": "file:///etc/passwd"})}, place),
        ({"response_format": form({"type": "string", "pattern": "(a*)*("})}, place),
        ({"response_format": form({"type": "object", "properties": wide})}, place),
        ({"structured_outputs": {"regex": "(?=a)"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": {"type": 3}}}, "structured_outputs.json"),
        (
            {
                "structured_outputs": {"choice": ["a"]},
                "logit_bias": {},
                "response_format": form({}),
            },
            "structured_outputs",
        ),
    ]

    async def main() -> None:
        async with serving(artifact, within_s=20.0) as running:
            for fields, param in cases:
                reply = await running.chat(**fields)
                assert (reply.status, reply.error["param"]) == (400, param), reply.error
                assert "etc" not in reply.error["message"] or "$ref" in str(fields)
            asked = {"model": "m", "input": "x", "text": {"format": form(1)["json_schema"]}}
            asked["text"]["format"] |= {"type": "json_schema", "schema": {"type": "no"}}  # type: ignore[index]
            bad = await running.ask("/v1/responses", asked)
            assert (bad.status, bad.error["param"]) == (400, "text.format.schema")
            assert running.server.ledger.total().promised == 0
            assert (await running.chat(response_format=form(deep))).status == 200
            await rests(running)

    asyncio.run(main())


def test_at_the_deadline_a_shape_is_closed(roomy_artifact: Path) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": DIGITS}}

    async def main() -> None:
        async with serving(roomy_artifact) as running:
            given = {"max_tokens": 30_000, "deadline_ms": 1500, "min_tokens": 2}
            for stream in (False, True):
                reply = await running.chat(**given, response_format=form, stream=stream)
                assert reply.status == 200, reply.body
                if stream:
                    events = [event for _, event in reply.events[:-1]]
                    text = "".join(
                        c["delta"].get("content", "") for e in events for c in e["choices"]
                    )
                    reason = events[-1]["choices"][0]["finish_reason"]
                    told = events[-1]["subsecond"]
                else:
                    choice = reply.json["choices"][0]
                    text, reason = choice["message"]["content"], choice["finish_reason"]
                    told = reply.json["subsecond"]
                assert all(0 <= digit <= 9 for digit in json.loads(text))
                assert reason in ("deadline", "stop")
                assert (told["on_deadline"], told["kept"]) == ("finish", True)
            # What closes an expression isn't known, so all of it is promised or nothing.
            reply = await running.chat(
                structured_outputs={"regex": "(ab){3}"}, deadline_ms=5000, max_tokens=20
            )
            assert reply.json["subsecond"]["on_deadline"] == "full"
            assert reply.json["subsecond"]["promised_tokens"] == 20
            assert reply.json["choices"][0]["message"]["content"] == "ababab"
            await rests(running)

    asyncio.run(main())
