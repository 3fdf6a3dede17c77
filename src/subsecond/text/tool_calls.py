"""Calls of functions in the text that a model writes, as it comes.

Owns: the known forms of calls, which of them a chat template speaks, and the way from pieces of
text to pieces of calls. Does not know: requests, tokens, what functions there are.

    hermes       <tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>, repeated (and Qwen)
    llama3_json  {"name": "f", "parameters": {...}}, the whole answer, after <|python_tag|> or not
    mistral      [TOOL_CALLS] [{"name": "f", "arguments": {...}}, ...]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

MAX_HEADER_CHARACTERS = 1024
"""Of a call, before its arguments begin."""
MAX_CALL_CHARACTERS = 32_768
"""Of a call whose arguments come before its name, which nobody can be told of until it is whole."""

_HEADER = re.compile(
    r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\\x00-\x1f]|\\.)*")\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_ARGUMENTS_FIRST = re.compile(r'\s*\{\s*"(?:arguments|parameters)"')
_SPACES = " \t\r\n"


@dataclass(frozen=True)
class Syntax:
    """A form of calls. begin: what comes before them, "" where nothing has to; end: what comes
    after each, "" where nothing does. key: of the arguments. id_characters: of a call's id, where
    the template wants a certain number.
    """

    name: Literal["hermes", "llama3_json", "mistral"]
    begin: str
    end: str
    key: Literal["arguments", "parameters"]
    id_characters: int | None = None


HERMES = Syntax("hermes", "<tool_call>", "</tool_call>", "arguments")
LLAMA3_JSON = Syntax("llama3_json", "<|python_tag|>", "", "parameters")
MISTRAL = Syntax("mistral", "[TOOL_CALLS]", "", "arguments", 9)


def syntax_of(template: str) -> Syntax | None:
    """The form of calls that a chat template speaks; None for one that isn't known."""
    if "<tool_call>" in template and "<function=" not in template:
        return HERMES
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return MISTRAL
    if '"parameters": dictionary' in template or "<|python_tag|>" in template:
        return LLAMA3_JSON
    return None


@dataclass(frozen=True)
class Said:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """A call of a function begins."""

    name: str


@dataclass(frozen=True)
class Argued:
    """What is added to the arguments of the call that began last: JSON as the model writes it."""

    text: str


Part: TypeAlias = Said | CallBegun | Argued


class ToolCalls:
    """One text in the making: takes pieces, gives parts. calls: how many have begun.

    What looks like a call and turns out to be none is text, with its marks. A call whose name is
    known is given at once, and its arguments as they come; what breaks off in them has broken off
    in the answer.
    """

    def __init__(self, syntax: Syntax) -> None:
        self.calls = 0
        self._syntax = syntax
        self._held = ""
        self._mark = ""  # of the call that is being read
        self._state = "start" if syntax.name == "llama3_json" else "text"
        self._depth = 0
        self._string = self._escaped = False

    def push(self, text: str) -> list[Part]:
        """The parts that this piece completes."""
        self._held += text
        parts: list[Part] = []
        while True:
            before = (self._state, len(self._held))
            getattr(self, f"_{self._state}")(parts)
            if before == (self._state, len(self._held)):
                return _joined(parts)

    def finish(self) -> list[Part]:
        """The parts that are left when no more text comes."""
        parts: list[Part] = []
        if self._state == "call" and not self._whole(self._held, parts):
            self._say(self._mark + self._held, parts)
        elif self._state in ("text", "start", "rest") and (not self.calls or self._held.strip()):
            self._say(self._held, parts)
        self._held, self._state = "", "text"
        return _joined(parts)

    # States: each takes what it can from what is held.

    def _start(self, parts: list[Part]) -> None:
        """Of an answer that is a call as a whole, or none."""
        text, begin = self._held.lstrip(), self._syntax.begin
        if text.startswith(begin):
            self._held, self._mark, self._state = text[len(begin) :], begin, "call"
        elif text.startswith("{"):
            self._mark, self._state = "", "call"
        elif text and not begin.startswith(text):
            self._state = "rest"

    def _text(self, parts: list[Part]) -> None:
        """Up to the mark of a call; white space before it isn't shown."""
        begin = self._syntax.begin
        place = self._held.find(begin)
        if place >= 0:
            self._say(self._held[:place].rstrip(_SPACES), parts)
            self._held = self._held[place + len(begin) :]
            self._mark, self._state = begin, "call"
            return
        keep = len(self._held) - _beginning(self._held, begin)
        keep = len(self._held[:keep].rstrip(_SPACES))
        self._say(self._held[:keep], parts)
        self._held = self._held[keep:]

    def _rest(self, parts: list[Part]) -> None:
        """Text that no call can follow."""
        self._say(self._held, parts)
        self._held = ""

    def _call(self, parts: list[Part]) -> None:
        """Up to the arguments."""
        if self._syntax.name == "mistral" and self._held.lstrip().startswith("["):
            self._mark += self._held[: self._held.index("[") + 1]
            self._held = self._held[self._held.index("[") + 1 :]
        found = _HEADER.match(self._held)
        if found is not None and found.end() > MAX_HEADER_CHARACTERS:
            found = None
        name = None if found is None else _decoded(found["name"])
        if found is not None and name is not None:
            self._begin(name, parts)
            self._held = self._held[found.end() :]
            self._state, self._depth, self._string, self._escaped = "arguments", 0, False, False
            return
        end = self._syntax.end
        place = self._held.find(end) if end else -1
        # However the text is cut: an end mark of which a part is held may still begin in time.
        length = place if place >= 0 else len(self._held) - max(0, len(end) - 1)
        if length > self._most_characters():
            self._say(self._mark, parts)
            self._state = "text" if end else "rest"
        elif place >= 0:
            if not self._whole(self._held[:place], parts):
                self._say(self._mark + self._held[: place + len(end)], parts)
            self._held, self._state = self._held[place + len(end) :], "text"

    def _most_characters(self) -> int:
        """What is longer, and no call by then, is none."""
        return MAX_CALL_CHARACTERS if _ARGUMENTS_FIRST.match(self._held) else MAX_HEADER_CHARACTERS

    def _arguments(self, parts: list[Part]) -> None:
        """Up to the bracket that closes them."""
        for place, character in enumerate(self._held):
            if self._string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._string = False
            elif character == '"':
                self._string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    parts.append(Argued(self._held[: place + 1]))
                    self._held, self._state = self._held[place + 1 :], "after"
                    return
        if self._held:
            parts.append(Argued(self._held))
            self._held = ""

    def _after(self, parts: list[Part]) -> None:
        """Behind the arguments: the call's own end, or another call."""
        end = self._syntax.end
        if end:
            self._held = self._held.lstrip(_SPACES + "}")
            if self._held and not end.startswith(self._held):  # else more of it may come
                self._held, self._state = self._held.removeprefix(end), "text"
            elif self._held == end:
                self._held, self._state = "", "text"
            return
        text = self._held.lstrip(_SPACES + "}")
        separator = "," if self._syntax.name == "mistral" else ";"
        if text.startswith(separator):
            self._held, self._mark, self._state = text[1:], separator, "call"
        elif text:
            self._held, self._state = text.removeprefix("]"), "rest"

    def _whole(self, text: str, parts: list[Part]) -> bool:
        """Takes a call that is complete and not written in the usual order; whether it is one."""
        try:
            call: Any = msgspec.json.decode(text.strip(_SPACES + ",;"))
        except (msgspec.DecodeError, RecursionError):
            return False
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return False
        given = call.get("arguments", call.get("parameters", {}))
        if not isinstance(given, str):
            given = msgspec.json.encode({} if given is None else given).decode()
        self._begin(call["name"], parts)
        parts.append(Argued(given))
        return True

    def _begin(self, name: str, parts: list[Part]) -> None:
        self.calls += 1
        parts.append(CallBegun(name))

    def _say(self, text: str, parts: list[Part]) -> None:
        if text:
            parts.append(Said(text))


def _beginning(text: str, mark: str) -> int:
    """Characters at the end of `text` that may be the beginning of `mark`."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours of one kind as one."""
    own: list[Part] = []
    for part in parts:
        last = own[-1] if own else None
        if isinstance(part, Said) and isinstance(last, Said):
            own[-1] = Said(last.text + part.text)
        elif isinstance(part, Argued) and isinstance(last, Argued):
            own[-1] = Argued(last.text + part.text)
        else:
            own.append(part)
    return own


def _decoded(quoted: str) -> str | None:
    """A JSON string's text; None for an escape that JSON doesn't have."""
    try:
        return msgspec.json.decode(quoted, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
