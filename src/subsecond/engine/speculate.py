"""Guesses of what a text goes on with, for a step to check several tokens at once.

Owns: what a guesser is, and the one that looks into the text itself. Does not know: when a guess is
worth its rows (`drafting`), models, steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

GRAM = 3
"""Tokens that must have occurred before: two are met by chance in most texts, four come late."""


class Proposer(Protocol):
    """Guesses the next tokens of one text. Whatever it guesses, the text stays the same: a guess
    that is wrong costs time.
    """

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """What may follow, at most `most` ids of the model's vocabulary; none where there is no
        guess.

        tokens: the whole text so far, the same list at every call, which only grows.
        """
        ...


class PromptLookup:
    """What followed when the text had its last tokens before: in its prompt, or in what was chosen
    since (prompt lookup decoding; Saxena 2023).

    While the text goes on as the place does that was found last, that place is followed, since a
    short run of tokens may occur anywhere. Else the newest occurrence of the last `GRAM` tokens is.
    A place near the end is read on in the guess itself, so a text that repeats itself is followed
    round and round. Each token costs one entry of a dict, each call a look at what is new.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}  # of what followed a run of GRAM tokens
        self._known = GRAM  # places below are in there
        self._source = -1  # the place that was found last, and the text's length then
        self._length = 0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `Proposer`."""
        length = len(tokens)
        grown = length - self._length
        source = self._source + grown
        same = self._source >= 0 and (
            tokens[self._source : source] == tokens[self._length : length]
        )
        if not same:
            self._learn(tokens)
            source = self._places.get(tuple(tokens[-GRAM:]), -1)
        self._source, self._length = source, length
        if source < 0:
            return []
        draft = list(tokens[source : source + most])
        for place in range(most - len(draft)):
            draft.append(draft[place])
        return draft

    def _learn(self, tokens: Sequence[int]) -> None:
        """Enters what is new. A run's newest occurrence counts; the last run has nothing behind
        it.
        """
        new = tokens[self._known - GRAM :]
        runs = zip(*(new[offset:] for offset in range(GRAM)), strict=False)
        self._places.update(zip(runs, range(self._known, len(tokens)), strict=False))
        self._known = max(self._known, len(tokens))
