"""Functions that a model may ask for: what its template must know, and what its answer must be.

Owns: the refusal of models that don't know tools, the constraint that makes calls well-formed.
Does not know: HTTP, how calls are read out of a text (text.tool_calls).

With `tool_choice: "required"` or a function's name the answer is calls and nothing else. With
"auto" the model decides; where the form of its calls begins with a mark, what follows the mark is a
call. Arguments fit a function's `parameters` where llguidance can follow them; where it can't, that
is an error for a `strict` function, and for others they are some JSON object.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from subsecond.engine.constraint import JSON_OPTIONS, Constraint
from subsecond.errors import RequestError
from subsecond.serve.errors import BadRequest, UnsupportedValue
from subsecond.serve.schema.chat import Chat
from subsecond.serve.schema.responses import Respond
from subsecond.serve.schema.shared import Tool
from subsecond.serve.text_side import TextSide
from subsecond.text.tokenizer import Tokenizer
from subsecond.text.tool_calls import Syntax

MAX_CALLS = 16
"""Of one answer, where they are parallel and required."""

_ANY: dict[str, Any] = {"type": "object"}
_TEXT_REGEX = r"/(.|\n)*/"
_TEXT = f"TEXT: {_TEXT_REGEX}"
_NAME = '{"name": '
_LINE = "\n"

Request = TypeVar("Request", Chat, Respond)


@dataclass(frozen=True)
class ToolUse:
    """What a request with tools needs beside its prompt. syntax: of the calls to be read; None:
    nothing is a call. marks: what control tokens are shown as, for whoever reads the calls.
    """

    syntax: Syntax | None = None
    marks: Mapping[int, bytes] = dataclasses.field(default_factory=dict)


class Marked:
    """A tokenizer whose marks of calls are text."""

    def __init__(self, tokenizer: Tokenizer, marks: Mapping[int, bytes]) -> None:
        self._tokenizer = tokenizer
        self._marks = marks

    def token_bytes(self, token_id: int) -> bytes:
        """Of `text.stream.TokenBytes`."""
        return self._marks.get(token_id) or self._tokenizer.token_bytes(token_id)


def plan(text: TextSide, request: Request) -> tuple[Request, ToolUse]:
    """The request with the constraint that its tools ask for, and how its answer is read. Slow: it
    checks every schema. UnsupportedValue or BadRequest naming the field.
    """
    choice = request.tool_choice
    if not request.tools or choice.mode == "none":
        return request, ToolUse()
    syntax = syntax_for(text)
    if request.params.constraint is not None:
        raise UnsupportedValue(
            f"{request.constraint_param} is not supported together with tools; leave one of them "
            'out, or send tool_choice "none"',
            request.constraint_param,
        )
    marks = {
        text.tokenizer.control_tokens[mark]: mark.encode()
        for mark in (syntax.begin, syntax.end)
        if mark in text.tokenizer.control_tokens
    }
    chosen = [own for own in request.tools if choice.name in (None, own.name)]
    followed, closable = [], True
    for own in chosen:
        schema, closes = _followed(own, f"tools[{request.tools.index(own)}]", request)
        followed.append((own, schema))
        closable = closable and closes
    value = _grammar(syntax, text.tokenizer, followed, choice.mode, parallel=choice.parallel)
    if value is None:
        return request, ToolUse(syntax, marks)
    try:
        constraint = Constraint("grammar", value, closable)
    except RequestError as error:
        raise BadRequest(str(error), "tools") from None
    params = dataclasses.replace(request.params, constraint=constraint)
    request = msgspec.structs.replace(request, params=params, constraint_param="tools")
    return request, ToolUse(syntax, marks)


def syntax_for(text: TextSide) -> Syntax:
    """The form of a model's calls; UnsupportedValue if its template has no tools, or none that are
    known here.
    """
    if text.template is None or not text.template.takes_tools:
        raise UnsupportedValue(
            "the model's chat template doesn't take tools; describe them in a message, or use "
            "another model",
            "tools",
        )
    if text.tool_syntax is None:
        raise UnsupportedValue(
            "the model's chat template writes calls in a form that isn't known here; known are "
            "Hermes' and Qwen's, Llama 3's JSON, and Mistral's",
            "tools",
        )
    return text.tool_syntax


def _followed(own: Tool, place: str, request: Chat | Respond) -> tuple[dict[str, Any], bool]:
    """The schema that the arguments will fit, and whether they can be closed in a moment."""
    param = f"{place}.function.parameters" if isinstance(request, Chat) else f"{place}.parameters"
    try:
        return own.parameters, Constraint.json_schema(own.parameters).check()
    except RequestError as error:
        if own.strict:
            raise BadRequest(str(error), param) from None
        return _ANY, True


def _grammar(
    syntax: Syntax,
    tokenizer: Tokenizer,
    tools: list[tuple[Tool, dict[str, Any]]],
    mode: str,
    *,
    parallel: bool,
) -> str | None:
    """In llguidance's dialect of Lark; None where anything may be written."""
    begin, end = _mark(syntax.begin, tokenizer), _mark(syntax.end, tokenizer)
    names = " | ".join(f"f{index}" for index in range(len(tools)))
    functions = [
        f"f{index}: {_text(_json(own.name) + f', {_json(syntax.key)}: ')} "
        f"%json {_json({**schema, 'x-guidance': JSON_OPTIONS})}"
        for index, (own, schema) in enumerate(tools)
    ]
    call = f"{_text(_NAME)} ({names}) {_text('}')}"
    more = f"{{0,{MAX_CALLS - 1}}}"
    rules: list[str] = []
    if syntax.name == "llama3_json":
        if mode == "auto":
            return None  # any JSON may be the answer itself
        rules = [f"start: {call}"]
    elif syntax.name == "hermes":
        one = f"{_text(_LINE)} {call} {_text(_LINE)} {end}"
        rules = [f"call: {one}"]
        if mode == "required":
            rules.append(
                f"start: {begin} call" + (f" ({_text(_LINE)} {begin} call){more}" * parallel)
            )
        else:
            rules += _led(begin, "call", parallel=parallel)
    else:
        others = f"({_text(', ')} call){more}" if parallel else ""
        rules = [f"call: {call}", f"list: {_text(' ')}? {_text('[')} call {others} {_text(']')}"]
        rules += [f"start: {begin} list"] if mode == "required" else _led(begin, "list")
    return "\n".join(["%llguidance {}", *rules, *functions])


def _led(begin: str, call: str, *, parallel: bool = False) -> list[str]:
    """Any text, and behind each mark a call."""
    if begin.startswith("<["):  # a control token is in no text
        return [f"start: (TEXT {begin} {call}){'*' if parallel else '?'} TEXT", _TEXT]
    start = f"(lead {call})* rest" if parallel else f"lead {call} | rest"
    # A lazy lexeme ends as soon as it can: at the mark.
    return [f"start: {start}", f"lead[lazy]: {_TEXT_REGEX} {begin}", "rest: TEXT", _TEXT]


def _mark(mark: str, tokenizer: Tokenizer) -> str:
    """A control token by its id, other text as it is."""
    id = tokenizer.control_tokens.get(mark)
    return json.dumps(mark) if id is None else f"<[{id}]>"


def _json(value: Any) -> str:
    return json.dumps(value)


def _text(text: str) -> str:
    """A text of the grammar."""
    return json.dumps(text)
