"""The description of the interface is true: its routes are the application's, its schemas those
that requests are read with, and real answers fit it.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bodies import BODIES
from running import Reply, Running, serving

from subsecond.serve import openapi
from subsecond.serve.app import OPEN, ROUTES
from subsecond.serve.keys import KeyFile

jsonschema = pytest.importorskip("jsonschema")
validator = pytest.importorskip("openapi_spec_validator")


def plain(path: str) -> str:
    return path.replace(":path}", "}")


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    methods = {plain(path): (own.method, own.right) for path, own in ROUTES.items()}
    found: dict[str, Any] = json.loads(openapi.description(methods, OPEN))
    return found


def test_it_is_valid_and_has_every_route(described: dict[str, Any]) -> None:
    validator.validate(described)
    assert set(described["paths"]) == {plain(path) for path in ROUTES}
    for path, own in ROUTES.items():
        (method,) = described["paths"][plain(path)]
        assert method == own.method.lower()
        operation = described["paths"][plain(path)][method]
        assert ("security" in operation) == (path not in OPEN)
        assert ("requestBody" in operation) == (own.method == "POST")
    operations = [own for path in described["paths"].values() for own in path.values()]
    assert len({own["operationId"] for own in operations}) == len(operations)


def test_requests_are_described_field_by_field(described: dict[str, Any]) -> None:
    for path, own in openapi.ROUTES.items():
        if own.request is None or path not in described["paths"]:
            continue
        body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        schema = described["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
        fields = {field.encode_name: field for field in msgspec.structs.fields(own.request)}
        assert set(schema["properties"]) == set(fields), path
        assert set(schema.get("required", [])) == {
            name for name, field in fields.items() if field.required
        }
        assert schema["additionalProperties"] is False, path


def check(described: dict[str, Any], schema: Any, value: Any) -> None:
    whole = {**schema, "components": described["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


def answered(described: dict[str, Any], path: str, reply: Reply, kind: str) -> None:
    (operation,) = described["paths"][path].values()
    responses = operation["responses"]
    own = responses["200" if reply.status == 200 else "default"]["content"][kind]["schema"]
    if kind == "text/event-stream":
        for name, data in reply.events:
            if data != "[DONE]":
                check(described, own, data)
                assert not name or name == data["type"]
    else:
        check(described, own, reply.json)


def test_the_smallest_bodies_fit_and_wrong_ones_do_not(described: dict[str, Any]) -> None:
    for name, (_, body) in BODIES.items():
        path = {"chat": "/v1/chat/completions", "tokenize": "/tokenize",
                "detokenize": "/detokenize"}.get(name, f"/v1/{name}")  # fmt: skip
        if path not in described["paths"]:
            continue
        operation = described["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        check(described, schema, body)
        for wrong in ({**body, "nonsense": 1}, {**body, "model": 3}, {}):
            with pytest.raises(jsonschema.ValidationError):
                check(described, schema, wrong)


def test_real_answers_fit(artifact: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    secret, _ = file.create("all", ["admin", "use", "metrics"])

    async def ask(running: Running) -> None:
        given = (await running.ask("/openapi.json")).json
        base = {"model": "m", "max_tokens": 5}
        chat = {**base, "messages": [{"role": "user", "content": "hello"}], "n": 2,
                "logprobs": True, "top_logprobs": 2}  # fmt: skip
        for path, body in {
            "/v1/chat/completions": chat,
            "/v1/completions": {**base, "prompt": "hello", "logprobs": 2},
            "/v1/responses": {"model": "m", "input": "hello", "max_output_tokens": 5},
        }.items():
            whole = await running.ask(path, body, x_deadline_ms="9000")
            assert whole.status == 200, whole.body
            answered(given, path, whole, "application/json")
            streamed = await running.ask(path, {**body, "stream": True})
            assert streamed.status == 200
            answered(given, path, streamed, "text/event-stream")
            answered(given, path, await running.ask(path, {"model": "m"}), "application/json")
        tokens = {"model": "m", "prompt": "hello", "return_token_strs": True}
        for path, small in {
            "/tokenize": tokens,
            "/detokenize": {"model": "m", "tokens": [1, 2]},
            "/models/load": {"model": "none"},
            "/models/unload": {"model": "none"},
        }.items():
            answered(given, path, await running.ask(path, small), "application/json")
        for path in ("/health/live", "/health/ready", "/v1/models", "/dashboard", "/models"):
            reply = await running.ask(path)
            assert reply.status == 200
            answered(given, path, reply, "application/json")
        one = await running.ask("/v1/models/m")
        answered(given, "/v1/models/{model}", one, "application/json")

    async def main() -> None:
        async with serving(artifact, keys=file.path, within_s=30.0) as running:
            running.headers["authorization"] = f"Bearer {secret}"
            await ask(running)

    asyncio.run(main())
