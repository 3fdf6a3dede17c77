"""Whether a regular expression takes a run of one character at once, or starts again inside it.

Owns: asking the `tokenizers` library what an expression does with short runs. Does not know: how an
expression is read (regex_bounds finds the repetitions).

Counted in matches, not in time, so the answer is the same on every machine. Not found are runs of
longer units than a character or a whole literal, and characters that only an inner class of the
expression knows and that are neither written in it nor among SAMPLES.
"""

from __future__ import annotations

import re
from typing import Any

SAMPLES = (
    "aezAZ019 \t\n\r\x0b\u00a0\u3000.,!'\"#$+<-_/\\@|~^`=()[]{}"
    "éßµÉǅʰªæσжאعกงक中あア가ー々あ٠²½Ⅷ€°\u0301\u0951\u200d\ufe0f😀\x00\x7f\ue000\ufffd"
)
"""A character of every general category and of each script that pre-tokenizers name."""

ENDS = ("", "a", "Z", "0", " ", "\n", "!", "中", "\x00")
"""What may stand behind a run."""

RUN = 512
SHORT_RUN = 32
MAX_PIECES = 4
"""Most matches that a run is taken in. Each one looks at the rest of the run."""

MAX_LITERALS = 256
_CODE = re.compile(r"\\(?:x\{([0-9A-Fa-f]{1,6})\}|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4}))")
_RANGE = re.compile(r"(.)-(.)", re.DOTALL)


def starts_again(pattern: str, repeated: list[str]) -> bool:
    """Whether `pattern` begins a match, or tries to, at many places inside a run of anything that
    one of `repeated` (parts of it) matches. False for an expression that the library can't read.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    try:
        removed = Split(Regex(pattern), "removed")
        parts = [Split(Regex(f"(?:{part})"), "removed") for part in dict.fromkeys(repeated)]
        isolated = Split(Regex(pattern), "isolated")
    except Exception:  # the library's own type, which can't be imported
        return False
    units = [
        unit for unit in _units(pattern, repeated) if any(_takes(part, unit) for part in parts)
    ]
    return any(_restarts(removed, isolated, unit, end) for unit in units for end in ENDS)


def _units(pattern: str, repeated: list[str]) -> list[str]:
    """Texts whose runs are tried: samples, what the expression writes out, and whole literals."""
    codes = [int(next(filter(None, match.groups())), 16) for match in _CODE.finditer(pattern)]
    literals = [chr(code) for code in codes if code < 0xD800 or 0xE000 <= code < 0x110000]
    literals += dict.fromkeys(pattern)
    literals += [
        chr((ord(first) + ord(last)) // 2)
        for first, last in _RANGE.findall(_CODE.sub(_written_out, pattern))
        if last > first
    ]
    whole = [re.sub(r"^\((?:\?[:>])?|\)$", "", part) for part in repeated]
    valid = (unit for unit in literals[:MAX_LITERALS] if not 0xD800 <= ord(unit) < 0xE000)
    return list(dict.fromkeys([*SAMPLES, *valid, *filter(None, whole)]))


def _written_out(match: re.Match[str]) -> str:
    code = int(next(filter(None, match.groups())), 16)
    return chr(code) if code < 0xD800 or 0xE000 <= code < 0x110000 else match[0]


def _takes(part: Any, unit: str) -> bool:
    return not part.pre_tokenize_str(unit)


def _restarts(removed: Any, isolated: Any, unit: str, end: str) -> bool:
    run = unit * max((SHORT_RUN if end else RUN) // len(unit), 8)
    left = sum(len(piece) for piece, _ in removed.pre_tokenize_str(run + end))
    # One character may be left to what follows, as `\\s+(?!\\S)` leaves it, and the end itself.
    return left > len(unit) + len(end) or len(isolated.pre_tokenize_str(run + end)) > MAX_PIECES
