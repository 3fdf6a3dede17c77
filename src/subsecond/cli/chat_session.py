"""A chat's lines: messages that are answered, and /commands.

Owns: the commands, the words of a full context, and which lines failed. Does not know: where lines
come from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from subsecond.cli import console
from subsecond.errors import InputError, RequestError, SubsecondError
from subsecond.tasks.chat import Chat
from subsecond.tasks.generate import LLM

MAX_SAVED_BYTES = 16 << 20


class Session:
    """Takes lines. An error ends the line, not the chat; `failed` is the exit code of the first.

    can_grow: whether the context was chosen, so that a larger one may be to be had.
    """

    def __init__(self, chat: Chat, llm: LLM, *, can_grow: bool) -> None:
        self.chat = chat
        self.ended = False
        self.failed = 0
        self._llm = llm
        self._can_grow = can_grow
        self._stopped = False
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "this list"),
            "/reset": (self._reset, "forget all turns"),
            "/undo": (self._undo, "forget the last turn"),
            "/drop": (self._drop, "N: forget the oldest N turns (1), which makes room"),
            "/retry": (self._retry, "answer the last message again"),
            "/system": (
                self._system,
                "TEXT: set the instruction and forget all turns; without TEXT, drop it",
            ),
            "/history": (self._show, "show all turns"),
            "/save": (self._save, "FILE: write the conversation as JSON"),
            "/load": (self._load, "FILE: read a conversation"),
            "/quit": (self._quit, "end the chat (also /exit, Ctrl-D)"),
        }

    def take(self, line: str) -> None:
        """One line of input."""
        line = line.strip()
        if not line:
            return
        try:
            if line.startswith("/"):
                name, _, argument = line.partition(" ")
                self._command(name)(argument.strip())
            else:
                self._answer(line)
        except SubsecondError as error:
            self.refuse(error)

    def refuse(self, error: SubsecondError) -> None:
        """Reports what was wrong with a line."""
        self.failed = self.failed or error.exit_code
        console.note_error(str(error))

    def stop(self) -> None:
        """Ends the answer that is being given, which stays as far as it came. For signal
        handlers.
        """
        self._stopped = True
        self.chat.stop()

    def _command(self, name: str) -> Callable[[str], None]:
        found = self._commands.get("/quit" if name == "/exit" else name)
        if found is None:
            from subsecond.cli.parser import shown, suggestion

            near = suggestion(name, self._commands)
            raise InputError(f"unknown command {shown(name)}{near}; /help lists the commands")
        return found[0]

    def _answer(self, text: str) -> None:
        self._stopped = False
        before = [*self.chat.saved(), {"role": "user", "content": text}]
        try:
            pieces = self.chat.stream(text)
        except RequestError as error:
            raise self._no_room(before) or error from None
        tokens, reason = 0, None
        for piece in pieces:
            console.write(piece.text)
            tokens, reason = tokens + 1, piece.finish_reason
        console.write("\n")
        if self._stopped:
            console.note("[interrupted]" if tokens else "[interrupted; nothing was answered]")
        elif reason == "length" and len(self._llm.encode_chat(before)) + tokens >= self._context:
            console.note(f"[the context of {self._context} tokens is full; {self._way_out()}]")
        elif reason == "length":
            console.note("[stopped at --max-tokens]")

    @property
    def _context(self) -> int:
        return self._llm.context

    def _no_room(self, messages: list[dict[str, object]]) -> InputError | None:
        """The error of a conversation that doesn't fit the context; None if it does."""
        tokens = len(self._llm.encode_chat(messages))
        if tokens < self._context:
            return None
        alone = [messages[-1]] if self.chat.system is None else [messages[0], messages[-1]]
        own = len(self._llm.encode_chat(alone))
        if own >= self._context:
            more = " or start the chat with a larger --context" if self._can_grow else ""
            return InputError(
                f"the message alone has {own} tokens; with at least one to answer it doesn't fit "
                f"the context of {self._context}; shorten it{more}"
            )
        return InputError(
            f"the conversation has {tokens} tokens with this message; with at least one to answer "
            f"it doesn't fit the context of {self._context}; {self._way_out()}"
        )

    def _way_out(self) -> str:
        more = "; a larger --context holds more" if self._can_grow else ""
        return f"to make room, /drop forgets the oldest turn, /reset all turns{more}"

    def _help(self, _: str) -> None:
        for name, (_function, text) in self._commands.items():
            console.note(f"{name:9} {text}")

    def _reset(self, _: str) -> None:
        self.chat.reset()

    def _turns(self) -> list[int]:
        """Where each turn begins: at a message of the user."""
        return [i for i, message in enumerate(self.chat.messages) if message["role"] == "user"]

    def _undo(self, _: str) -> None:
        turns = self._turns()
        if not turns:
            raise InputError("there is no turn to forget")
        self.chat.messages = self.chat.messages[: turns[-1]]

    def _drop(self, argument: str) -> None:
        turns = self._turns()
        if not turns:
            raise InputError("there is no turn to forget")
        count = 1 if not argument else int(argument[:9]) if re.fullmatch("[0-9]+", argument) else 0
        if count < 1:
            raise InputError(f"/drop takes a number of turns from 1, not {argument[:60]!r}")
        self.chat.messages = self.chat.messages[turns[count] :] if count < len(turns) else []
        console.note(f"[{len(self._turns())} turns are left]")

    def _system(self, text: str) -> None:
        self.chat.reset()
        self.chat.system = text or None

    def _show(self, _: str) -> None:
        for message in self.chat.saved():
            console.write(f"{message['role']}: {message.get('content')}\n")

    def _retry(self, _: str) -> None:
        turns = self.chat.messages
        if len(turns) < 2 or turns[-2]["role"] != "user":
            raise InputError("there is no answer to try again")
        self.chat.messages = turns[:-2]
        try:
            self._answer(str(turns[-2]["content"]))
        finally:
            if len(self.chat.messages) == len(turns) - 2:  # no answer came: the old one stays
                self.chat.messages = turns

    def _save(self, name: str) -> None:
        if not name:
            raise InputError("/save needs a file name")
        try:
            Path(name).expanduser().write_text(
                json.dumps(self.chat.saved(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"can't write {name}: {_reason(error)}; give another file") from None

    def _load(self, name: str) -> None:
        if not name:
            raise InputError("/load needs a file name")
        try:
            with Path(name).expanduser().open("rb") as file:
                data = file.read(MAX_SAVED_BYTES + 1)
            if len(data) > MAX_SAVED_BYTES:
                raise InputError(f"{name} has more than {MAX_SAVED_BYTES} bytes")
            self.chat.load(json.loads(data))
        except (OSError, ValueError, RuntimeError) as error:  # RecursionError is a RuntimeError
            raise InputError(f"can't read {name}: {_reason(error)}; give a file of /save") from None

    def _quit(self, _: str) -> None:
        self.ended = True


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
