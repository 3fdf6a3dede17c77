"""Which characters of a rendered chat template the caller gave, and which the template wrote.

Owns: texts that carry the origin of each of their characters through what a template does with
them. Does not know: jinja2, control tokens.

A text of type `str` is the template's. `Traced` has a mask beside it. The operations that templates
use to put texts together keep the origins exactly; whatever else makes a text of one that holds a
caller's characters makes one that is the caller's as a whole (`marked`), so an operation that isn't
listed here can lose a marker of the template, never forge one.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, MappingView
from typing import Any, SupportsIndex

from subsecond.errors import TextError

MAX_PARTS = 1 << 18
"""Most texts that one text is cut into: each has a mask of its own."""

TEMPLATE, CALLER = b"\0", b"\1"


class Traced(str):
    """A text with the origin of its characters: one byte each, TEMPLATE or CALLER.

    Without a mask all of it is the caller's, as for a `str` method that isn't overridden here.
    """

    _mask: bytes  # the sandbox hides names that begin with an underscore

    def __new__(cls, text: str = "", mask: bytes | None = None) -> Traced:
        made = super().__new__(cls, text)
        made._mask = CALLER * len(text) if mask is None else mask
        return made

    def __str__(self) -> Traced:
        return self

    def _uniform(self) -> bytes | None:
        """The origin that all characters have in common."""
        if 0 not in self._mask:
            return CALLER
        return None if 1 in self._mask else TEMPLATE

    def _parts(self, parts: list[str]) -> list[str]:
        _check_count(len(parts))
        origin = self._uniform() or CALLER
        return [Traced(part, origin * len(part)) for part in parts]

    def __add__(self, other: str) -> Traced:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Traced:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> Traced:
        return Traced(str.__mul__(self, times), self._mask * times.__index__())

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> Traced:
        text = str.__getitem__(self, key)
        return Traced(
            text, self._mask[key] if isinstance(key, slice) else bytes((self._mask[key],))
        )

    def __iter__(self) -> Iterator[str]:
        _check_count(len(self))
        for character, origin in zip(str.__iter__(self), self._mask, strict=True):
            yield Traced(character, bytes((origin,)))

    def join(self, parts: Iterable[str], /) -> Traced:
        pieces: list[str] = []
        for part in parts:
            pieces += [self, part] if pieces else [part]
        return joined(pieces)

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Traced:
        text = str.replace(self, old, new, count)
        if not old or (self._uniform() == CALLER and not new):
            return Traced(text)
        mask, place = [], 0
        for part in str.split(self, old, count):
            mask.append(self._mask[place : place + len(part)])
            place += len(part) + len(old)
        return Traced(text, mask_of(new).join(mask))

    def strip(self, chars: str | None = None, /) -> Traced:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Traced:
        text = str.lstrip(self, chars)
        return Traced(text, self._mask[len(self) - len(text) :])

    def rstrip(self, chars: str | None = None, /) -> Traced:
        text = str.rstrip(self, chars)
        return Traced(text, self._mask[: len(text)])

    def removeprefix(self, prefix: str, /) -> Traced:
        text = str.removeprefix(self, prefix)
        return Traced(text, self._mask[len(self) - len(text) :])

    def removesuffix(self, suffix: str, /) -> Traced:
        text = str.removesuffix(self, suffix)
        return Traced(text, self._mask[: len(text)])

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        parts = str.split(self, sep, maxsplit)
        return self._parts(parts) if sep is None or self._uniform() else self._cut(parts, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        parts = str.rsplit(self, sep, maxsplit)
        return self._parts(parts) if sep is None or self._uniform() else self._cut(parts, len(sep))

    def _cut(self, parts: list[str], gap: int) -> list[str]:
        _check_count(len(parts))
        cut: list[str] = []
        place = 0
        for part in parts:
            cut.append(Traced(part, self._mask[place : place + len(part)]))
            place += len(part) + gap
        return cut

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._parts(str.splitlines(self, keepends))

    def _recased(self, text: str) -> Traced:
        # No change of case makes a character vanish, so an equal length is character by character.
        return Traced(text, self._mask if len(text) == len(self) else None)

    def lower(self) -> Traced:
        return self._recased(str.lower(self))

    def upper(self) -> Traced:
        return self._recased(str.upper(self))

    def capitalize(self) -> Traced:
        return self._recased(str.capitalize(self))

    def title(self) -> Traced:
        return self._recased(str.title(self))

    def casefold(self) -> Traced:
        return self._recased(str.casefold(self))

    def swapcase(self) -> Traced:
        return self._recased(str.swapcase(self))


def _check_count(parts: int) -> None:
    if parts > MAX_PARTS:
        raise TextError(f"the chat template cuts a text into more than {MAX_PARTS:,} parts")


def mask_of(text: str) -> bytes:
    """The origins of a text's characters."""
    return text._mask if isinstance(text, Traced) else TEMPLATE * len(text)


def joined(parts: Iterable[str]) -> Traced:
    """The parts behind one another. TypeError for one that is no text."""
    kept = list(parts)
    return Traced("".join(kept), b"".join(map(mask_of, kept)))


def template_text(text: str) -> Traced:
    """A text of the template, as one whose methods keep origins."""
    return text if isinstance(text, Traced) else Traced(text, TEMPLATE * len(text))


def holds_caller_text(value: Any) -> bool:
    """Whether a text in `value`, at any depth, has a character of the caller. True for objects that
    can't be looked into: the name of a method, for one, shows the text that it belongs to.
    """
    if isinstance(value, str):
        return 1 in mask_of(value)
    if isinstance(value, Mapping):
        return any(holds_caller_text(part) for item in value.items() for part in item)
    if isinstance(value, (list, tuple, MappingView)):
        parts: Iterable[Any] = value  # type: ignore[assignment]
        return any(map(holds_caller_text, parts))
    return not (value is None or isinstance(value, (int, float)))


def written(value: Any) -> str:
    """A value as a text with origins."""
    if isinstance(value, str):
        return value
    return Traced(str(value)) if holds_caller_text(value) else str(value)


def marked(made: Any, sources: Iterable[Any]) -> Any:
    """What an operation made of `sources`: texts without origins are the caller's if a source has
    text of the caller.
    """
    if isinstance(made, Traced) or not isinstance(made, (str, list, tuple)):
        return made
    if not any(map(holds_caller_text, sources)):
        return made
    return _all_marked(made)


def _all_marked(made: Any) -> Any:
    if isinstance(made, (list, tuple)):
        return type(made)(map(_all_marked, made))
    return Traced(made) if isinstance(made, str) and not isinstance(made, Traced) else made


def formatted(form: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Traced | None:
    """`form.format(...)` for plain fields that name an argument; None for any other form."""
    if holds_caller_text(form):
        return None
    pieces: list[str] = []
    place = 0
    for literal, name, width, conversion in string.Formatter().parse(form):
        pieces.append(literal)
        if name is None:
            continue
        if width or conversion or not (name == "" or name.isidentifier() or name.isdecimal()):
            return None
        if name.isidentifier():
            value = kwargs.get(name)
        else:
            index, place = (place, place + 1) if name == "" else (int(name), place)
            value = args[index] if index < len(args) else None
        if not isinstance(value, str):
            return None
        pieces.append(value)
    return joined(pieces)
