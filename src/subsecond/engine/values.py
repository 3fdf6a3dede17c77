"""Values that callers give, as plain Python: integers, numbers, token ids, each with its range.

Owns: what counts as an integer, a number or a list of ids, and the messages that refuse the rest.
Does not know: what the values are for, or NumPy and PyTorch (their scalars and arrays are known by
what they can do: `__index__`, `__float__`, `tolist`, the buffer protocol).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeVar

from subsecond.errors import RequestError

T = TypeVar("T")

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # as object.__repr__ writes it

INT_MAX = 2**31 - 1
FLOAT32_LEAST = 2.0**-126
"""Smallest normal float32: what is closer to 0 would become 0 in the runtime."""


def integer(param: str, value: object, low: int, high: int) -> int:
    """`value` as an int from `low` to `high`; RequestError naming `param` otherwise."""
    number = whole(value)
    if number is None or not low <= number <= high:
        raise RequestError(
            f"{param} must be an integer from {low} to {high}, not {short(value)}", param
        )
    return number


def number(param: str, value: object, low: float, high: float, *, low_open: bool = False) -> float:
    """`value` as a float from `low` (or above it) to `high`; RequestError naming `param` otherwise,
    and for what is not 0 but would be 0 in float32.
    """
    given = _real(value)
    # The comparisons are false for NaN.
    if given is None or not ((low < given if low_open else low <= given) and given <= high):
        bound = f"above {low:g} and at most {high:g}" if low_open else f"from {low:g} to {high:g}"
        raise RequestError(f"{param} must be a number {bound}, not {short(value)}", param)
    if given != 0 and abs(given) < FLOAT32_LEAST:
        raise RequestError(
            f"{param} is {short(value)}, which float32 can't hold; the smallest is "
            f"{FLOAT32_LEAST:.2g}",
            param,
        )
    return given


def check_token_ids(token_ids: object, vocab_size: int, param: str = "prompt") -> list[int]:
    """Token ids as a list of int, each below `vocab_size`.

    token_ids: a list or tuple, any other sequence, or a one-dimensional array or buffer of integers
    (NumPy, PyTorch, `array`). RequestError naming `param` and the place for anything else, and for
    no ids at all.
    """
    values = sequence(token_ids)
    if values is None:
        raise RequestError(
            f"{param} must be a list of token ids, not {_kind(token_ids)}: {short(token_ids)}",
            param,
        )
    if not values:
        raise RequestError(
            f"{param} is empty; give at least one token (a beginning-of-text token, say)", param
        )
    return [
        value
        if type(value) is int and 0 <= value < vocab_size
        else check_token_id(value, vocab_size, param, f"{param}[{index}]")
        for index, value in enumerate(values)
    ]


def check_token_id(value: object, vocab_size: int, param: str, place: str = "") -> int:
    """One token id below `vocab_size`; RequestError naming `place`, or `param`, otherwise."""
    token_id = whole(value)
    if token_id is None:
        raise RequestError(f"{place or param} is {_wrong_id(value)}", param)
    if not 0 <= token_id < vocab_size:
        raise RequestError(
            f"{place or param} is {short(value)}, outside the vocabulary: token ids are 0 to "
            f"{vocab_size - 1}",
            param,
        )
    return token_id


def sequence(values: object) -> Sequence[Any] | None:
    """The entries of a sequence, array or buffer; None for text, bytes, mappings, sets, scalars."""
    if isinstance(values, (list, tuple)):
        return values
    if isinstance(values, (str, bytes, bytearray, Mapping, Set)):
        return None
    plain = _plain(values)
    if isinstance(plain, list):
        return plain
    if isinstance(values, Sequence):
        return list(values)
    try:
        entries: Any = memoryview(values).tolist()  # type: ignore[arg-type]
    except (TypeError, ValueError, NotImplementedError):
        return None
    return entries if isinstance(entries, list) else None


def is_scalar(value: object) -> bool:
    """Whether it is a number of any kind, which in a list means token ids, not prompts."""
    return _real(value) is not None or isinstance(_plain(value), bool)


def whole(value: object) -> int | None:
    """The integer that `value` is; None for anything else, bool and float included."""
    if type(value) is int:
        return value
    plain = _plain(value)
    if isinstance(plain, bool):
        return None
    try:
        return operator.index(plain)  # type: ignore[arg-type]
    except Exception:  # a caller's own class may raise anything
        return None


def plain_integer(value: T) -> T | int:
    """An integer of another library (NumPy's) as Python's own; anything else as it is."""
    number = whole(value)
    return value if number is None else number


def short(value: object) -> str:
    """`repr(value)`, at most 60 characters of it; its type if all that `repr` has is an address."""
    try:
        text = repr(value)
    except Exception:  # a caller's own class, or an integer too long to be printed
        text = f"a {type(value).__name__}"
    if _ADDRESS.search(text):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _real(value: object) -> float | None:
    """The number that `value` is; None for text, bool, and what is too large for a float."""
    plain = _plain(value)
    if isinstance(plain, (bool, str, bytes, bytearray)):
        return None
    try:
        return float(plain)  # type: ignore[arg-type]
    except Exception:  # a caller's own class may raise anything
        return None


def _plain(value: object) -> object:
    """An array or scalar of another library as Python's own; anything else as it is."""
    if isinstance(value, (int, float, str, list, tuple)):
        return value
    try:
        return value.tolist()  # type: ignore[attr-defined]
    except Exception:  # no array, or a caller's own class
        return value


def _wrong_id(value: object) -> str:
    """What is wrong with an entry that is no integer, and the fix."""
    plain = _plain(value)
    if isinstance(plain, bool):
        return f"{plain}, a truth value; token ids are integers"
    if isinstance(plain, float):
        return f"{short(value)}, a float; convert token ids to integers (int(x), x.astype(int))"
    if sequence(value) is not None:
        return f"a sequence, {short(value)}; token ids of one prompt have one dimension"
    return f"{short(value)}; token ids are integers"


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "a text (LLM.encode makes ids of it)"
    if isinstance(value, (bytes, bytearray)):
        return "bytes"
    return f"a {type(value).__name__}"
