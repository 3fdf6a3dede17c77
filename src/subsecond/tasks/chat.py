"""Chat: a conversation whose earlier turns are not computed again.

Owns: the messages of one conversation. Does not know: where the pages of earlier turns are (the
engine keeps them and finds the common beginning by token ids).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams
from subsecond.errors import RequestError, TextError
from subsecond.tasks.completion import Piece
from subsecond.tasks.generate import LLM
from subsecond.tasks.prompts import one_params
from subsecond.text.messages import check_messages


class Chat:
    """A conversation with a model that has a chat template; earlier turns aren't computed again.

    >>> chat = Chat(llm, system="Answer briefly.")
    >>> print(chat.send("Name a colour."))
    >>> for piece in chat.stream("And another?"):
    ...     print(piece.text, end="", flush=True)

    messages: the turns so far, [{"role": "user", "content": "..."}, ...]; may be read and replaced
    (`load`). system: the instruction that comes before all turns; None: the template's own.
    params: for all answers; None: `SamplingParams()`. answer_tokens: most tokens of an answer where
    `params` don't say; None: 1,024, or what the context still holds.

    Raises TextError if the model has no chat template.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        system: str | None = None,
        params: SamplingParams | None = None,
        answer_tokens: int | None = None,
    ) -> None:
        if not llm.has_chat_template:
            raise TextError(
                "the model has no chat template; use plain completion (generate, --raw)"
            )
        self.messages: list[dict[str, Any]] = []
        self.system = system
        self.params = params
        self.answer_tokens = answer_tokens
        self._llm = llm
        self._request: Request | None = None

    def stream(self, text: str, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Sends a message; a piece of the answer a token.

        The turn becomes part of the conversation when the answer has begun; an answer that is
        closed early is kept as far as it came. Raises RequestError, and leaves the conversation as
        it was, if `text` is empty, it no longer fits the context or a parameter is wrong; TextError
        if `text` is no valid text.
        """
        if isinstance(text, str) and not text:
            raise RequestError("the message is empty; give at least one character", "text")
        turns = [*self.messages, {"role": "user", "content": text}]
        ids = self._llm.encode_chat(self._with_system(turns))
        chosen = one_params(self.params if params is None else params)
        if chosen.max_tokens is None and self.answer_tokens is not None:
            room = max(1, self._llm.context - len(ids))
            chosen = replace(chosen, max_tokens=min(self.answer_tokens, room))
        self._request = self._llm.request(ids, chosen)
        return self._answer(turns, self._llm.stream_request(self._request))

    def stop(self) -> None:
        """Ends the running answer, which is kept as far as it came. May be called from other
        threads and from signal handlers.
        """
        if self._request is not None:
            self._llm.cancel(self._request)

    def send(self, text: str, params: SamplingParams | None = None) -> str:
        """Sends a message and returns the whole answer."""
        return "".join(piece.text for piece in self.stream(text, params))

    def reset(self) -> None:
        """Forgets all turns; the system message stays."""
        self.messages = []

    def load(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Replaces the turns; a system message at the beginning becomes `system`. TextError if they
        are malformed.
        """
        turns, system = check_messages(messages), None
        if turns[0]["role"] == "system":
            system = turns.pop(0).get("content")
            if not isinstance(system, str):
                raise TextError("the system message must be a text")
        self.messages, self.system = turns, system

    def saved(self) -> list[dict[str, Any]]:
        """All messages, the system message first; `load` takes them."""
        return self._with_system(self.messages)

    def _with_system(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return (
            turns if self.system is None else [{"role": "system", "content": self.system}, *turns]
        )

    def _answer(self, turns: list[dict[str, Any]], pieces: Iterator[Piece]) -> Iterator[Piece]:
        texts: list[str] = []
        try:
            for piece in pieces:
                texts.append(piece.text)
                yield piece
        finally:
            if texts:
                self.messages = [*turns, {"role": "assistant", "content": "".join(texts)}]
            getattr(pieces, "close", lambda: None)()
