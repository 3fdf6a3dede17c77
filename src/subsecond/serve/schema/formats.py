"""What an answer must look like, as clients say it: OpenAI's formats, and vLLM's extension.

Owns: the forms of `response_format`, `text.format` and `structured_outputs`, and their way into one
`Constraint`. Does not know: how a constraint is followed, or whether it can be.

`structured_outputs` is what vLLM's clients send since its 0.12: one of `json` (a schema, or its
text), `json_object` (true), `regex`, `choice`. A format of OpenAI's and an extension exclude each
other.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from subsecond.engine.constraint import MAX_CHOICES, Constraint
from subsecond.errors import RequestError
from subsecond.serve.errors import BadRequest
from subsecond.serve.schema.strict import Strict, ToolName

MAX_REGEX_CHARACTERS = 4096


class TextFormat(Strict, tag="text", tag_field="type"):
    """No constraint."""


class JsonFormat(Strict, tag="json_object", tag_field="type"):
    """Some JSON object."""


class JsonSchema(Strict):
    """A schema that the answer must fit. It is always enforced, so `strict` changes nothing."""

    name: ToolName
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(Strict, tag="json_schema", tag_field="type"):
    """JSON that fits a schema, of chat completions."""

    json_schema: JsonSchema


class SchemaFormat(Strict, tag="json_schema", tag_field="type"):
    """JSON that fits a schema, of responses."""

    name: ToolName
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class StructuredOutputs(Strict):
    """Our extension, by vLLM's names. Exactly one of the fields."""

    json: dict[str, Any] | str | None = None
    json_object: bool | None = None
    regex: Annotated[str, Meta(min_length=1, max_length=MAX_REGEX_CHARACTERS)] | None = None
    choice: (
        Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=4096)]],
            Meta(min_length=1, max_length=MAX_CHOICES),
        ]
        | None
    ) = None


ChatFormat = TextFormat | JsonFormat | JsonSchemaFormat
ResponsesFormat = TextFormat | JsonFormat | SchemaFormat


class Shape(msgspec.Struct, frozen=True):
    """What an answer must look like, and the field that says so, which errors name."""

    constraint: Constraint
    param: str


def shape(
    form: ChatFormat | ResponsesFormat, param: str, extension: StructuredOutputs | None
) -> Shape | None:
    """The shape that a request asks for; None: any. BadRequest for one that can't be."""
    asked = None if extension is None else _extended(extension)
    if isinstance(form, TextFormat):
        return asked
    if asked is not None:
        raise BadRequest(
            f"{param} and structured_outputs both say what the answer must look like; send one",
            "structured_outputs",
        )
    if isinstance(form, SchemaFormat):
        return _json(form.schema, f"{param}.schema")
    if isinstance(form, JsonSchemaFormat) and form.json_schema.schema is not None:
        return _json(form.json_schema.schema, f"{param}.json_schema.schema")
    return Shape(Constraint.json_object(), param)


def _extended(asked: StructuredOutputs) -> Shape | None:
    """BadRequest unless one field is given."""
    place = "structured_outputs"
    given = [name for name in asked.__struct_fields__ if getattr(asked, name) not in (None, False)]
    if len(given) != 1:
        raise BadRequest(
            f"{place} must have one of json, json_object, regex and choice, not "
            f"{' and '.join(given) or 'none'}",
            place,
        )
    if asked.json is not None:
        return _json(asked.json, f"{place}.json")
    if asked.regex is not None:
        return Shape(Constraint.regex(asked.regex), f"{place}.regex")
    if asked.choice is not None:
        return _named(lambda: Constraint.choice(asked.choice or []), f"{place}.choice")
    return Shape(Constraint.json_object(), f"{place}.json_object")


def _json(schema: dict[str, Any] | str, param: str) -> Shape:
    return _named(lambda: Constraint.json_schema(schema), param)


def _named(make: Any, param: str) -> Shape:
    try:
        return Shape(make(), param)
    except RequestError as error:
        raise BadRequest(str(error), param) from None
