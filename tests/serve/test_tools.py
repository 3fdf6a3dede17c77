"""The grammar of calls: whatever a model writes under it is read as calls that fit."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from bodies import read

from subsecond.engine.constraint_state import ConstraintState, Grammars, Vocabulary
from subsecond.serve.calls import CallsOfText
from subsecond.serve.errors import BadRequest, UnsupportedValue
from subsecond.serve.tools import MAX_CALLS, Marked, ToolUse, plan
from subsecond.text.tool_calls import HERMES, LLAMA3_JSON, MISTRAL, Syntax

STOP, MARK = 256, 257
TOKENS = [*(bytes([byte]) for byte in range(256)), b"", b"", b"<tool_call>", b'{"name": "']
FUNCTION = {
    "name": "set-it",
    "parameters": {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "of": {"enum": ["a", 'b"}']}},
        "required": ["on"],
        "additionalProperties": False,
    },
}
TOOLS = [
    {"type": "function", "function": FUNCTION},
    {"type": "function", "function": {"name": "stop"}},
]


def side(syntax: Syntax | None, control: dict[str, int] | None = None, takes: bool = True) -> Any:
    tokenizer = SimpleNamespace(
        control_tokens=control or {}, token_bytes=lambda id: TOKENS[id] if id < len(TOKENS) else b""
    )
    template = SimpleNamespace(takes_tools=takes)
    return SimpleNamespace(tokenizer=tokenizer, template=template, tool_syntax=syntax)


def asked(**fields: Any) -> Any:
    return read("chat", tools=TOOLS, **fields)


def written(
    request: Any, use: ToolUse, seed: int, most: int, push: Sequence[int] = ()
) -> tuple[str, CallsOfText, bool]:
    """(text beside the calls, the calls, whether it ended) of a text that was drawn from what is
    allowed, begun with `push`.
    """
    grammars = Grammars(Vocabulary(TOKENS, control_ids=[MARK], stop_ids=[STOP]))
    state: ConstraintState = grammars.compile(request.params.constraint).start()
    source, tokens = random.Random(seed), list(push)
    for token in push:
        state.accept(token)
    assert state.error is None
    ended = False
    while len(tokens) < most and not ended:
        bits = state.mask()
        choices = [id for id in range(len(TOKENS)) if bits[id >> 3] >> (id & 7) & 1]
        plain = [id for id in choices if id < 256 and chr(id).isascii() and chr(id).isprintable()]
        token = source.choice([id for id in choices if id >= 256] + plain or choices)
        ended = token == STOP
        if not ended:
            state.accept(token)
            tokens.append(token)
            ended = state.complete
    if not ended:
        tokens += state.closing(256) or []
    assert use.syntax is not None
    tokenizer: Any = SimpleNamespace(token_bytes=TOKENS.__getitem__)
    shown = Marked(tokenizer, use.marks)
    calls = CallsOfText(use.syntax, "abcdef0123456789abcd")
    said = "".join(calls.push(shown.token_bytes(token).decode("latin-1"))[0] for token in tokens)
    return said + calls.finish()[0], calls, ended


def check(calls: CallsOfText) -> None:
    for call in calls.calls:
        value = json.loads(call.arguments)
        assert call.name in ("set-it", "stop")
        if call.name == "set-it":
            assert isinstance(value["on"], bool) and value.get("of", "a") in ("a", 'b"}')
            assert set(value) <= {"on", "of"}


FORMS: list[tuple[Syntax, dict[str, int]]] = [
    (HERMES, {}),
    (HERMES, {"<tool_call>": MARK}),
    (MISTRAL, {}),
    (MISTRAL, {"[TOOL_CALLS]": MARK}),
    (LLAMA3_JSON, {}),
]


@pytest.mark.parametrize(("syntax", "control"), FORMS)
def test_required_calls_are_all_there_is(syntax: Syntax, control: dict[str, int]) -> None:
    for parallel in (None, False):
        fields = {} if parallel is None else {"parallel_tool_calls": parallel}
        request, use = plan(side(syntax, control), asked(tool_choice="required", **fields))
        assert request.constraint_param == "tools" and request.params.constraint.check()
        for seed in range(6):
            said, calls, _ = written(request, use, seed, 400)
            assert said == ""
            assert 1 <= len(calls.calls) <= (1 if parallel is False else MAX_CALLS)
            check(calls)
            assert len({call.id for call in calls.calls}) == len(calls.calls)
            if syntax is MISTRAL:
                assert all(len(call.id) == 9 and call.id.isalnum() for call in calls.calls)


@pytest.mark.parametrize(("syntax", "control"), FORMS[:4])
def test_what_follows_a_mark_is_a_call(syntax: Syntax, control: dict[str, int]) -> None:
    request, use = plan(side(syntax, control), asked())
    mark = [MARK] if control else list(syntax.begin.encode())
    for seed in range(8):
        _, calls, _ = written(request, use, seed, 300)
        check(calls)
        said, calls, _ = written(request, use, seed, 300, [*b"Well. ", *mark])
        assert said.startswith("Well.") and calls.calls
        check(calls)


def test_a_named_function_is_the_only_one() -> None:
    choice = {"type": "function", "function": {"name": "stop"}}
    request, use = plan(side(HERMES), asked(tool_choice=choice))
    for seed in range(4):
        _, calls, _ = written(request, use, seed, 200)
        assert {call.name for call in calls.calls} == {"stop"}


def test_where_anything_may_be_written_nothing_is_constrained() -> None:
    request, use = plan(side(LLAMA3_JSON), asked())
    assert request.params.constraint is None and use.syntax is LLAMA3_JSON
    request, use = plan(side(None, takes=False), asked(tool_choice="none"))
    assert use == ToolUse()


def test_marks_are_shown_to_whoever_reads_calls() -> None:
    _, use = plan(side(MISTRAL, {"[TOOL_CALLS]": MARK}), asked())
    assert use.marks == {MARK: b"[TOOL_CALLS]"}


def test_refusals() -> None:
    with pytest.raises(UnsupportedValue) as caught:
        plan(side(HERMES, takes=False), asked())
    assert caught.value.param == "tools"
    with pytest.raises(UnsupportedValue) as caught:
        plan(side(None), asked())
    assert caught.value.param == "tools"
    with pytest.raises(UnsupportedValue) as caught:
        plan(side(HERMES), asked(structured_outputs={"regex": "a"}))
    assert caught.value.param == "structured_outputs.regex"
    huge = {"enum": ["x" * 100_000]}
    many = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": huge}} for i in range(3)
    ]
    with pytest.raises(BadRequest) as refused:
        plan(side(HERMES), read("chat", tools=many, tool_choice="required"))
    assert refused.value.param == "tools"
    strict = [
        {"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}
    ]
    with pytest.raises(BadRequest) as refused:
        plan(side(HERMES), read("chat", tools=strict))
    assert refused.value.param == "tools[0].function.parameters"
    flat = [{"type": "function", "name": "f", "parameters": {"not": {}}, "strict": True}]
    with pytest.raises(BadRequest) as refused:
        plan(side(HERMES), read("responses", tools=flat))
    assert refused.value.param == "tools[0].parameters"
