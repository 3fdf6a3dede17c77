"""Places of requests: bounded together, shared between keys, given back once."""

from __future__ import annotations

import pytest

from subsecond.serve.errors import Unavailable
from subsecond.serve.places import LARGEST_SHARE, SHARE, TOKENS, Place, Places


def fill(places: Places, key: str, tokens: int = 1) -> list[Place]:
    """Takes places until there is none."""
    held = []
    while True:
        try:
            held.append(places.take(key, tokens))
        except Unavailable as error:
            assert (error.status, error.code) == (503, "full")
            return held


def test_requests_are_bounded_and_come_back() -> None:
    places = Places(8, apart=False)
    held = fill(places, "a")
    assert len(held) == places.held == 8
    held[0].give()
    held[0].give()  # counts once
    assert places.held == 7
    with places.take("b", 5):
        assert places.tokens == 12
    assert (places.held, places.tokens) == (7, 7)
    for own in held:
        own.give()
    assert (places.held, places.tokens) == (0, 0)
    assert not places._held_by and not places._tokens_by


def test_work_is_bounded_too_and_one_request_never_fills_it() -> None:
    places = Places(64, apart=False)
    held = fill(places, "a", 16 * TOKENS)
    assert len(held) == LARGEST_SHARE  # far fewer than there are places
    for own in held:
        own.give()
    held = [places.take("a", 10**9)]
    held += fill(places, "b", 8 * TOKENS)
    assert len(held) == 1 + (64 - 64 // LARGEST_SHARE) // 8
    for own in held:
        own.give()
    assert places.tokens == 0


@pytest.mark.parametrize("tokens", [1, 2 * TOKENS])
def test_no_key_keeps_the_next_one_out(tokens: int) -> None:
    places = Places(256, apart=True)
    first = fill(places, "a", tokens)
    assert len(first) * max(1, tokens // TOKENS) == 256 * SHARE // (SHARE + 1)
    others = [places.take(f"newcomer {index}", tokens) for index in range(20)]
    second = fill(places, "b", tokens)
    assert len(second) > 5
    for own in [*first, *others]:
        own.give()
    assert len(second) + len(fill(places, "b", tokens)) == len(first)


def test_keys_that_all_want_everything_get_equal_parts() -> None:
    places = Places(256, apart=True)
    counts = dict.fromkeys("abcd", 0)
    for _ in range(256):
        for key in counts:
            try:
                places.take(key, 1)
                counts[key] += 1
            except Unavailable:
                pass
    assert max(counts.values()) - min(counts.values()) <= 1
    assert places.held < 256  # what is left is for a newcomer
    places.take("e", 1)
