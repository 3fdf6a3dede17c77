"""Chat templates: messages in, one text out, in a sandbox.

Owns: the rule that nothing a user writes can become a control token, and that nothing a caller
gives is silently left out by a template that doesn't know it. Does not know: models, sequences, how
a rendering is bounded (sandbox). A template is untrusted: it comes with a model.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from subsecond.errors import ModelError, TextError
from subsecond.text import messages as shapes
from subsecond.text.budget import Budget
from subsecond.text.messages import Message, check_mappings, check_messages
from subsecond.text.provenance import Traced, joined, mask_of
from subsecond.text.sandbox import compiled
from subsecond.text.tokenizer import MAX_TEXT_BYTES, Tokenizer, check_text

MAX_TEMPLATE_CHARACTERS = 256 * 1024

_ROLES = ("system", "user", "assistant")
_OTHER_ROLES = ("developer", "tool", "function", "ipython", "model", "tool_results", "observation")

_FAILURES = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
    SyntaxError,  # Python's own: blocks nested too deeply, a break outside a loop
)


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
        self._takes_parts: dict[int, bool] = {}
        try:
            self._template, self._names, self._texts = compiled(source, self._budget)
        except (TemplateError, TextError, *_FAILURES) as error:
            raise ModelError(f"chat template can't be compiled: {error}") from None

    @property
    def takes_tools(self) -> bool:
        """Whether the template knows `tools`."""
        return "tools" in self._names

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation. Raises TextError, with the template's own message if it
        refuses the messages.
        """
        return "".join(
            self._render(
                **variables,
                messages=messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
            )
        )

    def _render(self, **variables: Any) -> Traced:
        """The rendering, with the origin of each character."""
        with self._lock:
            self._budget.restart()
            return self._run({**self._special_tokens, **variables})

    def _run(self, variables: dict[str, Any]) -> Traced:
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
        return joined(pieces)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation: the template's markers are control tokens, a user's text
        never is.

        continue_final_message: the text ends with the last message's content. variables: further
        ones of the template. Raises TextError for messages that are malformed or that the template
        refuses, and for roles, tools, documents and variables that it doesn't know.

        Every text of the caller but the roles, which are names that the template knows, is traced
        through the rendering. A control token counts only where the template wrote all of it, so
        no way of gluing, replacing or recasing texts makes one of a caller's characters.
        """
        given: dict[str, Any] = {
            "messages": check_messages(messages),
            "tools": check_mappings(tools, "tools"),
            "documents": check_mappings(documents, "documents"),
            "variables": _variables(variables),
        }
        self._check_known(given)
        most_parts = shapes.most_parts(given["messages"])
        if most_parts > 0 and not self._parts_are_taken(min(most_parts, 2)):
            given["messages"] = shapes.joined(given["messages"])
        end = content = ""
        if continue_final_message:
            end = shapes.unused_mark(list(shapes.strings(given["messages"][-1])))
            content = _mark_end(given["messages"][-1], end)
        variables = {name: shapes.mapped(value, Traced) for name, value in given.items()}
        for message, known in zip(variables["messages"], given["messages"], strict=True):
            message["role"] = known["role"]
        rendered = self._render(
            **variables.pop("variables"),
            **variables,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
        )
        if continue_final_message:
            rendered = _cut_at(rendered, end, content)
        check_text(rendered, "the rendered conversation")
        return tokenizer.encode_segments(tokenizer.split_control(rendered, mask_of(rendered)))

    def _check_known(self, given: Mapping[str, Any]) -> None:
        """TextError for what the template would leave out without a word."""
        for index, message in enumerate(given["messages"]):
            role = message["role"]
            if role not in _ROLES and role not in self._texts:
                known = [*_ROLES, *(name for name in _OTHER_ROLES if name in self._texts)]
                raise TextError(
                    f"messages[{index}].role is {role!r}, which the model's chat template doesn't "
                    f"know; it knows {', '.join(known)}"
                )
            if message.get("tool_calls") and not {"tool_calls"} & (self._texts | self._names):
                raise TextError(
                    f"messages[{index}] has tool_calls, and the model's chat template has no place "
                    "for them; write them into the content"
                )
        for name in ("tools", "documents"):
            if given[name] and name not in self._names:
                raise TextError(
                    f"the model's chat template doesn't take {name}; describe them in a system "
                    "message"
                )
        for name in given["variables"]:
            if name not in self._names:
                raise TextError(
                    f"template_variables: the model's chat template doesn't use {name!r}"
                )

    def _parts_are_taken(self, count: int) -> bool:
        """Whether the template itself reads `count` content parts; found out by a rendering."""
        if count not in self._takes_parts:
            words = [f"probe{index}" for index in range(count)]
            parts = [{"type": "text", "text": word} for word in words]
            try:
                text = self.render([{"role": "user", "content": parts}])
            except TextError:
                text = ""
            written_out = "'type'" in text or '"type"' in text
            self._takes_parts[count] = not written_out and all(word in text for word in words)
        return self._takes_parts[count]


def _variables(variables: object) -> dict[str, Any]:
    if variables is None:
        return {}
    if not isinstance(variables, Mapping) or not all(isinstance(n, str) for n in variables):
        raise TextError(
            "template_variables must map names to values, such as {'enable_thinking': False}"
        )
    for name in ("messages", "tools", "documents", "add_generation_prompt"):
        if name in variables:
            raise TextError(f"template_variables holds {name!r}, which is an argument of its own")
    return dict(shapes.plain(variables, "template_variables"))


def _mark_end(message: dict[str, Any], mark: str) -> str:
    """Puts `mark` and a space behind the content, and returns the content; templates that trim
    contents take the space.
    """
    holder, key = message, "content"
    if isinstance(message.get("content"), list) and message["content"]:
        holder, key = message["content"][-1], "text"
    content = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(content, str):
        raise TextError("continue_final_message: the last message has no text to go on with")
    holder[key] = content + mark + " "
    return content


def _cut_at(rendered: Traced, mark: str, content: str) -> Traced:
    """The text before `mark`; without the white space before it where the template trims."""
    place = rendered.rfind(mark)
    if place < 0 or content.strip() not in rendered:
        raise TextError(
            "continue_final_message: the model's chat template changes the last message, so it "
            "can't be continued"
        )
    text = rendered[:place]
    return text if rendered.startswith(mark + " ", place) else text.rstrip()
