"""argparse with errors in one line: the option or value, what is wrong with it, and the fix.

Owns: the words of every error about the command line, and the strict types of values. Does not
know: which options there are (options.py does).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

from subsecond.cli import console
from subsecond.errors import InputError

SHOWN_CHARACTERS = 60
DIGITS = 20  # of the largest seed

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")  # argparse's own idea of a negative number
_ARGUMENT = re.compile(r"argument (?:-\w/)?(\S+): (.*)", re.DOTALL)
_MISSING = "the following arguments are required: "


class Parser(argparse.ArgumentParser):
    """Raises InputError where argparse would print its usage and exit."""

    def __init__(self, **details: Any) -> None:
        # An abbreviation that is accepted today could mean another option tomorrow.
        super().__init__(**{**details, "allow_abbrev": False})

    def print_help(self, file: object = None) -> None:
        """To standard output; argparse itself would pass over an error there."""
        console.write(self.format_help())

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self._plain(message)}; see '{self.prog} --help'")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The values of all arguments; every word must be one."""
        own = list(words[: words.index("--")]) if "--" in words else list(words)
        for word in own:  # before argparse misses what the unknown option was meant to give
            if self._is_unknown(word):
                self._refuse_option(word.partition("=")[0])
        values, rest = self.parse_known_args(words)
        if rest and "--" in words:
            self.error(f"unexpected argument {shown(rest[0])} after '--'; options come before it")
        if rest:
            self.error(
                f"unexpected argument {shown(rest[0])}; quote a text of several words: 'two words'"
            )
        return values

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """argparse's own, but for --OPTION=--, whose value it would drop (before Python 3.13)."""
        if action.option_strings and arg_strings == ["--"]:
            return self._get_value(action, "--")
        return super()._get_values(action, arg_strings)

    def _is_unknown(self, word: str) -> bool:
        """Whether argparse takes the word for an option that there isn't."""
        if not word.startswith("-") or word == "-" or " " in word or _NEGATIVE.fullmatch(word):
            return False
        short = not word.startswith("--") and word[:2] in self._option_string_actions
        return not short and word.partition("=")[0] not in self._option_string_actions

    def _refuse_option(self, name: str) -> NoReturn:
        hint = suggestion(name, self._option_string_actions)
        if not hint:
            hint = "; a value that begins with '-' is written --OPTION=VALUE"
            if any(action.dest == "prompt" for action in self._actions):
                hint += ", a prompt comes after '--'"
        self.error(f"unknown option {shown(name)}{hint}")

    def _plain(self, message: str) -> str:
        """argparse's message in our words."""
        if message.startswith(_MISSING):
            name = message.removeprefix(_MISSING).split(", ")[0].split("/")[-1]
            action = next(
                (own for own in self._actions if name in (*own.option_strings, own.dest)), None
            )
            return f"{name} is missing ({action.help if action else 'give it'})"
        match = _ARGUMENT.fullmatch(message)
        if match is None:
            return message
        name, problem = match.groups()
        if problem.startswith("expected "):
            return f"{name} needs a value (one that begins with '-' is written {name}=VALUE)"
        if problem.startswith("ignored explicit argument "):
            return f"{name} takes no value"
        return f"{name} {problem}"


def integer(text: str) -> int:
    """A whole number in ASCII digits."""
    if not _INTEGER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be an integer, not {shown(text)}")
    if len(text) > DIGITS + 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at most {DIGITS} digits")
    return int(text)


def number(text: str) -> float:
    """A number in ASCII digits."""
    try:
        return _float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {shown(text)}") from None


def duration(text: str) -> float:
    """Seconds: 1s, 500ms, 2m, or a plain number of them."""
    units = {"ms": 1e-3, "s": 1.0, "m": 60.0}
    unit = next((own for own in units if text.endswith(own)), "")
    try:
        return _float(text.removesuffix(unit)) * units.get(unit, 1.0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a time such as 1s or 500ms, not {shown(text)}"
        ) from None


def size(text: str) -> int:
    """Bytes: 256M, 1G, or a plain number of them; the units are powers of 1024."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    unit = units.get(text[-1:].upper(), 1)
    try:
        return integer(text[:-1] if unit > 1 else text) * unit
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be a size such as 256M or 1G, not {shown(text)}"
        ) from None


def _float(text: str) -> float:
    """`float`, without what only programs write: 1_000, and digits of other scripts."""
    if not text.isascii() or "_" in text:
        raise ValueError
    return float(text)


def bias(text: str) -> tuple[int, float]:
    """ID=BIAS: a token id and what is added to its logit."""
    token_id, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must be ID=BIAS, such as 42=-100, not {shown(text)}")
    try:
        return integer(token_id), number(value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"must be ID=BIAS: a part {error}") from None


def field(text: str) -> tuple[str, Any]:
    """NAME=JSON: a field of a JSON object; what is no JSON is taken as a text."""
    import json

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"must be NAME=JSON, such as seed=1, not {shown(text)}")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def one_of(choices: Collection[str]) -> Callable[[str], str]:
    """One of these words."""

    def check(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(choices)}, not {shown(text)}"
            )
        return text

    return check


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" for the nearest known words, or nothing."""
    from difflib import get_close_matches

    candidates = [name for name in known if len(name) > 2 or not name.startswith("-")]
    near = [name for name in candidates if len(word) > 3 and name.startswith(word)]
    near = near or get_close_matches(word, candidates, n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def shown(text: str) -> str:
    """A word of the user, quoted, cut if it is long."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "...")
