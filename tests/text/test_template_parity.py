"""Chat templates render as transformers renders them, on the templates of well-known families."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from subsecond.errors import TextError
from subsecond.text.template import ChatTemplate

utils = pytest.importorskip("transformers.utils.chat_template_utils")
pytestmark = pytest.mark.parity

FOLDER = Path(__file__).parent / "templates"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The "weather" — 天气, <now> & later',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL: dict[str, Any] = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3}},
}
SYSTEM = {"role": "system", "content": " Be brief.\n"}
USER = {"role": "user", "content": "  What is\n\nthe weather? 🌦 "}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt rains.  "}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, {"role": "user", "content": "And <b>tomorrow</b>?"}],
    "answered": [USER, ANSWER],
    "twice": [USER, USER],
    "called": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "rain, 9 °C"},
    ],
    "results": [
        SYSTEM,
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": {"sky": "grey"}},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": " a "}]}],
    "reasoned": [USER, {**ANSWER, "content": "Rain.", "reasoning_content": "clouds\n"}, USER],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "closed": {"add_generation_prompt": False},
    "tools": {"tools": [TOOL, TOOL]},
    "documents": {"documents": [{"title": "T", "text": "a\nbé"}, {"text": "c"}]},
    "thinking": {"variables": {"enable_thinking": False}},
    "dated": {"variables": {"date_string": "1 Jan 2025", "tools_in_user_message": False}},
    "continued": {"add_generation_prompt": False, "continue_final_message": True},
}


class Rendered:
    """A tokenizer that shows what it is given."""

    @staticmethod
    def split_control(text: str, mask: bytes) -> list[str]:
        assert len(mask) == len(text)
        return [text]

    @staticmethod
    def encode_segments(segments: list[str]) -> str:
        return "".join(segments)


def theirs(source: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> str | None:
    """transformers' text, None where it refuses."""
    given = {"add_generation_prompt": True, **options}
    variables = given.pop("variables", {})
    try:
        rendered, _ = utils.render_jinja_template(
            [messages], chat_template=source, **given, **variables, **SPECIAL
        )
    except Exception:  # the template's own errors, and Python's inside it
        return None
    return str(rendered[0])


NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))


@pytest.mark.parametrize("name", NAMES)
def test_a_template_renders_as_in_transformers(name: str) -> None:
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source, SPECIAL)
    equal = 0
    for case in itertools.product(CONVERSATIONS, OPTIONS):
        messages, options = CONVERSATIONS[case[0]], OPTIONS[case[1]]
        expected = theirs(source, messages, options)
        try:
            ours: Any = template.encode(Rendered, messages, **options)  # type: ignore[arg-type]
        except TextError as error:
            unknown = any(part in str(error) for part in ("doesn't", "no place", "changes"))
            assert expected is None or unknown, (case, str(error))
            continue
        if case[0] == "parts" and not template._takes_parts[1]:
            # transformers writes the list into the text, or leaves it out
            joined = [{**message, "content": " a "} for message in messages]
            expected = theirs(source, joined, options)
        assert ours == expected, case
        equal += 1
    assert equal >= 6


def test_there_are_enough_templates() -> None:
    assert len(NAMES) >= 12
