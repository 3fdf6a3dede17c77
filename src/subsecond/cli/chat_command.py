"""`subsecond chat`: several turns on a terminal or from a pipe, with /commands and a history.

Owns: the prompt, what Ctrl-C means at it and during an answer, and the line history. Does not know:
what a line does (chat_session.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from subsecond.cli import console, interrupt
from subsecond.cli.chat_session import Session
from subsecond.cli.options import Chat, model_given, sampling_given
from subsecond.cli.stored import say_where
from subsecond.engine.sampling import DEFAULT_MAX_TOKENS, SamplingParams
from subsecond.errors import InputError, SubsecondError, TextError
from subsecond.formats import cache
from subsecond.formats.progress import TerminalProgress
from subsecond.tasks import chat
from subsecond.tasks.generate import LLM

HISTORY_LINES = 1000
LEAVE_HINT = "(Ctrl-C again, Ctrl-D or /quit ends the chat)"


def run(options: Chat) -> int:
    """On a terminal: exit code 0, or 130 after two times Ctrl-C at the prompt. From a pipe: 0 if
    every line went well, else the code of the first line that did not.
    """
    if sys.stdin is None:  # before the model is loaded in vain
        raise InputError("standard input is closed; chat reads its messages from it")
    params = SamplingParams(**sampling_given(options))  # refuses bad values before any work
    with interrupt.watched(console.note), TerminalProgress() as progress:
        llm = LLM(
            **model_given(options),
            max_sequences=1,
            speculation=not options.no_speculation,
            progress=progress,
        )
    if progress.converted:
        say_where(llm.artifact)
    with llm:
        session = _session(llm, options, params)
        if not sys.stdin.isatty():
            with interrupt.watched(console.note):
                _take_all(session)
            return session.failed
        console.note(
            f"{options.model}; /help lists the commands, Ctrl-C ends an answer, Ctrl-D the chat"
        )
        with _history():
            _converse(session)
        return 0


def _session(llm: LLM, options: Chat, params: SamplingParams) -> Session:
    if params.max_tokens is not None and params.max_tokens >= llm.context:
        raise InputError(
            f"--max-tokens {params.max_tokens} doesn't fit the context of {llm.context} tokens; "
            "give less, or leave it out"
        )
    # A most number of tokens for an answer is no demand: near the context's end there is less.
    conversation = chat.Chat(
        llm,
        system=options.system,
        params=replace(params, max_tokens=None),
        answer_tokens=params.max_tokens or DEFAULT_MAX_TOKENS,
    )
    return Session(conversation, llm, can_grow=options.context is not None)


def _take_all(session: Session) -> None:
    """Every line of a pipe. A bad one is reported, and the next one is taken."""
    for line in console.read_lines():
        if isinstance(line, SubsecondError):
            session.refuse(line)
        else:
            session.take(line)
        if session.ended:
            return


def _converse(session: Session) -> None:
    """Lines of a terminal, until it has no more. Ctrl-C at the prompt clears the line, twice in a
    row raises KeyboardInterrupt.
    """
    cleared = False
    while not session.ended:
        try:
            line = _ask()
        except EOFError:
            console.write("\n")
            return
        except KeyboardInterrupt:
            console.note("")
            if cleared:
                raise
            console.note(LEAVE_HINT)
            cleared = True
            continue
        except UnicodeDecodeError:
            session.refuse(TextError("the line is not valid UTF-8; set the terminal to UTF-8"))
            continue
        cleared = False
        with interrupt.calling(session.stop):
            session.take(line)


def _ask() -> str:
    """A line from the terminal. The prompt is no part of an output that goes elsewhere."""
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    return input()


@contextmanager
def _history() -> Iterator[None]:
    """Lines typed on a terminal can be recalled, in later chats too, where they can be stored."""
    try:
        import readline

        path = cache.folder("history") / "chat"
    except (ImportError, InputError):  # an interpreter without it, a place that can't be written
        yield
        return
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            readline.write_history_file(path)
