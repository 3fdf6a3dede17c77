"""Chat templates: messages in, one text out, in a sandbox.

Owns: the rule that nothing a user writes can become a control token. Does not know: models,
sequences, how a rendering is bounded (sandbox). A template is untrusted: it comes with a model.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from subsecond.errors import ModelError, TextError
from subsecond.text.sandbox import Budget, compiled
from subsecond.text.tokenizer import MAX_TEXT_BYTES, Tokenizer, check_text

MAX_TEMPLATE_CHARACTERS = 256 * 1024
MAX_DEPTH = 32
"""Nesting of lists and mappings inside a message or a tool."""

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

_FAILURES = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)

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
        self._budget = Budget()
        self._lock = threading.Lock()  # one rendering at a time spends the budget
        try:
            self._template = compiled(source, self._budget)
        except (TemplateError, TextError, *_FAILURES) as error:
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
        with self._lock:
            self._budget.restart()
            return self._render(
                **self._special_tokens,
                **variables,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )

    def _render(self, **variables: Any) -> str:
        from jinja2.exceptions import TemplateError

        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(**variables):
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
        except _FAILURES as error:
            reason = str(error) or type(error).__name__
            raise TextError(
                f"the model's chat template failed on these messages: {reason}"
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
