"""Chat templates: messages in, one text out, in a sandbox.

Owns: the jinja2 environment (configured as transformers does it), its bounds, and the rule that
nothing a user writes can become a control token. Does not know: models, sequences. A template is
untrusted: it comes with a model.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from subsecond.errors import ModelError, TextError
from subsecond.text.tokenizer import MAX_TEXT_BYTES, Tokenizer, check_text

MAX_TEMPLATE_CHARACTERS = 256 * 1024
MAX_LOOP_STEPS = 100_000
"""Steps of all `range` loops of one rendering together, and the largest factor of a repetition."""

MAX_DEPTH = 32
"""Nesting of lists and mappings inside a message or a tool."""

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled chat template.

    source: jinja2 text. special_tokens: the names that a template may use (`bos_token`, ...) and
    their spellings. Raises ModelError if the source can't be compiled.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        from jinja2.exceptions import TemplateError

        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise ModelError(
                f"chat template has {len(source):,} characters; at most "
                f"{MAX_TEMPLATE_CHARACTERS:,} are accepted"
            )
        self._special_tokens = dict(special_tokens or {})
        self._steps_left = [0]
        try:
            self._template = _environment(self._steps_left).from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ModelError(f"chat template can't be compiled: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation. Raises TextError, with the template's own message if it
        refuses the messages.
        """
        from jinja2.exceptions import TemplateError

        self._steps_left[0] = MAX_LOOP_STEPS
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                **self._special_tokens,
                **variables,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            ):
                size += len(piece)
                if size > MAX_TEXT_BYTES:
                    raise TextError(
                        f"the rendered conversation exceeds {MAX_TEXT_BYTES:,} bytes; shorten it"
                    )
                pieces.append(piece)
        except TextError:
            raise
        except TemplateError as error:
            raise TextError(
                f"the model's chat template refuses these messages: {error.message}"
            ) from None
        except (
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            raise TextError(
                f"the model's chat template failed on these messages: {error}"
            ) from None
        return "".join(pieces)

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], **options: Any
    ) -> list[int]:
        """Token ids of a conversation: the template's markers are control tokens, a user's text
        never is.

        options: as for `render`. A control token's spelling inside a message is broken by a mark
        that occurs nowhere in the messages; the mark is taken out again after the text was cut at
        the real control tokens.
        """
        check_messages(messages)
        strings = list(_strings([messages, options.get("tools")], 0))
        control = tokenizer.control_tokens
        spellings = [spelling for spelling in control if any(spelling in text for text in strings)]
        if not spellings:
            return tokenizer.encode(self.render(messages, **options), control=True, affixes=False)
        mark = _unused_mark(strings)
        pattern = re.compile(
            "|".join(re.escape(s) for s in sorted(spellings, key=len, reverse=True))
        )

        def broken(text: str) -> str:
            return pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)

        if options.get("tools"):
            options["tools"] = _mapped(options["tools"], broken)
        rendered = check_text(
            self.render(_mapped(messages, broken), **options), "the rendered conversation"
        )
        segments = tokenizer.split_control(rendered)
        return tokenizer.encode_segments(
            [part.replace(mark, "") if isinstance(part, str) else part for part in segments]
        )


def check_messages(messages: object) -> None:
    """TextError unless `messages` is a non-empty list of mappings with a role and valid Unicode
    everywhere.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise TextError("messages must be a non-empty list of {'role': ..., 'content': ...}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TextError(f"messages[{index}] must be a mapping, not {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise TextError(f"messages[{index}].role must be a name such as 'user', not {role!r}")
        if "content" not in message and "tool_calls" not in message:
            raise TextError(f"messages[{index}] has no content")
    for text in _strings(messages, 0):
        check_text(text, "a message")


def _environment(steps_left: list[int]) -> Any:
    from jinja2.exceptions import SecurityError, TemplateRuntimeError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """Bounds what a template can spend: loop steps, repetitions, calls with huge numbers."""

        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            for value in (left, right):
                if isinstance(value, int) and abs(value) > MAX_LOOP_STEPS:
                    raise SecurityError(f"operand {value} of {operator!r} is too large")
            if operator == "%" and isinstance(left, str):
                raise SecurityError("string formatting with % isn't allowed in a chat template")
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                if isinstance(value, int) and abs(value) > MAX_LOOP_STEPS:
                    raise SecurityError(f"argument {value} is too large")
            return super().call(context, function, *args, **kwargs)

    def bounded_range(*bounds: int) -> range:
        numbers = range(*bounds)
        steps_left[0] -= min(len(numbers), MAX_LOOP_STEPS + 1)
        if steps_left[0] < 0:
            raise SecurityError(f"the template's loops exceed {MAX_LOOP_STEPS:,} steps")
        return numbers

    def bounded(padding: Callable[..., Any]) -> Callable[..., Any]:
        def checked(value: Any, width: int = 4, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(width, int) or abs(width) > MAX_LOOP_STEPS:
                raise SecurityError(f"width {width!r} is too large")
            return padding(value, width, *args, **kwargs)

        return checked

    def raise_exception(message: str) -> None:
        raise TemplateRuntimeError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    for name in ("center", "indent"):  # filters that make any amount of text of a number
        environment.filters[name] = bounded(environment.filters[name])
    del environment.filters["format"], environment.globals["lipsum"]
    environment.filters["tojson"] = tojson
    environment.globals.update(
        range=bounded_range, raise_exception=raise_exception, strftime_now=time.strftime
    )
    return environment


def _strings(value: Any, depth: int) -> Iterator[str]:
    """Every string inside messages or tools, keys included."""
    if depth > MAX_DEPTH:
        raise TextError(f"a message is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key, depth + 1)
            yield from _strings(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item, depth + 1)


def _mapped(value: Any, change: Any) -> Any:
    """The same structure with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change) for item in value]
    return value


def _unused_mark(strings: Sequence[str]) -> str:
    """A noncharacter, which no text should hold, that these texts indeed don't hold."""
    for code in range(0xFDD0, 0xFDF0):
        if not any(chr(code) in text for text in strings):
            return chr(code)
    raise TextError("the messages hold every noncharacter U+FDD0 to U+FDEF; remove them")
