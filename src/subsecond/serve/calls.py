"""The calls of one text, as answers count them: their ids, their places, their arguments so far.

Owns: the ids. Does not know: how answers are written, HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from subsecond.serve.schema.chat import DeltaToolCall
from subsecond.text.tool_calls import CallBegun, Part, Said, Syntax, ToolCalls


@dataclass
class Call:
    """A call. parts: of its arguments, JSON as the model wrote it."""

    id: str
    name: str
    parts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The arguments so far."""
        return "".join(self.parts)


class CallsOfText:
    """Reads one text. unique: hexadecimal digits that no other text has, of which ids are made."""

    def __init__(self, syntax: Syntax, unique: str) -> None:
        self.calls: list[Call] = []
        self._reader = ToolCalls(syntax)
        self._unique = unique
        self._id_characters = syntax.id_characters

    def push(self, text: str) -> tuple[str, list[DeltaToolCall]]:
        """(text that is no call, what is added to calls) of a piece."""
        return self._taken(self._reader.push(text))

    def finish(self) -> tuple[str, list[DeltaToolCall]]:
        """The same of what was held, once no more comes."""
        return self._taken(self._reader.finish())

    def _taken(self, parts: list[Part]) -> tuple[str, list[DeltaToolCall]]:
        said, deltas = list[str](), list[DeltaToolCall]()
        for part in parts:
            if isinstance(part, Said):
                said.append(part.text)
            elif isinstance(part, CallBegun):
                call = Call(self._id(), part.name)
                self.calls.append(call)
                function = {"name": call.name, "arguments": ""}
                deltas.append(DeltaToolCall(len(self.calls) - 1, call.id, "function", function))
            else:
                self.calls[-1].parts.append(part.text)
                place = len(self.calls) - 1
                deltas.append(DeltaToolCall(place, function={"arguments": part.text}))
        return "".join(said), deltas

    def _id(self) -> str:
        """OpenAI's ids have a word before them; some templates want so many characters, no more."""
        unique = f"{self._unique}{len(self.calls):02x}"
        if self._id_characters is not None:
            return unique[-self._id_characters :]
        return f"call_{unique}"


class CallsOfTexts(dict[int, CallsOfText]):
    """By the place of the text in the answer; made when it is first asked for. id: the answer's,
    hexadecimal digits.
    """

    def __init__(self, syntax: Syntax, id: str) -> None:
        super().__init__()
        self._syntax = syntax
        self._id = id

    def __missing__(self, index: int) -> CallsOfText:
        made = self[index] = CallsOfText(self._syntax, f"{self._id[:18]}{index:02x}")
        return made
