"""`subsecond chat`: several turns on a terminal or from a pipe, with /commands and a history."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from subsecond.cli import console
from subsecond.cli.options import ANSWER_TOKENS, model_given, sampling_given
from subsecond.cli.options import Chat as Options
from subsecond.errors import InputError, SubsecondError
from subsecond.formats import cache
from subsecond.formats.progress import TerminalProgress
from subsecond.tasks.chat import Chat
from subsecond.tasks.generate import LLM

HISTORY_LINES = 1000
MAX_SAVED_BYTES = 16 << 20


def run(options: Options) -> int:
    """Exit code 0 at the end of input or after /exit."""
    if sys.stdin is None:  # the process was started without one
        raise InputError("standard input is closed; chat reads its messages from it")
    with TerminalProgress() as progress:
        llm = LLM(**model_given(options), max_sequences=1, progress=progress)
    with llm, _history():
        params = replace(llm.default_params, **sampling_given(options))
        session = Session(
            Chat(llm, system=options.system, params=params, answer_tokens=ANSWER_TOKENS)
        )
        if sys.stdin.isatty():
            console.note(
                f"{options.model}; /help lists the commands, Ctrl-C ends an answer, Ctrl-D the chat"
            )
        while not session.ended:
            try:
                line = input("> " if sys.stdin.isatty() else "")
            except EOFError:
                break
            except UnicodeDecodeError as error:
                raise InputError(
                    f"standard input is not valid UTF-8 (byte {error.start} of a line)"
                ) from None
            session.take(line)
    return 0


class Session:
    """Takes lines: messages and /commands. An error ends the line, not the chat."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.ended = False
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "this list"),
            "/reset": (self._reset, "forget all turns"),
            "/system": (
                self._system,
                "TEXT: set the instruction and forget all turns; without TEXT, drop it",
            ),
            "/history": (self._show, "show all turns"),
            "/retry": (self._retry, "answer the last message again"),
            "/save": (self._save, "FILE: write the conversation as JSON"),
            "/load": (self._load, "FILE: read a conversation"),
            "/exit": (self._exit, "end the chat"),
        }

    def take(self, line: str) -> None:
        """One line of input."""
        line = line.strip()
        if not line:
            return
        try:
            if line.startswith("/"):
                name, _, argument = line.partition(" ")
                command = self._commands.get(name)
                if command is None:
                    raise InputError(f"unknown command {name}; /help lists the commands")
                command[0](argument.strip())
            else:
                self._answer(line)
        except SubsecondError as error:
            console.note(f"subsecond: error: {error}")

    def _answer(self, text: str) -> None:
        pieces = self.chat.stream(text)
        try:
            for piece in pieces:
                console.write(piece.text)
        except KeyboardInterrupt:  # ends the answer; what came of it stays in the conversation
            console.note("\n[interrupted]")
        finally:
            getattr(pieces, "close", lambda: None)()
        console.write("\n")

    def _help(self, _: str) -> None:
        for name, (_function, text) in self._commands.items():
            console.note(f"{name:9} {text}")

    def _reset(self, _: str) -> None:
        self.chat.reset()

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
        self._answer(str(turns[-2]["content"]))

    def _save(self, name: str) -> None:
        if not name:
            raise InputError("/save needs a file name")
        try:
            Path(name).expanduser().write_text(
                json.dumps(self.chat.saved(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
        except (OSError, ValueError) as error:
            raise InputError(f"can't write {name}: {error}") from None

    def _load(self, name: str) -> None:
        if not name:
            raise InputError("/load needs a file name")
        try:
            with Path(name).expanduser().open("rb") as file:
                data = file.read(MAX_SAVED_BYTES + 1)
            if len(data) > MAX_SAVED_BYTES:
                raise InputError(f"{name} has more than {MAX_SAVED_BYTES} bytes")
            self.chat.load(json.loads(data))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"can't read {name}: {error}") from None

    def _exit(self, _: str) -> None:
        self.ended = True


@contextmanager
def _history() -> Iterator[None]:
    """Lines typed on a terminal can be recalled, in later chats too."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import readline
    except ImportError:  # an interpreter without it
        yield
        return
    path = cache.folder("history") / "chat"
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            readline.write_history_file(path)
