"""Pieces of text: never half a character, and nothing of a stop string."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subsecond.text.stop import StopStrings
from subsecond.text.stream import Detokenizer
from subsecond.text.tokenizer import Tokenizer


class Bytes:
    """Token i is byte i."""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


@given(st.text(max_size=60))
def test_pieces_sum_to_the_text(text: str) -> None:
    detokenizer = Detokenizer(Bytes())
    assert "".join(map(detokenizer.push, text.encode())) == text


@given(st.binary(max_size=40))
def test_any_bytes_give_the_text_that_decoding_them_at_once_gives(data: bytes) -> None:
    detokenizer = Detokenizer(Bytes())
    whole = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
    assert "".join(map(detokenizer.push, data)) == whole
    # Only what may still become a character is left out at the end.
    assert data.decode("utf-8", "replace") in (whole, whole + "\ufffd")


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_characters_of_several_tokens_wait(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode("🎉界", affixes=False)
    detokenizer = Detokenizer(tokenizer)
    pieces = [piece for piece in map(detokenizer.push, ids) if piece.strip()]
    assert pieces == ["🎉", "界"]


@given(
    st.text(max_size=20), st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), st.data()
)
def test_a_text_that_ends_inside_a_character_ends_before_it(
    text: str, last: str, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(last.encode()) - 1))
    detokenizer = Detokenizer(Bytes())
    assert "".join(map(detokenizer.push, text.encode() + last.encode()[:cut])) == text


def test_bytes_that_are_no_character_stay_visible() -> None:
    detokenizer = Detokenizer(Bytes())
    for data, shown in (
        (b"a\xff", "a\ufffd"),
        (b"\xe4\xb8x", "\ufffdx"),
        ("\ufffd".encode(), "\ufffd"),
    ):
        assert "".join(map(detokenizer.push, data)) == shown


def test_a_stop_string_across_pieces() -> None:
    stops = StopStrings(["END", "E!"])
    assert [stops.push(piece) for piece in ["a", "bE", "N", "x", "E", "ND", "more"]] == [
        "a",
        "b",
        "",
        "ENx",
        "",
        "",
        "",
    ]
    assert stops.found == "END"


@pytest.mark.parametrize("pieces", [["abcd"], ["ab", "cd"], ["a", "b", "c", "d"]])
def test_the_stop_string_that_is_complete_first_wins(pieces: list[str]) -> None:
    for strings, shown, winner in ((["cd", "b"], "a", "b"), (["abcd", "bc"], "a", "bc")):
        stops = StopStrings(strings)
        assert "".join(map(stops.push, pieces)) == shown
        assert stops.found == winner


def test_held_text_is_given_back_at_the_end() -> None:
    stops = StopStrings(["\n\n"])
    assert stops.push("x\n") == "x"
    assert stops.flush() == "\n"
    assert stops.found is None


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_pieces_cut_anywhere_give_what_the_whole_text_gives(
    pieces: list[str], stops: list[str]
) -> None:
    text = "".join(pieces)
    found = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    place = min(found)[1] if found else len(text)
    state = StopStrings(stops)
    shown = "".join(state.push(piece) for piece in pieces)
    assert shown + state.flush() == text[:place]
    assert (state.found is not None) == bool(found)
    if not found:  # only what may still become a stop string is held
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)
