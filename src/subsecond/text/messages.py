"""Messages, tools and documents of a conversation: what they may be made of.

Owns: their shape, their bounds, OpenAI's content parts, and the strings inside them. Does not know:
templates, tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from subsecond.errors import TextError
from subsecond.text.tokenizer import check_text

Message = Mapping[str, Any]

MAX_DEPTH = 32
"""Nesting of lists and mappings inside a message or a tool."""

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_EXAMPLE = "[{'role': 'user', 'content': '...'}]"


def check_messages(messages: object) -> list[dict[str, Any]]:
    """The messages as plain lists and dicts.

    TextError, naming the message, unless each is a mapping with a role and a content: a text, parts
    of type "text" (`[{"type": "text", "text": ...}]`), or anything for the results of tools; an
    assistant's message may have `tool_calls` instead. All text must be valid Unicode.
    """
    if isinstance(messages, (str, Mapping)):
        raise TextError(
            f"messages must be a list, not one {type(messages).__name__}; write {_EXAMPLE}"
        )
    if not isinstance(messages, (list, tuple)):
        raise TextError(f"messages must be a list like {_EXAMPLE}, not {type(messages).__name__}")
    if not messages:
        raise TextError(f"messages is empty; give at least one, like {_EXAMPLE}")
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise TextError(f"{place} must be a mapping, not {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise TextError(f"{place}.role must be a name such as 'user', not {role!r:.60}")
        _check_content(message, place, role)
    return [dict(message) for message in plain(messages, "messages")]


def check_mappings(values: object, name: str) -> list[dict[str, Any]] | None:
    """Tools or documents as plain lists and dicts; TextError naming the entry otherwise."""
    if values is None:
        return None
    if not isinstance(values, (list, tuple)):
        raise TextError(f"{name} must be a list of mappings, not {type(values).__name__}")
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise TextError(f"{name}[{index}] must be a mapping, not {type(value).__name__}")
    return [dict(value) for value in plain(values, name)]


def plain(value: Any, place: str, depth: int = 0) -> Any:
    """The same of None, bool, int, float, str, dict and list alone; TextError naming the place.

    A template calls methods of what it is given, so nothing else may reach it.
    """
    if depth > MAX_DEPTH:
        raise TextError(f"{place.split('[', maxsplit=1)[0]}: nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(check_text(value, place))
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {
            plain(key, place, depth + 1): plain(item, f"{place}.{key!s:.40}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise TextError(
        f"{place} is a {type(value).__name__}; only texts, numbers, lists and mappings are accepted"
    )


def most_parts(messages: Sequence[Message]) -> int:
    """Parts of the content that has most of them; 0 if all contents are texts."""
    contents = [message.get("content") for message in messages]
    return max((len(content) for content in contents if _is_parts(content)), default=0)  # type: ignore[arg-type]


def joined(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with their text parts joined by line ends, as vLLM does for templates that take
    texts.
    """
    return [
        {**message, "content": "\n".join(part["text"] for part in message["content"])}
        if _is_parts(message.get("content"))
        else dict(message)
        for message in messages
    ]


def strings(value: Any) -> Iterator[str]:
    """Every string inside plain values, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same structure with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {mapped(key, change): mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return value


def unused_mark(texts: Sequence[str]) -> str:
    """A noncharacter, which no text should hold, that these texts indeed don't hold."""
    for mark in map(chr, range(0xFDD0, 0xFDF0)):
        if not any(mark in text for text in texts):
            return mark
    raise TextError("the messages hold every noncharacter from U+FDD0 to U+FDEF; remove them")


def _is_parts(content: object) -> bool:
    return (
        isinstance(content, (list, tuple))
        and bool(content)
        and all(isinstance(part, Mapping) and "type" in part for part in content)
    )


def _check_content(message: Message, place: str, role: str) -> None:
    """TextError unless the content is a text, parts of text, a tool's result, or rightly absent."""
    content = message.get("content")
    if isinstance(content, str):
        return
    if content is None:
        if not message.get("tool_calls"):
            raise TextError(f"{place} has no content; give a text")
        return
    if _is_parts(content):
        for index, part in enumerate(content):
            kind = part["type"]
            if kind != "text":
                raise TextError(
                    f"{place}.content[{index}] has the type {kind!r:.40}; this model reads only "
                    "text: give {'type': 'text', 'text': '...'}"
                )
            if not isinstance(part.get("text"), str):
                raise TextError(f"{place}.content[{index}] has no text")
    elif role not in ("tool", "ipython", "function") or not isinstance(
        content, (Mapping, list, tuple)
    ):
        raise TextError(
            f"{place}.content must be a text or a list of {{'type': 'text', 'text': '...'}}, not "
            f"{type(content).__name__}"
        )
