"""The description of the interface (OpenAPI 3.1), made of the structs that requests are read with
and answers are written with.

Owns: which struct belongs to which route. Does not know: handlers; the routes, their methods and
rights are given to it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from subsecond import __version__
from subsecond.serve.errors import ErrorBody
from subsecond.serve.page import Dashboard
from subsecond.serve.routes import State
from subsecond.serve.schema import (
    admin,
    chat,
    completions,
    embeddings,
    models,
    responses,
    responses_events,
    shared,
    tokens,
)

_TEXT, _HTML, _EVENTS = "text/plain", "text/html", "text/event-stream"


@dataclass(frozen=True)
class Described:
    """What a route reads and writes. events: of a stream, each without a name or, for responses,
    named by its `type`; a stream that fails ends with an `error` event. deadline: whether the
    header X-Deadline-Ms is read.
    """

    summary: str
    request: Any = None
    answer: Any = None
    events: tuple[Any, ...] = ()
    kind: str = "application/json"
    deadline: bool = False


ROUTES: dict[str, Described] = {
    "/health/live": Described("Whether the process answers", answer=State),
    "/health/ready": Described("Whether requests are taken (503: why not)", answer=State),
    "/v1/chat/completions": Described(
        "A chat completion", chat.ChatRequest, chat.ChatCompletion, (chat.ChatChunk,), deadline=True
    ),
    "/v1/completions": Described(
        "A text completion",
        completions.CompletionRequest,
        completions.TextCompletion,
        (completions.TextCompletion,),
        deadline=True,
    ),
    "/v1/responses": Described(
        "A response",
        responses.ResponseRequest,
        responses_events.Response,
        (
            responses_events.ResponseEvent,
            responses_events.ItemEvent,
            responses_events.PartEvent,
            responses_events.TextDelta,
            responses_events.TextDone,
            responses_events.ArgumentsDelta,
            responses_events.ArgumentsDone,
            responses_events.ErrorEvent,
        ),
        deadline=True,
    ),
    "/v1/embeddings": Described(
        "Vectors of texts", embeddings.EmbeddingRequest, embeddings.Embeddings, deadline=True
    ),
    "/v1/models": Described("The models that are served", answer=models.Models),
    "/v1/models/{model}": Described("One of them", answer=models.Model),
    "/tokenize": Described("A text's token ids", tokens.TokenizeRequest, tokens.Tokenized),
    "/detokenize": Described("Token ids' text", tokens.DetokenizeRequest, tokens.Detokenized),
    "/metrics": Described("Figures for Prometheus", kind=_TEXT),
    "/dashboard": Described("Figures for the page", answer=Dashboard),
    "/models": Described("What is served, and what could be", answer=admin.ModelStates),
    "/models/load": Described("Loads a model", admin.LoadRequest, admin.ModelState, deadline=True),
    "/models/unload": Described(
        "Frees a model", admin.UnloadRequest, admin.Unloaded, deadline=True
    ),
    "/": Described("The page", kind=_HTML),
    "/ui/{name}": Described("A file of the page", kind="*/*"),
    "/openapi.json": Described("This description", answer=dict[str, Any]),
}


def description(methods: Mapping[str, tuple[str, str | None]], open_: frozenset[str]) -> bytes:
    """The description as JSON. methods: HTTP method and right of every route of `ROUTES`; open_:
    those that need no key.
    """
    kinds = [
        kind
        for own in ROUTES.values()
        for kind in (own.request, own.answer, *own.events)
        if kind is not None
    ]
    kinds.append(ErrorBody)
    schemas, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    named = dict(zip(map(id, kinds), schemas, strict=True))
    for schema in components.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    paths = {
        path: {
            methods[path][0].lower(): _operation(
                path, own, named, methods[path][1], needs_key=path not in open_
            )
        }
        for path, own in ROUTES.items()
        if path in methods
    }
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Subsecond",
                "version": __version__,
                "description": "OpenAI's interface, with a deadline on every request: promised "
                "before it begins, or declined at once.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "key": {"type": "http", "scheme": "bearer"},
                    "browser": {
                        "type": "http",
                        "scheme": "basic",
                        "description": "the key as the password",
                    },
                },
            },
        }
    )


def _operation(
    path: str, own: Described, named: dict[int, Any], right: str | None, *, needs_key: bool
) -> dict[str, Any]:
    content: dict[str, Any] = {own.kind: {"schema": named[id(own.answer)]} if own.answer else {}}
    if own.events:
        content[_EVENTS] = {"schema": {"anyOf": [named[id(kind)] for kind in own.events]}}
    error = {"description": "Why not", "content": {"application/json": {"schema": _error(named)}}}
    found: dict[str, Any] = {
        "operationId": path.strip("/")
        .replace("/", "_")
        .replace(".", "_")
        .replace("{", "")
        .replace("}", "")
        or "page",
        "summary": own.summary,
        "responses": {"200": {"description": "The answer", "content": content}, "default": error},
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("model", "name")
        if f"{{{name}}}" in path
    ]
    if own.deadline:
        parameters.append(
            {
                "name": "X-Deadline-Ms",
                "in": "header",
                "description": "The deadline in milliseconds from the request's first byte; of "
                "this and the body's deadline_ms the earlier holds.",
                "schema": {"type": "number", "minimum": 1, "maximum": shared.MAX_DEADLINE_MS},
            }
        )
    if parameters:
        found["parameters"] = parameters
    if own.request is not None:
        schema = {"schema": named[id(own.request)]}
        found["requestBody"] = {"required": True, "content": {"application/json": schema}}
    if needs_key:
        found["security"] = [{"key": []}, {"browser": []}, {}]  # none, where there are no keys
        found["description"] = (
            f"Where the server has keys: one with the right {right!r}." if right else "Any key."
        )
    return found


def _error(named: dict[int, Any]) -> Any:
    return named[id(ErrorBody)]
