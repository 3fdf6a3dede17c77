"""How many requests may be on their way at once, and how much work.

Owns: the bounds of one server, and each key's share of them. Does not know: what a request is, who
computes it.

A key may hold at most `SHARE` times what is free then (dynamic thresholds: A. Choudhury and
E. Hahne, Dynamic queue length thresholds for shared-memory packet switches, 1998). So a key that is
alone gets most of the places, many keys get equal parts, and a newcomer always finds one.
"""

from __future__ import annotations

from collections import Counter

from subsecond.serve.errors import Unavailable

SHARE = 3
TOKENS = 4096
"""Of prompt and answer, for each place: the work that may wait."""
LARGEST_SHARE = 4
"""A request counts for at most a quarter of the work, so that one alone never fills the server. The
body's bound bounds what is more.
"""


class Places:
    """The places of one kind of requests. most: so many requests at once, and `TOKENS` times as
    many tokens. apart: whether each key has its share; else they are all one.

    held: places that are taken; tokens: what these requests may need.
    """

    def __init__(self, most: int, *, apart: bool) -> None:
        self.held = self.tokens = 0
        self._most = most
        self._most_tokens = most * TOKENS
        self._apart = apart
        self._held_by: Counter[str] = Counter()
        self._tokens_by: Counter[str] = Counter()

    def take(self, key: str, tokens: int) -> Place:
        """A place for a request that may need so many tokens; Unavailable if there is none."""
        free, free_tokens = self._most - self.held, self._most_tokens - self.tokens
        if free <= 0 or free_tokens <= 0:
            raise Unavailable("the server is full; try again in a moment", 1.0, "full")
        own, own_tokens = self._held_by[key], self._tokens_by[key]
        if self._apart and (own >= SHARE * free or own_tokens >= SHARE * free_tokens):
            raise Unavailable(
                f"this key has {own} requests on their way and the server is nearly full; wait "
                "for one to end",
                1.0,
                "full",
            )
        counted = min(tokens, self._most_tokens // LARGEST_SHARE)
        self._add(key, 1, counted)
        return Place(self, key, counted)

    def _add(self, key: str, places: int, tokens: int) -> None:
        self.held += places
        self.tokens += tokens
        self._held_by[key] += places
        self._tokens_by[key] += tokens
        if not self._held_by[key]:
            del self._held_by[key], self._tokens_by[key]


class Place:
    """A request's place, given back once."""

    __slots__ = ("_key", "_places", "_tokens")

    def __init__(self, places: Places, key: str, tokens: int) -> None:
        self._places: Places | None = places
        self._key = key
        self._tokens = tokens

    def give(self) -> None:
        """The request has ended."""
        places, self._places = self._places, None
        if places is not None:
            places._add(self._key, -1, -self._tokens)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.give()
