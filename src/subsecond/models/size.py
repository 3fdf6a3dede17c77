"""Sizes that know the configuration keys they were computed from.

Owns: an int that keeps its account through products, quotients and sums, so that a contradiction
between a configuration and its weights names the keys behind a dimension, whatever its value.
"""

from __future__ import annotations


class Size(int):
    """An int; `keys`: how it was computed, such as "num_attention_heads 4 x head_dim 16"."""

    keys: str

    def __new__(cls, value: int, keys: str) -> Size:
        size = super().__new__(cls, value)
        size.keys = keys
        return size

    def __mul__(self, other: int) -> int:
        return (
            self._with(other, int(self) * int(other), "x") if _whole(other) else int(self) * other
        )

    def __rmul__(self, other: int) -> int:
        return (
            Size(other * int(self), f"{other} x {_closed(self)}")
            if _whole(other)
            else (other * int(self))
        )

    def __add__(self, other: int) -> int:
        return (
            self._with(other, int(self) + int(other), "+") if _whole(other) else int(self) + other
        )

    def __floordiv__(self, other: int) -> int:
        return (
            self._with(other, int(self) // int(other), "/")
            if _whole(other)
            else (int(self) // other)
        )

    def _with(self, other: int, value: int, sign: str) -> Size:
        left = self.keys if sign == "+" else _closed(self)
        right = _closed(other) if isinstance(other, Size) else str(other)
        return Size(value, f"{left} {sign} {right}")


def keys_of(size: int) -> str:
    """The keys behind a size; "" where it has none."""
    return size.keys if isinstance(size, Size) else ""


def plain(value: object) -> int:
    """The int itself: for msgspec, which takes no other. TypeError for what is no size."""
    if not isinstance(value, Size):
        raise TypeError(f"{type(value).__name__} is no part of a program")
    return int(value)


def _whole(value: object) -> bool:
    return isinstance(value, int)


def _closed(size: Size) -> str:
    """In brackets where another sign would bind its parts otherwise."""
    loose = " + " in size.keys or " / " in size.keys
    return f"({size.keys})" if loose else size.keys
