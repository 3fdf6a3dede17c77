"""Calls in texts: the known forms, however the text is cut into pieces."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest

from subsecond.text.tool_calls import (
    HERMES,
    LLAMA3_JSON,
    MAX_CALL_CHARACTERS,
    MAX_HEADER_CHARACTERS,
    MISTRAL,
    Argued,
    CallBegun,
    Said,
    Syntax,
    ToolCalls,
    syntax_of,
)

ARGUMENTS = '{"a": [1, {"b": "}]\\"{ </tool_call> ]"}], "c": "été"}'


def read(syntax: Syntax, text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """(content, calls) of a text in pieces."""
    parser, said, calls = ToolCalls(syntax), "", list[tuple[str, str]]()
    places = [0, *sorted(cuts), len(text)]
    parts = [part for begin, end in pairwise(places) for part in parser.push(text[begin:end])]
    for part in [*parts, *parser.finish()]:
        if isinstance(part, Said):
            said += part.text
        elif isinstance(part, CallBegun):
            calls.append((part.name, ""))
        else:
            assert isinstance(part, Argued)
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
    assert parser.calls == len(calls)
    return said, calls


def one(name: str = "f", key: str = "arguments", arguments: str = ARGUMENTS) -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


PLAIN = '{"a": 1}'
CASES: dict[str, tuple[Syntax, str, str, list[tuple[str, str]]]] = {
    "text": (HERMES, "Hello < <tool tool_call>\n", "Hello < <tool tool_call>\n", []),
    "one": (HERMES, f"<tool_call>\n{one()}\n</tool_call>", "", [("f", ARGUMENTS)]),
    "text before": (
        HERMES,
        f"I look.\n\n<tool_call>\n{one()}\n</tool_call>\n",
        "I look.",
        [("f", ARGUMENTS)],
    ),
    "two": (
        HERMES,
        f"<tool_call>{one(arguments=PLAIN)}</tool_call>\n<tool_call>\n{one('g')}\n</tool_call>",
        "",
        [("f", PLAIN), ("g", ARGUMENTS)],
    ),
    "text after": (
        HERMES,
        f"<tool_call>\n{one(arguments=PLAIN)}\n</tool_call>\nDone.",
        "\nDone.",
        [("f", PLAIN)],
    ),
    "other order": (
        HERMES,
        '<tool_call>{"arguments": {"a":1}, "name": "f"}</tool_call>',
        "",
        [("f", '{"a":1}')],
    ),
    "arguments as a text": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": "{\\"a\\":1}"}</tool_call>',
        "",
        [("f", '{"a":1}')],
    ),
    "no arguments": (HERMES, '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    "no call": (
        HERMES,
        "a <tool_call>what?</tool_call> b",
        "a<tool_call>what?</tool_call> b",
        [],
    ),
    "cut in the head": (HERMES, 'x <tool_call>{"name": "f', 'x<tool_call>{"name": "f', []),
    "cut in the arguments": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {"a": "b',
        "",
        [("f", '{"a": "b')],
    ),
    "cut before the end": (HERMES, f"<tool_call>{one(arguments=PLAIN)}", "", [("f", PLAIN)]),
    "escaped name": (
        HERMES,
        '<tool_call>{"name": "\\u0066", "arguments": {}}</tool_call>',
        "",
        [("f", "{}")],
    ),
    "llama": (LLAMA3_JSON, one(key="parameters"), "", [("f", ARGUMENTS)]),
    "llama with its tag": (
        LLAMA3_JSON,
        f"<|python_tag|>{one(key='parameters')}",
        "",
        [("f", ARGUMENTS)],
    ),
    "llama, two": (
        LLAMA3_JSON,
        f"{one('f', 'parameters', PLAIN)}; {one('g', 'parameters')}",
        "",
        [("f", PLAIN), ("g", ARGUMENTS)],
    ),
    "llama, text": (LLAMA3_JSON, "  It is { 4 }. <|py", "  It is { 4 }. <|py", []),
    "llama, other JSON": (LLAMA3_JSON, '{"answer": 4}', '{"answer": 4}', []),
    "llama, long other JSON": (LLAMA3_JSON, '{"x": "' + "y" * 3000, '{"x": "' + "y" * 3000, []),
    "mistral": (MISTRAL, f"[TOOL_CALLS] [{one()}]", "", [("f", ARGUMENTS)]),
    "mistral, two": (
        MISTRAL,
        f"Well. [TOOL_CALLS][{one('f', arguments=PLAIN)}, {one('g')}]",
        "Well.",
        [("f", PLAIN), ("g", ARGUMENTS)],
    ),
    "mistral, text": (MISTRAL, "a [TOOL] [b] ", "a [TOOL] [b] ", []),
}


@pytest.mark.parametrize("name", CASES)
def test_calls_are_found_however_the_text_is_cut(name: str) -> None:
    syntax, text, said, calls = CASES[name]
    assert read(syntax, text, []) == (said, calls)
    assert read(syntax, text, list(range(1, len(text)))) == (said, calls)
    source = random.Random(name)
    for _ in range(40):
        cuts = [source.randrange(len(text)) for _ in range(source.randrange(6))]
        assert read(syntax, text, cuts) == (said, calls), cuts


def test_a_name_comes_before_its_arguments_end() -> None:
    parser = ToolCalls(HERMES)
    assert parser.push('Hm. <tool_call>\n{"name": "f", "argu') == [Said("Hm.")]
    assert parser.push('ments": {"a"') == [CallBegun("f"), Argued('{"a"')]
    assert parser.push(": 1}") == [Argued(": 1}")]
    assert parser.push("}\n</tool_call>") == []
    assert parser.finish() == []


@pytest.mark.parametrize("name", ["get\\_weather", "\\ud800"])
@pytest.mark.parametrize("end", ["</tool_call>", ""])
def test_a_name_that_is_no_json_is_text(name: str, end: str) -> None:
    text = f'<tool_call>{{"name": "{name}", "arguments": {{"a": 1}}}}{end}'
    assert read(HERMES, text, []) == (text, [])


def test_what_is_too_long_for_a_call_is_text_at_once() -> None:
    """Whatever the form; what follows is read on, so that a later call is found."""
    long = '{"name": "' + "x" * (MAX_HEADER_CHARACTERS + 50)
    for syntax in (HERMES, MISTRAL):
        parser = ToolCalls(syntax)
        assert parser.push(syntax.begin + long) == [Said(syntax.begin + long)]
        assert parser.push(" more") == [Said(" more")]
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    text = f"<tool_call>{long}\n{call}"
    for cut in (0, 500, len(long) - 3):
        assert read(HERMES, text, [cut]) == (f"<tool_call>{long}", [("f", "{}")])


@pytest.mark.parametrize("size", [10, 4000])
def test_a_call_whose_arguments_come_first_is_waited_for(size: int) -> None:
    arguments = json.dumps({"a": "x" * size}, separators=(",", ":"))
    text = f'<tool_call>{{"arguments": {arguments}, "name": "f"}}</tool_call>'
    cuts = list(range(0, len(text), 97))
    assert read(HERMES, text, cuts) == ("", [("f", arguments)])
    endless = '<tool_call>{"arguments": {"a": "' + "x" * MAX_CALL_CHARACTERS
    assert read(HERMES, endless + " after", [len(endless)]) == (endless + " after", [])


@pytest.mark.parametrize("cut", range(0, 90, 3))
def test_a_call_without_its_end_loses_nothing_that_follows(cut: int) -> None:
    first = '<tool_call>{"name": "f", "arguments": {}}\n'
    second = '<tool_call>{"name": "g", "arguments": {"a": 1}}</tool_call>'
    assert read(HERMES, first + second, [cut]) == ("", [("f", "{}"), ("g", '{"a": 1}')])
    assert (
        read(HERMES, first + "And <b>prose</b>.", [min(cut, 50)])[0].strip() == "And <b>prose</b>."
    )


def test_text_is_held_only_while_it_may_be_a_mark() -> None:
    parser = ToolCalls(HERMES)
    assert parser.push("a <tool_c") == [Said("a")]
    assert parser.push("at>") == [Said(" <tool_cat>")]
    assert parser.push("b") == [Said("b")]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_of_any_text(seed: int) -> None:
    """Of texts without a call, all is shown, white space before a mark apart."""
    source = random.Random(seed)
    parts = ["<tool_call>", "</tool_call>", "{", "}", '"name"', " x ", "[TOOL_CALLS]", "[", ";"]
    text = "".join(source.choice(parts) for _ in range(source.randrange(30)))
    for syntax in (HERMES, LLAMA3_JSON, MISTRAL):
        said, calls = read(syntax, text, [])
        assert not calls
        assert said.replace(" ", "") == text.replace(" ", "")


def test_the_form_of_a_template() -> None:
    assert syntax_of("... <tool_call>\n{...") is HERMES
    assert syntax_of("{{ '[TOOL_CALLS] [' }}") is MISTRAL
    assert syntax_of('Respond {"name": f, "parameters": dictionary of ...') is LLAMA3_JSON
    assert syntax_of("{{ '[TOOL_CALLS]' }}{{ '[ARGS]' }}") is None
    assert syntax_of("<tool_call><function=f>") is None
    assert syntax_of("{{ tools }}") is None
    assert json.loads(ARGUMENTS)
