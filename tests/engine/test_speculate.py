"""PromptLookup against a search that looks at everything."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond.engine.speculate import GRAM, PromptLookup


def read_on(tokens: Sequence[int], source: int, most: int) -> list[int]:
    """The text from a place on, going round where it ends."""
    text = list(tokens)
    for step in range(most):
        text.append(text[source + step])
    return text[len(tokens) :]


def newest(tokens: Sequence[int]) -> int:
    """Behind the newest occurrence of the last GRAM tokens that has a token behind it; -1: none."""
    for source in range(len(tokens) - 1, GRAM - 1, -1):
        if tokens[source - GRAM : source] == tokens[-GRAM:]:
            return source
    return -1


def expected(tokens: list[int], lengths: Sequence[int], most: int) -> list[list[int]]:
    """What is proposed when the text has each of these lengths."""
    found, source, before = [], -1, 0
    for length in lengths:
        text = tokens[:length]
        grown = length - before
        if source >= 0 and text[source : source + grown] == text[before:]:
            source += grown
        else:
            source = newest(text) if length > GRAM else -1
        before = length
        found.append([] if source < 0 else read_on(text, source, most))
    return found


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(1, 9),
)
def test_it_proposes_what_a_search_finds(tokens: list[int], cuts: list[int], most: int) -> None:
    lengths = sorted({min(cut, len(tokens)) for cut in cuts})
    lookup = PromptLookup()
    text: list[int] = []
    got = []
    for length in lengths:
        text += tokens[len(text) : length]  # the same list, which grows
        got.append(lookup.propose(text, most))
    assert got == expected(tokens, lengths, most)


def test_it_follows_a_place_rather_than_the_newest_run() -> None:
    lookup = PromptLookup()
    text = [1, 2, 3, 4, 5, 6, 7, 8, 90, 4, 5, 6, 70, 91, 1, 2, 3]
    assert lookup.propose(text, 2) == [4, 5]
    text += [4, 5, 6]  # occurs twice; the newer one goes on with 70
    assert lookup.propose(text, 2) == [7, 8]
    text += [70]
    assert lookup.propose(text, 2) == [91, 1]


def test_a_text_that_goes_round_is_followed_beyond_its_end() -> None:
    text = [9, 1, 2, 1, 2, 1]
    assert PromptLookup().propose(text, 7) == [2, 1, 2, 1, 2, 1, 2]
    assert PromptLookup().propose([5, 5, 5, 5], 3) == [5, 5, 5]


@pytest.mark.parametrize("text", [[], [1], [1, 2, 3], [1, 2, 3, 4], [1, 1, 1]])
def test_short_and_new_texts_give_no_guess(text: list[int]) -> None:
    lookup = PromptLookup()
    assert lookup.propose(text, 5) == []
    assert lookup.propose(text, 5) == []
