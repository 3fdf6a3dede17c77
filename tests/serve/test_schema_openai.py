"""Every field of OpenAI's interface (its Python client, version 3.54.0) is served, taken at the
value that asks for nothing, or refused by name; and what is served becomes what it should."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import msgspec
import pytest
from bodies import BODIES, LIMITS, MESSAGES, read, refusal

from subsecond.engine.constraint import Constraint
from subsecond.serve.errors import BadRequest, UnknownModel, UnsupportedValue
from subsecond.serve.schema import (
    chat,
    completions,
    embeddings,
    models,
    responses_events,
    shared,
    wire,
)
from subsecond.serve.schema.chat import ChatRequest
from subsecond.serve.schema.completions import CompletionRequest
from subsecond.serve.schema.embeddings import EmbeddingRequest
from subsecond.serve.schema.responses import ResponseRequest

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
FLAT_TOOL = {"type": "function", **FUNCTION}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}

SERVED = {
    "chat": {
        "messages", "model", "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens",
        "max_tokens", "metadata", "n", "parallel_tool_calls", "presence_penalty",
        "prompt_cache_key", "response_format", "safety_identifier", "seed", "stop", "stream",
        "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user",
    },
    "completions": {
        "model", "prompt", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n",
        "presence_penalty", "seed", "stop", "stream", "stream_options", "temperature", "top_p",
        "user",
    },
    "embeddings": {"input", "model", "encoding_format", "user", "dimensions"},
    "responses": {
        "include", "input", "instructions", "max_output_tokens", "metadata", "model",
        "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "stream", "stream_options",
        "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "user",
    },
}  # fmt: skip

# route -> field -> values that are taken, values that are refused by that name
NEUTRAL: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {
    "chat": {
        "audio": ([None], [{"format": "wav", "voice": "a"}]),
        "function_call": ([None, "none"], ["auto"]),
        "modalities": ([None, ["text"]], [["text", "audio"], ["audio"], []]),
        "moderation": ([None], [{"model": "m"}]),
        "prediction": ([None], [{"type": "content", "content": "a"}]),
        "prompt_cache_retention": ([None, "in_memory"], ["24h"]),
        "reasoning_effort": ([None, "none"], ["minimal", "low", "high", "max"]),
        "service_tier": ([None, "auto", "default"], ["flex", "scale", "priority", "fast"]),
        "store": ([None, False], [True]),
        "verbosity": ([None, "medium"], ["low", "high"]),
    },
    "completions": {"best_of": ([None, 1], [0, 2, -1]), "suffix": ([None, ""], ["a"])},
    "embeddings": {},
    "responses": {
        "background": ([None, False], [True]),
        "context_management": ([None], [[{"type": "compaction"}]]),
        "conversation": ([None], ["c", {"id": "c"}]),
        "max_tool_calls": ([None], [1]),
        "moderation": ([None], [{"model": "m"}]),
        "previous_response_id": ([None], ["r"]),
        "prompt": ([None], [{"id": "p"}]),
        "prompt_cache_retention": ([None, "in_memory"], ["24h"]),
        "reasoning": ([None, {}, {"effort": None}, {"effort": "none"}], [{"effort": "low"}]),
        "service_tier": ([None, "auto", "default"], ["flex"]),
        "store": ([None, False], [True]),
        "truncation": ([None, "disabled"], ["auto"]),
    },
}
REFUSED = {
    "chat": {"functions", "prompt_cache_options", "web_search_options"},
    "completions": set[str](),
    "embeddings": set[str](),
    "responses": {"access_programs", "background_options", "image", "prompt_cache_options"},
}
OURS = {
    "top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos",
    "deadline_ms", "on_deadline", "priority", "structured_outputs",
}  # fmt: skip
STRUCTS: dict[str, type[msgspec.Struct]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "embeddings": EmbeddingRequest,
    "responses": ResponseRequest,
}


@pytest.mark.parametrize("route", STRUCTS)
def test_no_field_is_forgotten(route: str) -> None:
    ours = OURS - ({*OURS} - {"deadline_ms", "priority"} if route == "embeddings" else set())
    if route == "completions":
        ours = ours | {"response_format"}
    if route == "responses":  # sampling that OpenAI has on the other routes
        ours = ours | {"frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop"}
    assert set(STRUCTS[route].__struct_fields__) == SERVED[route] | set(NEUTRAL[route]) | ours


@pytest.mark.parametrize(
    ("route", "name"), [(route, name) for route in NEUTRAL for name in NEUTRAL[route]]
)
def test_fields_of_one_value(route: str, name: str) -> None:
    taken, refused = NEUTRAL[route][name]
    plain = read(route)
    for value in taken:
        own = read(route, **{name: value})
        if route != "responses":
            assert own == plain
        assert own.params == plain.params
    for value in refused:
        error = refusal(route, **{name: value})
        assert isinstance(error, UnsupportedValue), value
        assert str(error.param).split(".")[0].split("[")[0] == name
        assert name in str(error)


@pytest.mark.parametrize(
    ("route", "name"), [(route, name) for route in REFUSED for name in sorted(REFUSED[route])]
)
def test_fields_that_are_not_served(route: str, name: str) -> None:
    error = refusal(route, **{name: {}})
    assert (error.param, error.code) == (name, "unsupported_parameter")


def test_messages_become_what_templates_read() -> None:
    given = [
        {"role": "developer", "content": "be brief", "name": "ops"},
        {
            "role": "system",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "user", "content": "héé", "name": "u"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "audio": None,
            "annotations": [],
            "function_call": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                {"id": "2", "type": "function", "function": {"name": "f", "arguments": "not json"}},
            ],
        },
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "refusal": "never"},
    ]
    assert read("chat", messages=given).messages == [
        {"role": "system", "content": "be brief", "name": "ops"},
        {
            "role": "system",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "user", "content": "héé", "name": "u"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                {"id": "2", "type": "function", "function": {"name": "f", "arguments": "not json"}},
            ],
        },
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        {"role": "assistant", "content": "never"},
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "f", "content": "a"}, "messages[0].role"),
        ({"role": 1, "content": "a"}, "messages[0].role"),
        ({"content": "a"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": 1}, "messages[0].content"),
        ({"role": "user", "content": "a", "x": 1}, "messages[0].x"),
        ({"role": "assistant"}, "messages[0].content"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages[0].content"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[0].audio"),
        ({"role": "tool", "content": "a"}, "messages[0].tool_call_id"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]},
            "messages[0].content[0].type",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        (
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}},
                ],
            },
            "messages[0].content[1].prompt_cache_breakpoint",
        ),
        (None, "messages[0]"),
        ("hi", "messages[0]"),
    ],
)
def test_bad_messages_are_named(message: object, param: str) -> None:
    assert refusal("chat", messages=[message]).param == param


def test_max_tokens_has_two_names() -> None:
    assert read("chat", max_tokens=5).params.max_tokens == 5
    assert read("chat", max_tokens=5, max_completion_tokens=5).params.max_tokens == 5
    assert refusal("chat", max_tokens=5, max_completion_tokens=6).param == "max_tokens"


def test_logprobs() -> None:
    assert read("chat").params.logprobs is None
    assert read("chat", logprobs=True).params.logprobs == 0
    assert read("chat", logprobs=False).params.logprobs is None
    assert read("chat", logprobs=True, top_logprobs=3).params.logprobs == 3
    assert refusal("chat", top_logprobs=3).param == "top_logprobs"
    include = ["message.output_text.logprobs"]
    assert read("responses", include=include).params.logprobs == 0
    assert read("responses", include=include, top_logprobs=2).params.logprobs == 2
    assert refusal("responses", top_logprobs=2).param == "top_logprobs"
    assert refusal("responses", include=["reasoning.encrypted_content"]).param == "include[0]"


def test_stream_options() -> None:
    assert read("chat", stream=True, stream_options={"include_usage": True}).include_usage
    assert not read("chat", stream=True, stream_options=None).include_usage
    assert read("chat", stream=True, stream_options={"include_obfuscation": False}).stream
    assert refusal("chat", stream_options={"include_usage": True}).param == "stream_options"
    error = refusal("chat", stream=True, stream_options={"include_obfuscation": True})
    assert error.param == "stream_options.include_obfuscation"
    assert refusal("chat", stream=True, stream_options={"x": 1}).param == "stream_options.x"


OBJECT = Constraint.json_object()
OF_SCHEMA = Constraint.json_schema(SCHEMA)


@pytest.mark.parametrize(
    ("form", "made"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, OBJECT),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}, OF_SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, OBJECT),
    ],
)
def test_response_formats(form: dict[str, Any], made: Constraint | None) -> None:
    for route in ("chat", "completions"):
        assert read(route, response_format=form).params.constraint == made
    if form["type"] == "json_schema":
        schema = {"type": "object"} | form["json_schema"].get("schema", {})
        form = {"type": "json_schema", "name": "a", "schema": schema}
    assert read("responses", text={"format": form}).params.constraint == made


@pytest.mark.parametrize("route", ["chat", "completions", "responses"])
def test_the_extension_of_vllm(route: str) -> None:
    cases: list[tuple[dict[str, Any], Constraint, str]] = [
        ({"json": SCHEMA}, OF_SCHEMA, "json"),
        ({"json": json.dumps(SCHEMA)}, OF_SCHEMA, "json"),
        ({"json_object": True}, OBJECT, "json_object"),
        ({"regex": "a+", "json_object": False}, Constraint.regex("a+"), "regex"),
        ({"choice": ["a", "b", "a"]}, Constraint.choice(["a", "b"]), "choice"),
    ]
    for asked, made, name in cases:
        request = read(route, structured_outputs=asked)
        assert request.params.constraint == made
        assert request.constraint_param == f"structured_outputs.{name}"
    assert read(route, structured_outputs=None).params.constraint is None
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, "structured_outputs"),
        ({"json_object": False}, "structured_outputs"),
        ({"regex": "a", "choice": ["a"]}, "structured_outputs"),
        ({"regex": ""}, "structured_outputs.regex"),
        ({"regex": "a" * 4097}, "structured_outputs.regex"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"choice": ["a"] * 1025}, "structured_outputs.choice"),
        ({"choice": [""]}, "structured_outputs.choice[0]"),
        ({"json": "[1]"}, "structured_outputs.json"),
        ({"json": "{"}, "structured_outputs.json"),
        ({"json": {"x-guidance": {"lenient": True}}}, "structured_outputs.json"),
        ({"grammar": "start: x"}, "structured_outputs.grammar"),
    ]
    for asked, param in bad:
        assert refusal(route, structured_outputs=asked).param == param, asked


def test_one_shape_a_request() -> None:
    form = {"type": "json_object"}
    both = refusal("chat", response_format=form, structured_outputs={"regex": "a"})
    assert both.param == "structured_outputs"
    assert read("chat", response_format={"type": "text"}, structured_outputs={"regex": "a"})


@pytest.mark.parametrize(
    ("form", "param"),
    [
        (None, "response_format"),
        ("json_object", "response_format"),
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "text", "x": 1}, "response_format.x"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "a b"}},
            "response_format.json_schema.name",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": []}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"x-guidance": 1}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_bad_response_formats_are_named(form: object, param: str) -> None:
    assert refusal("chat", response_format=form).param == param


def test_tools() -> None:
    own = read("chat", tools=[TOOL])
    assert own.tools == [shared.Tool("f", "d", {"type": "object"}, True)]
    assert own.tools[0].for_template() == {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
    }
    assert own.tool_choice == shared.ToolChoice("auto", None, True)
    assert read("chat", tools=[TOOL], tool_choice="none").tool_choice.mode == "none"
    named = {"type": "function", "function": {"name": "f"}}
    chosen = read("chat", tools=[TOOL], tool_choice=named, parallel_tool_calls=False).tool_choice
    assert chosen == shared.ToolChoice("required", "f", False)
    assert read("chat").tool_choice == shared.ToolChoice("none")
    flat = read("responses", tools=[FLAT_TOOL], tool_choice={"type": "function", "name": "f"})
    assert flat.tools == own.tools
    assert flat.tool_choice == shared.ToolChoice("required", "f", True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": None}, "tools"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL], "tool_choice": "f"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": 1}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
    ],
)
def test_bad_tools_are_named(fields: dict[str, Any], param: str) -> None:
    assert refusal("chat", **fields).param == param


def test_metadata() -> None:
    assert read("chat", metadata={"a": "b"}).metadata == {"a": "b"}
    for bad in ({"a" * 65: "b"}, {"a": "b" * 513}, {str(own): "" for own in range(17)}, {"a": 1}):
        for route in ("chat", "responses"):
            assert refusal(route, metadata=bad).param == "metadata"


@pytest.mark.parametrize(
    ("given", "made"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_four_forms_of_a_prompt(given: object, made: list[object]) -> None:
    assert read("completions", prompt=given).prompts == made
    assert read("embeddings", input=given).inputs == made


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ([], ""), ([[]], "[0]"), (["a", 1], "[1]"), ([1, "a"], "[1]"), ([1, -1], "[1]"),
        ([1, 2**31], "[1]"), ([1, True], "[1]"), ([1, 1.0], "[1]"), ([None], "[0]"),
        ([{"a": 1}], "[0]"), (["a", [1]], ""), ([[1], ["a"]], "[1][0]"), (["a"] * 2049, ""),
        ([[1] * ((1 << 17) + 1)], "[0]"), (1, ""), (None, ""), ({}, ""),
    ],
)  # fmt: skip
def test_bad_prompts_are_named(given: object, place: str) -> None:
    assert refusal("completions", prompt=given).param == f"prompt{place}"
    assert refusal("embeddings", input=given).param == f"input{place}"


def test_echo() -> None:
    assert read("completions", echo=True, logprobs=1).echo
    scored = read("completions", echo=True, max_tokens=0, logprobs=0)
    assert scored.prompt_only
    assert scored.params.max_tokens == 1
    assert refusal("completions", max_tokens=0).param == "max_tokens"
    assert refusal("completions", max_tokens=-1, echo=True).param == "max_tokens"
    assert read("completions", n=3, best_of=3).params.n == 3
    assert refusal("completions", n=3, best_of=4).param == "best_of"


def test_response_items_become_messages() -> None:
    items = [
        {"role": "developer", "content": "brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}", "id": "fc"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
    ]
    own = read("responses", input=items, instructions="be kind")
    calls = [
        {"id": key, "type": "function", "function": {"name": name, "arguments": {}}}
        for key, name in (("1", "f"), ("2", "g"))
    ]
    assert own.messages == [
        {"role": "system", "content": "be kind"},
        {"role": "system", "content": "brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
    ]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "reasoning", "id": "r", "summary": []}, "input[0].type"),
        ({"type": "item_reference", "id": "r"}, "input[0].type"),
        ({"type": 1}, "input[0].type"),
        ({"role": "tool", "content": "a"}, "input[0].role"),
        ({"role": "user"}, "input[0].content"),
        ({"role": "user", "content": "a", "x": 1}, "input[0].x"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input[0].content[0].type"),
        ({"type": "function_call", "call_id": "1", "name": "f"}, "input[0].arguments"),
        ("a", "input[0]"),
    ],
)
def test_bad_response_items_are_named(item: object, param: str) -> None:
    assert refusal("responses", input=[item]).param == param


def test_tokenize_takes_a_prompt_or_messages() -> None:
    assert read("tokenize", add_special_tokens=False).add_special_tokens is False
    body = msgspec.json.encode({"model": "m", "messages": MESSAGES, "tools": [TOOL]})
    own = BODIES["tokenize"][0](body, LIMITS)
    assert (own.prompt, own.messages, own.add_generation_prompt) == (None, MESSAGES, True)
    assert refusal("tokenize", messages=MESSAGES).param == "prompt"
    assert refusal("tokenize", tools=[TOOL]).param == "tools"
    assert refusal("tokenize", add_generation_prompt=True).param == "add_generation_prompt"
    assert refusal("detokenize", tokens=[-1]).param == "tokens[0]"
    assert refusal("detokenize", tokens=["a"]).param == "tokens[0]"


# Answers.


def test_embeddings_in_both_encodings() -> None:
    vector = [1.0, -0.5, 3.25]
    made = embeddings.embedding(0, vector, as_base64=True)
    assert struct.unpack("<3f", base64.b64decode(str(made.embedding))) == tuple(vector)
    plain = embeddings.embedding(1, vector, as_base64=False)
    answer = embeddings.Embeddings(
        data=[made, plain], model="m", usage=embeddings.EmbeddingUsage(2, 2)
    )
    assert msgspec.json.decode(wire.encode(answer))["data"][1] == {
        "object": "embedding",
        "index": 1,
        "embedding": vector,
    }
    own = read("embeddings", dimensions=4, encoding_format="base64")
    assert own.base64 and own.dimensions == 4 and own.embeds
    assert own.terms.on_deadline == "full" and own.params.max_tokens == 1
    state = struct.pack("<4f", 3.0, 4.0, 0.0, 12.0)
    assert list(embeddings.normalized(state, 2)) == pytest.approx([0.6, 0.8])
    assert list(embeddings.normalized(state, None)) == pytest.approx([3 / 13, 4 / 13, 0, 12 / 13])
    assert list(embeddings.normalized(bytes(16), None)) == [0.0] * 4
    with pytest.raises(BadRequest) as caught:
        embeddings.normalized(state, 5)
    assert caught.value.param == "dimensions"


def test_chat_answers_have_the_official_shape() -> None:
    promise = shared.Promise(
        deadline_ms=900.0, on_deadline="full", promised_tokens=8, kept=True,
        queue_ms=1.0, prefill_ms=2.0, decode_ms=3.0, total_ms=6.5,
    )  # fmt: skip
    logprobs = chat.Logprobs([chat.TokenLogprob("a", shared.finite(float("-inf")), [97], [])])
    answer = chat.ChatCompletion(
        id="chatcmpl-1",
        created=1,
        model="m",
        choices=[chat.Choice(0, chat.AnswerMessage("a"), "stop", logprobs)],
        usage=shared.Usage.of(3, 1, 2),
        subsecond=promise,
    )
    plain = msgspec.json.decode(wire.encode(answer))
    assert plain["object"] == "chat.completion"
    assert plain["choices"] == [
        {
            "index": 0,
            "message": {"content": "a", "role": "assistant", "refusal": None},
            "finish_reason": "stop",
            "logprobs": {
                "content": [{"token": "a", "logprob": -9999.0, "bytes": [97], "top_logprobs": []}],
                "refusal": None,
            },
        }
    ]
    assert plain["usage"]["total_tokens"] == 4
    assert plain["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert plain["subsecond"]["kept"] is True


def test_chunks_leave_out_what_was_not_asked_for() -> None:
    first = chat.ChatChunk(
        id="c", created=1, model="m", choices=[chat.ChunkChoice(0, chat.Delta("assistant", ""))]
    )
    event = wire.data_event(first)
    assert event.startswith(b"data: {") and event.endswith(b"}\n\n")
    plain = msgspec.json.decode(event[6:])
    assert "usage" not in plain and "subsecond" not in plain
    assert plain["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    asked = msgspec.structs.replace(first, usage=None)
    assert msgspec.json.decode(wire.data_event(asked)[6:])["usage"] is None
    last = completions.TextCompletion(
        id="c", created=1, model="m", choices=[completions.Choice(0, "a\n\nb", None)]
    )
    assert wire.data_event(last).count(b"\n") == 2


def test_response_events_are_named_and_numbered() -> None:
    request = read("responses", instructions="i", tools=[FLAT_TOOL], user="u", temperature=0.5)
    begun = responses_events.response(request, "resp_1", 1, "in_progress")
    events = responses_events.Numbered()
    first = events.event(responses_events.ResponseEvent, "response.created", response=begun)
    second = events.event(
        responses_events.TextDelta, item_id="msg_1", output_index=0, content_index=0, delta="a"
    )
    name, data, *_ = first.split(b"\n")
    assert name == b"event: response.created"
    plain = msgspec.json.decode(data.removeprefix(b"data: "))
    assert plain["sequence_number"] == 0
    assert plain["response"]["tools"] == [FLAT_TOOL]
    assert plain["response"]["text"] == {"format": {"type": "text"}, "verbosity": None}
    assert (plain["response"]["store"], plain["response"]["temperature"]) == (False, 0.5)
    assert second.startswith(b"event: response.output_text.delta\n")
    assert msgspec.json.decode(second.split(b"data: ")[1])["sequence_number"] == 1
    third = events.event(
        responses_events.ArgumentsDone, item_id="fc_1", output_index=1, name="f", arguments="{}"
    )
    assert msgspec.json.decode(third.split(b"data: ")[1])["name"] == "f"
    assert responses_events.Usage.of(3, 1, 2).total_tokens == 4


def test_models_and_errors() -> None:
    own = models.Model(id="m", created=1, certificate="converted", context=8192, weights="int4")
    assert msgspec.json.decode(wire.encode(models.Models(data=[own])))["data"][0]["id"] == "m"
    event = wire.error_event(UnknownModel("x"))
    assert event.startswith(b'event: error\ndata: {"error":{"message":"the model \'x\'')
