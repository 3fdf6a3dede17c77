"""How answers of `/v1/chat/completions` and `/v1/completions` are written, whole and as events.

Owns: which struct says what, and when. Does not know: the engine, deadlines, sending.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from subsecond.serve import logprobs
from subsecond.serve.choice_text import Piece
from subsecond.serve.errors import ServeError
from subsecond.serve.generation import Summary
from subsecond.serve.schema import chat, completions, wire
from subsecond.serve.schema.shared import Usage
from subsecond.text.tokenizer import Tokenizer


class ChatForm:
    """A chat completion. id: of the answer; created: Unix seconds."""

    def __init__(self, request: chat.Chat, tokenizer: Tokenizer, id: str, created: int) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._id = f"chatcmpl-{id}"
        self._created = created
        self._with_logprobs = request.params.logprobs is not None
        self._texts: dict[int, list[str]] = defaultdict(list)
        self._logprobs: dict[int, list[chat.TokenLogprob]] = defaultdict(list)

    def piece(self, piece: Piece) -> bytes:
        """Of Form."""
        entries = logprobs.of_chat(self._tokenizer, piece) if self._with_logprobs else []
        if not self._request.stream:
            self._texts[piece.index].append(piece.text)
            self._logprobs[piece.index] += entries
            return b""
        first = not self._texts[piece.index]
        if first:
            self._texts[piece.index].append("")  # its role is said
        if not first and not piece.text and not entries:
            return b""
        delta = chat.Delta("assistant" if first else UNSET, piece.text)
        own = chat.Logprobs(entries) if self._with_logprobs else None
        return self._chunk([chat.ChunkChoice(piece.index, delta, None, own)])

    def finished(self, index: int, reason: str, summary: Summary | None) -> bytes:
        """Of Form."""
        role = UNSET if self._texts[index] else "assistant"
        choice = chat.ChunkChoice(index, chat.Delta(role), reason)  # type: ignore[arg-type]
        return self._chunk([choice], summary)

    def last(self, summary: Summary) -> bytes:
        """Of Form."""
        if not self._request.include_usage:
            return wire.DONE
        chunk = chat.ChatChunk(
            id=self._id,
            created=self._created,
            model=self._request.model,
            choices=[],
            usage=_usage(summary),
            subsecond=summary.promise,
        )
        return wire.data_event(chunk) + wire.DONE

    def failed(self, error: ServeError) -> bytes:
        """Of Form."""
        return wire.error_event(error)

    def whole(self, reasons: Sequence[str], summary: Summary) -> bytes:
        """Of Form."""
        choices = [
            chat.Choice(
                index,
                chat.AnswerMessage("".join(self._texts[index])),
                reason,
                chat.Logprobs(self._logprobs[index]) if self._with_logprobs else None,
            )
            for index, reason in enumerate(reasons)
        ]
        return wire.encode(
            chat.ChatCompletion(
                id=self._id,
                created=self._created,
                model=self._request.model,
                choices=choices,
                usage=_usage(summary),
                metadata=self._request.metadata or UNSET,
                subsecond=summary.promise,
            )
        )

    def _chunk(self, choices: list[chat.ChunkChoice], summary: Summary | None = None) -> bytes:
        return wire.data_event(
            chat.ChatChunk(
                id=self._id,
                created=self._created,
                model=self._request.model,
                choices=choices,
                usage=None if self._request.include_usage else UNSET,
                subsecond=UNSET if summary is None else summary.promise,
            )
        )


class CompletionForm:
    """A text completion. id, created: as in ChatForm."""

    def __init__(
        self, request: completions.Completion, tokenizer: Tokenizer, id: str, created: int
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._id = f"cmpl-{id}"
        self._created = created
        self._with_logprobs = request.params.logprobs is not None
        self._texts: dict[int, list[str]] = defaultdict(list)
        self._logprobs: dict[int, list[completions.Logprobs]] = defaultdict(list)
        self._offsets: dict[int, int] = defaultdict(int)

    def piece(self, piece: Piece) -> bytes:
        """Of Form."""
        index, own = piece.index, None
        if self._with_logprobs:
            own = logprobs.of_completion(self._tokenizer, piece, self._offsets[index])
        self._offsets[index] += len(piece.text)
        if not self._request.stream:
            self._texts[index].append(piece.text)
            if own is not None:
                self._logprobs[index].append(own)
            return b""
        if not piece.text and own is None:
            return b""
        return self._event([completions.Choice(index, piece.text, None, own)])

    def finished(self, index: int, reason: str, summary: Summary | None) -> bytes:
        """Of Form."""
        return self._event([completions.Choice(index, "", reason)], summary)

    def last(self, summary: Summary) -> bytes:
        """Of Form."""
        if not self._request.include_usage:
            return wire.DONE
        return self._event([], summary, _usage(summary)) + wire.DONE

    def failed(self, error: ServeError) -> bytes:
        """Of Form."""
        return wire.error_event(error)

    def whole(self, reasons: Sequence[str], summary: Summary) -> bytes:
        """Of Form."""
        choices = [
            completions.Choice(
                index,
                "".join(self._texts[index]),
                reason,
                logprobs.joined(self._logprobs[index]) if self._with_logprobs else None,
            )
            for index, reason in enumerate(reasons)
        ]
        return wire.encode(self._answer(choices, summary, _usage(summary)))

    def _event(
        self,
        choices: list[completions.Choice],
        summary: Summary | None = None,
        usage: Usage | None = None,
    ) -> bytes:
        shown: Usage | UnsetType | None = usage if self._request.include_usage else UNSET
        return wire.data_event(self._answer(choices, summary, shown))

    def _answer(
        self,
        choices: list[completions.Choice],
        summary: Summary | None,
        usage: Usage | UnsetType | None,
    ) -> completions.TextCompletion:
        return completions.TextCompletion(
            id=self._id,
            created=self._created,
            model=self._request.model,
            choices=choices,
            usage=usage,
            subsecond=UNSET if summary is None else summary.promise,
        )


def _usage(summary: Summary) -> Usage:
    return Usage.of(summary.prompt_tokens, summary.completion_tokens, summary.cached_tokens)
