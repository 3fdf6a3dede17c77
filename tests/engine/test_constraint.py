"""What a constraint allows, refuses and closes, over a vocabulary of bytes and some words."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import pytest

from subsecond.engine import constraint as bounds
from subsecond.engine.constraint import Constraint, closes
from subsecond.engine.constraint_state import KEPT, ConstraintState, Grammars, Vocabulary
from subsecond.errors import RequestError

WORDS = [b"name", b'":', b'"}', b", ", b"true", b"ab", b'{"', b"\xc3\xa9t"]
STOP, CONTROL, EMPTY = 256, 257, 258
TOKENS = [*(bytes([byte]) for byte in range(256)), b"", b"<ctl>", b"", *WORDS]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1},
        "ok": {"type": "boolean"},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age", "tags", "next"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(Vocabulary(TOKENS, control_ids=[CONTROL], stop_ids=[STOP]))


def allowed(state: ConstraintState) -> set[int]:
    bits = state.mask()
    return {id_ for id_ in range(8 * len(bits)) if bits[id_ >> 3] >> (id_ & 7) & 1}


def written(tokens: list[int]) -> bytes:
    return b"".join(TOKENS[token] for token in tokens)


def take(state: ConstraintState, text: str) -> ConstraintState:
    for byte in text.encode():
        assert byte in allowed(state), (text, bytes([byte]))
        state.accept(byte)
    return state


def may_end(state: ConstraintState) -> bool:
    return state.closing(0) == []


def wander(
    grammars: Grammars, constraint: Constraint, seed: int, most: int
) -> tuple[list[int], ConstraintState]:
    """Tokens that were drawn from what was allowed, up to the end or `most` of them."""
    source, tokens = random.Random(seed), list[int]()
    state = grammars.compile(constraint).start()
    while len(tokens) < most and not state.complete:
        choices = sorted(allowed(state))
        assert choices, "a text that can't go on and hasn't ended"
        token = source.choice(choices)
        if token == STOP:
            assert may_end(state)
            break
        state.accept(token)
        tokens.append(token)
    return tokens, state


def fits(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and list(value) == [name for name in PERSON["properties"] if name in value]  # type: ignore[attr-defined]
        and {"name", "age", "tags", "next"} <= set(value)
        and isinstance(value["name"], str)
        and 0 <= value["age"] <= 150
        and len(value["tags"]) >= 1
        and set(value["tags"]) <= {"red", "green"}
        and (value["next"] is None or fits(value["next"]))
    )


@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_drawn_can_be_closed_and_fits(grammars: Grammars, seed: int) -> None:
    constraint = Constraint.json_schema(PERSON)
    tokens, state = wander(grammars, constraint, seed, random.Random(seed).randrange(120))
    closing = state.closing(bounds.MAX_CLOSING_TOKENS)
    assert closing is not None
    text = written([*tokens, *closing]).decode()
    assert fits(json.loads(text)), text
    assert state.closing(len(closing)) == closing
    if closing:
        assert state.closing(len(closing) - 1) is None
    assert state.error is None, "closing tries, it doesn't touch the text"


@pytest.mark.parametrize("seed", range(10))
def test_json_objects_close_at_any_depth(grammars: Grammars, seed: int) -> None:
    tokens, state = wander(grammars, Constraint.json_object(), seed, 60)
    closing = state.closing(bounds.MAX_CLOSING_TOKENS)
    assert closing is not None
    assert isinstance(json.loads(written([*tokens, *closing])), dict)


def test_regular_expressions_match_as_a_whole(grammars: Grammars) -> None:
    constraint = Constraint.regex(r"[0-9]{2,3}(-[ab]+)?")
    assert not constraint.check(), "what closes an expression isn't looked for"
    for seed in range(20):
        tokens, state = wander(grammars, constraint, seed, 8)
        text = written(tokens).decode()
        if state.complete or may_end(state):
            assert re.fullmatch(r"[0-9]{2,3}(-[ab]+)?", text)
    state = take(grammars.compile(constraint).start(), "12")
    assert allowed(state) == {*b"0123456789-", STOP}
    assert not take(state, "3").complete
    assert may_end(take(state, "-a"))


def test_choices(grammars: Grammars) -> None:
    constraint = Constraint.choice(["abc", 'a"\n', "été", "abc"])
    assert constraint.check()
    state = grammars.compile(constraint).start()
    ab, accent, word = TOKENS.index(b"ab"), 0xC3, TOKENS.index(WORDS[-1])
    assert {ord("a"), ab, accent, word} == allowed(state)
    state.accept(ab)
    assert not state.complete
    assert written(state.closing(9) or []) == b"c"
    assert take(state, "c").complete
    assert allowed(state) == {STOP}


def test_states_are_independent_and_masks_are_whole_words(grammars: Grammars) -> None:
    compiled = grammars.compile(Constraint.choice(["ab", "ba"]))
    one, other = compiled.start(), compiled.start()
    take(one, "a")
    assert allowed(one) == {ord("b")}
    assert allowed(other) == {ord("a"), ord("b"), TOKENS.index(b"ab")}
    assert len(one.mask()) == 4 * -(-len(TOKENS) // 32)


def test_a_model_without_stop_tokens_ends_by_the_constraint() -> None:
    own = Grammars(Vocabulary(TOKENS[:256], control_ids=[], stop_ids=[]))
    state = take(own.compile(Constraint.regex("a+b")).start(), "aab")
    assert state.complete
    assert allowed(state) == set()
    assert allowed(take(own.compile(Constraint.regex("a+")).start(), "aa")) == {ord("a")}


def test_compiled_constraints_are_kept_within_bounds() -> None:
    own = Grammars(Vocabulary(TOKENS[:256], control_ids=[], stop_ids=[]))
    first = Constraint.regex("first")
    compiled = own.compile(first)
    assert own.compile(Constraint.regex("first")) is compiled is own.known(first)
    for index in range(KEPT):
        own.compile(Constraint.regex(f"x{index}"))
    assert own.known(first) is None


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Constraint.json_schema({"type": "nothing"}), "nothing"),
        (Constraint.json_schema({"not": {"type": "string"}}), "not"),
        (Constraint.json_schema({"$ref": "#/absent"}), "/absent"),
        (Constraint.json_schema({"$ref": "https://example.org/x"}), "example.org"),
        (Constraint.json_schema({"type": "string", "pattern": "(a"}), "unclosed"),
        (Constraint.json_schema({"type": "string", "format": "shoe-size"}), "shoe-size"),
        (Constraint.json_schema({"type": "integer", "minimum": 5, "maximum": 1}), "minimum"),
        (Constraint.regex("(a"), "unclosed"),
        (Constraint.regex("(?=a)b"), "look-around"),
        (Constraint.regex("(" * 2000 + "a" + ")" * 2000), "regular expression"),
        (
            Constraint.json_schema(
                {
                    "type": "object",
                    "properties": {f"k{i}": {"type": "integer"} for i in range(2500)},
                    "additionalProperties": False,
                }
            ),
            "too big",
        ),
    ],
)
def test_what_cant_be_followed_is_refused(
    grammars: Grammars, constraint: Constraint, words: str
) -> None:
    for attempt in (constraint.check, lambda: grammars.compile(constraint)):
        with pytest.raises(RequestError, match=words) as caught:
            attempt()
        assert caught.value.param == "constraint"
        assert len(str(caught.value)) < 500


def test_bad_values_are_refused_when_they_are_made() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"items": deep}
    makes: list[Any] = [
        lambda: Constraint.json_schema("{"),
        lambda: Constraint.json_schema("[]"),
        lambda: Constraint.json_schema(deep),
        lambda: Constraint.json_schema({"enum": [object()]}),
        lambda: Constraint.json_schema({"enum": ["x" * bounds.MAX_BYTES]}),
        lambda: Constraint.json_schema({"x-guidance": {"lenient": True}}),
        lambda: Constraint.regex(""),
        lambda: Constraint.regex(3),  # type: ignore[arg-type]
        lambda: Constraint.choice([]),
        lambda: Constraint.choice("ab"),
        lambda: Constraint.choice(["a", ""]),
        lambda: Constraint.choice(["a"] * 1025),
        lambda: Constraint("yaml", "x"),  # type: ignore[arg-type]
    ]
    for make in makes:
        with pytest.raises(RequestError) as caught:
            make()
        assert caught.value.param == "constraint"


@pytest.mark.parametrize(
    "pattern",
    ["(a*)*b", "((((a{1,50}){1,50}){1,50}){1,50}){1,50}", r"(\d{1,1000}){1,1000}", ".*a.{400}b"],
)
def test_costly_expressions_are_bounded(grammars: Grammars, pattern: str) -> None:
    """They are refused, or end with an error; or they are just followed. All in bounded time."""
    begin_s = time.process_time()
    try:
        _, state = wander(grammars, Constraint.regex(pattern), 1, 40)
        assert state.error is None or state.error.param == "constraint"  # type: ignore[attr-defined]
    except AssertionError:
        pass  # nothing was allowed any more: the error of the state
    assert time.process_time() - begin_s < 5


def test_a_state_that_became_too_costly_allows_nothing_and_says_so(grammars: Grammars) -> None:
    state = grammars.compile(Constraint.regex("((((a{1,50}){1,50}){1,50}){1,50}){1,50}")).start()
    for _ in range(3000):
        if state.error is not None or ord("a") not in allowed(state):
            break
        state.accept(ord("a"))
    assert isinstance(state.error, RequestError)
    assert state.error.param == "constraint"
    assert allowed(state) == set()
    assert state.closing(9) is None and not state.complete and not may_end(state)


@pytest.mark.parametrize(
    ("schema", "can"),
    [
        (PERSON, True),
        ({"type": "object", "properties": {"pattern": {"type": "string"}}}, True),
        ({"type": "string", "minLength": 20}, True),
        ({"const": {"pattern": "x"}}, True),
        ({"type": "string", "pattern": "a+"}, False),
        ({"type": "array", "items": {"type": "string", "format": "date"}}, False),
        ({"$defs": {"x": {"multipleOf": 7}}}, False),
        ({"type": "array", "minItems": 1000}, False),
        ({"anyOf": [{"type": "null"}, {"type": "string", "minLength": 100}]}, False),
    ],
)
def test_which_schemas_close(schema: dict[str, Any], can: bool) -> None:
    assert closes(schema) is can


@pytest.mark.parametrize("multiple", [1, 10, 0.01, 2.5, 1000, 7])
def test_multiples_are_followed(grammars: Grammars, multiple: float) -> None:
    constraint = Constraint.json_schema({"type": "number", "multipleOf": multiple})
    assert grammars.compile(constraint).start().mask()


@pytest.mark.parametrize(
    "schema",
    [
        {"multipleOf": 99_999},
        {"multipleOf": 0.099999},
        {"multipleOf": 1e30},
        {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]},
        {"properties": {f"k{index}": {"multipleOf": 5000} for index in range(3)}},
    ],
)
def test_multiples_that_cost_too_much_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="multipleOf"):
        Constraint.json_schema(schema)


def test_a_schema_that_never_ends_does_not_close() -> None:
    endless = {
        "$ref": "#/$defs/n",
        "$defs": {
            "n": {
                "type": "object",
                "properties": {"c": {"$ref": "#/$defs/n"}},
                "required": ["c"],
            }
        },
    }
    assert closes(endless), "by its keywords alone it would"
    assert not Constraint.json_schema(endless).check()
    assert Constraint.json_schema(PERSON).check()


def test_white_space_is_bounded(grammars: Grammars) -> None:
    state = take(grammars.compile(Constraint.json_object()).start(), "{")
    assert ord("\n") in allowed(state) and ord(" ") in allowed(state)
    take(state, "\n" + " " * 16)
    assert not {ord(" "), ord("\n"), ord("\t")} & allowed(state)
