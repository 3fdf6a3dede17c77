"""What an answer must look like: a JSON schema, a regular expression, one of some texts, a grammar.

Owns: the forms of a constraint, their bounds, the check that needs no model, and whether an answer
that has begun can be closed in a moment. Does not know: vocabularies (constraint_state), requests.

The library is llguidance, which follows a constraint by a lexer of derivatives and an Earley parser
(Moskal et al., "Making structured outputs go brrr", 2025). It is imported when it is first needed.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from subsecond.engine.values import short
from subsecond.errors import RequestError

if TYPE_CHECKING:
    import llguidance

    from subsecond.engine.constraint_state import Grammars

MAX_BYTES = 128 << 10
"""Longest schema (as JSON), expression or list of choices."""

MAX_DEPTH = 64
MAX_CHOICES = 1024
MAX_MULTIPLE = 10_000
MAX_CLOSING_TOKENS = 256
"""An answer that takes more tokens than that to be closed isn't closed in a moment."""

_MAX_REPEATS = 32  # of what a closing must write out: characters, items
_WHITE_SPACE = r"( |\n( {0,16}|\t{1,4}))"  # a small model would else go on with it for ever
JSON_OPTIONS = {"whitespace_pattern": _WHITE_SPACE, "lenient": False, "coerce_one_of": False}

# Of a schema's keywords: those whose shortest fulfilment isn't found by taking the simplest next
# character, and those whose value maps names to schemas.
_HARD = frozenset(
    ["pattern", "patternProperties", "format", "multipleOf", "propertyNames", "contains", "not",
     "if", "dependentSchemas", "minProperties"]
)  # fmt: skip
_NAMED = frozenset(["properties", "$defs", "definitions"])
_REPEATED = frozenset(["minLength", "minItems"])
_VALUES = frozenset(["const", "enum", "default", "examples", "example"])

Kind = Literal["json_schema", "regex", "choice", "grammar"]
_WORDS = {
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "choice": "the list of choices",
    "grammar": "the grammar",
}


class Constraint(msgspec.Struct, frozen=True):
    """What a text must look like as a whole; `SamplingParams.constraint`.

    Made by `json_schema`, `json_object`, `regex` and `choice`. The sampler is allowed only tokens
    with which the text can still fit, so a text that ends by itself (finish_reason "stop") fits;
    one that `max_tokens` ends doesn't.

    kind, value: as the four make them (value: the schema as JSON, the expression, the texts as
    JSON, or a grammar in llguidance's dialect of Lark). closable: what `check` says of a grammar,
    which it doesn't look at: it is made by a server's own code.
    """

    kind: Kind
    value: str
    closable: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.value, str) or self.kind not in _WORDS:
            raise RequestError(
                "make a constraint with Constraint.json_schema, .json_object, .regex or .choice",
                "constraint",
            )
        size = len(self.value.encode("utf-8", "replace"))
        if size > MAX_BYTES:
            raise RequestError(
                f"{_WORDS[self.kind]} has {size:,} bytes; at most {MAX_BYTES:,} are accepted",
                "constraint",
            )

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | str) -> Constraint:
        """JSON that fits a schema (a mapping, or its JSON text): draft 2020-12, as far as
        llguidance goes; a keyword that it doesn't do is an error, never ignored. Properties come in
        the schema's order. `format` is enforced. White space between parts is at most a space, or a
        line end with 16 spaces or 4 tabs.
        """
        parsed: Any = schema
        if isinstance(schema, str):
            try:
                parsed = msgspec.json.decode(schema)
            except (msgspec.DecodeError, RecursionError) as error:
                raise RequestError(f"the JSON schema is no JSON: {error}", "constraint") from None
        if not isinstance(parsed, Mapping):
            raise RequestError(
                f"a JSON schema must be an object, not {short(parsed)}", "constraint"
            )
        _check_depth(parsed)
        _check_multiples(parsed)
        if "x-guidance" in parsed:
            raise RequestError(
                "the JSON schema has 'x-guidance', which is no keyword of JSON Schema; remove it",
                "constraint",
            )
        try:
            return Constraint("json_schema", json.dumps(parsed, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the JSON schema is no JSON: {error}", "constraint") from None

    @staticmethod
    def json_object() -> Constraint:
        """Some JSON object."""
        return Constraint("json_schema", '{"type": "object"}')

    @staticmethod
    def regex(pattern: str) -> Constraint:
        """Text that matches a regular expression as a whole: Rust's syntax (Python's without
        look-around and references to groups).
        """
        if not isinstance(pattern, str) or not pattern:
            raise RequestError(
                f"a regular expression must be a text, not {short(pattern)}", "constraint"
            )
        return Constraint("regex", pattern)

    @staticmethod
    def choice(texts: Sequence[str]) -> Constraint:
        """One of up to 1,024 texts."""
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise RequestError(
                f"choices must be a list of texts, at least one, not {short(texts)}", "constraint"
            )
        if len(texts) > MAX_CHOICES:
            raise RequestError(
                f"there are {len(texts)} choices; at most {MAX_CHOICES} are accepted", "constraint"
            )
        for text in texts:
            if not isinstance(text, str) or not text:
                raise RequestError(
                    f"choices must be texts of at least one character, not {short(text)}",
                    "constraint",
                )
        return Constraint("choice", json.dumps(list(dict.fromkeys(texts)), ensure_ascii=False))

    def check(self) -> bool:
        """RequestError, with the library's reason, for what can't be followed. Whether a text that
        has begun can be closed in a moment, wherever it stands (`ConstraintState.closing`). Takes
        milliseconds, a tenth of a second at worst; the interpreter's lock is released meanwhile.
        """
        if self.kind == "grammar":
            return self.closable
        return _checked(self)

    def grammar(self) -> str:
        """The constraint as llguidance reads it. RequestError for what it can't read at all."""
        from llguidance import LLMatcher

        try:
            if self.kind == "json_schema":
                # The options can't be typed: its JsonCompileOptions exists in its stub alone.
                options: Any = JSON_OPTIONS
                return LLMatcher.grammar_from_json_schema(self.value, overrides=options)
            if self.kind == "regex":
                return LLMatcher.grammar_from_regex(self.value)
        except ValueError as error:
            raise self.refused(str(error)) from None
        if self.kind == "choice":
            texts = msgspec.json.decode(self.value, type=list[str])
            return "start: " + " | ".join(json.dumps(text) for text in texts)
        return self.value

    def refused(self, reason: str) -> RequestError:
        """The error for a constraint that the library refuses."""
        first = " ".join(reason.split("<non-verbose/>", maxsplit=1)[0].split())
        return RequestError(f"{_WORDS[self.kind]} can't be followed: {first:.300}", "constraint")

    def _closes(self) -> bool:
        if self.kind == "json_schema":
            return closes(msgspec.json.decode(self.value))
        return self.kind == "choice"


def closes(schema: Any) -> bool:
    """Whether taking the simplest next character closes any text that fits this schema so far:
    false for keywords with which that may never end, or take long.
    """
    return not any(_is_hard(key, value) for key, value in _keywords(schema))


def limits() -> llguidance.LLParserLimits:
    """How much a constraint may cost: some 10 ms to make, some ms a token. Beyond it is an error of
    its request.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=8_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


@functools.lru_cache(maxsize=64)
def _checked(constraint: Constraint) -> bool:
    state = _bytes_only().compile(constraint).start()
    return constraint._closes() and state.closing(MAX_CLOSING_TOKENS) is not None


@functools.cache
def _bytes_only() -> Grammars:
    """The vocabulary in which every byte is a token: enough to check a constraint."""
    from subsecond.engine.constraint_state import Grammars, Vocabulary

    tokens = [bytes([byte]) for byte in range(256)]
    return Grammars(Vocabulary(tokens, control_ids=[], stop_ids=[]))


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for own in level
            for inner in (own.values() if isinstance(own, Mapping) else own)
            if isinstance(inner, (Mapping, list, tuple))
        ]
        if not level:
            return
    raise RequestError(f"the JSON schema is nested deeper than {MAX_DEPTH} levels", "constraint")


def _check_multiples(schema: Any) -> None:
    """The library follows a multiple by as many states as the number is large, and several that
    meet by those of their least common multiple: no limit of its own bounds that.
    """
    digits = [_digits(value) for key, value in _keywords(schema) if key == "multipleOf"]
    if sum(digits) > MAX_MULTIPLE or math.lcm(*digits) > MAX_MULTIPLE:
        raise RequestError(
            f"multipleOf: the numbers of a JSON schema, without their decimal point, may be at "
            f"most {MAX_MULTIPLE:,} together, as may be their least common multiple",
            "constraint",
        )


def _digits(value: Any) -> int:
    """A number without its decimal point; 1 for what the library refuses."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        return 1
    number = Decimal(repr(value))
    if not number.is_finite():
        return 1
    _, digits, exponent = number.normalize().as_tuple()
    scale: int = 10 ** max(0, int(exponent))
    return int("".join(map(str, digits))) * scale


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every keyword of a schema and of those inside it."""
    waiting = [schema]
    while waiting:
        own = waiting.pop()
        if isinstance(own, Mapping):
            for key, value in own.items():
                yield key, value
                if key in _NAMED and isinstance(value, Mapping):
                    waiting += value.values()
                elif key not in _VALUES:
                    waiting.append(value)
        elif isinstance(own, list):
            waiting += own


def _is_hard(key: str, value: Any) -> bool:
    if key in _REPEATED:
        return not isinstance(value, int) or value > _MAX_REPEATS
    return key in _HARD
