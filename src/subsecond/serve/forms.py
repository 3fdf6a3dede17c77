"""How answers of `/v1/chat/completions` and `/v1/completions` are written, whole and as events.

Owns: which struct says what, and when. Does not know: the engine, deadlines, sending.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from subsecond.serve import logprobs
from subsecond.serve.calls import CallsOfTexts
from subsecond.serve.choice_text import Piece
from subsecond.serve.errors import ServeError
from subsecond.serve.form import Summary
from subsecond.serve.schema import chat, completions, wire
from subsecond.serve.schema.shared import Usage
from subsecond.text.tokenizer import Tokenizer
from subsecond.text.tool_calls import Syntax


class ChatForm:
    """A chat completion. id: of the answer; created: Unix seconds. syntax: of the calls that are to
    be read out of the texts.
    """

    def __init__(
        self,
        request: chat.Chat,
        tokenizer: Tokenizer,
        id: str,
        created: int,
        syntax: Syntax | None = None,
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._id = f"chatcmpl-{id}"
        self._created = created
        self._with_logprobs = request.params.logprobs is not None
        self._said: set[int] = set()  # choices whose role is said
        self._texts: dict[int, list[str]] = defaultdict(list)
        self._logprobs: dict[int, list[chat.TokenLogprob]] = defaultdict(list)
        self._calls = None if syntax is None else CallsOfTexts(syntax, id)

    def piece(self, piece: Piece) -> bytes:
        """Of Form."""
        entries = logprobs.of_chat(self._tokenizer, piece) if self._with_logprobs else []
        index, text, calls = piece.index, piece.text, list[chat.DeltaToolCall]()
        if self._calls is not None:
            text, calls = self._calls[index].push(text)
        return self._grow(index, text, calls, entries)

    def finished(self, index: int, reason: str, summary: Summary | None) -> bytes:
        """Of Form."""
        data = self._rest(index)
        role = UNSET if index in self._said else "assistant"
        reason = self._reason(index, reason)
        choice = chat.ChunkChoice(index, chat.Delta(role), reason)  # type: ignore[arg-type]
        return data + self._chunk([choice], summary)

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
        for index in range(len(reasons)):
            self._rest(index)
        choices = [
            chat.Choice(
                index,
                self._message(index),
                self._reason(index, reason),
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

    def _grow(
        self,
        index: int,
        text: str,
        calls: list[chat.DeltaToolCall],
        entries: list[chat.TokenLogprob],
    ) -> bytes:
        if not self._request.stream:
            self._texts[index].append(text)
            self._logprobs[index] += entries
            return b""
        first = index not in self._said
        self._said.add(index)
        if not (first or text or calls or entries):
            return b""
        # OpenAI's first event has a role and a content; the events of calls have none.
        content = text if text or not calls else UNSET
        delta = chat.Delta("assistant" if first else UNSET, content, calls or UNSET)
        own = chat.Logprobs(entries) if self._with_logprobs else None
        return self._chunk([chat.ChunkChoice(index, delta, None, own)])

    def _rest(self, index: int) -> bytes:
        """What was held of a text, once it has ended."""
        if self._calls is None:
            return b""
        text, calls = self._calls[index].finish()
        return self._grow(index, text, calls, []) if text or calls else b""

    def _reason(self, index: int, reason: str) -> str:
        called = self._calls is not None and self._calls[index].calls
        return "tool_calls" if called and reason == "stop" else reason

    def _message(self, index: int) -> chat.AnswerMessage:
        text = "".join(self._texts[index])
        if self._calls is None or not self._calls[index].calls:
            return chat.AnswerMessage(text)
        calls = [
            chat.AnswerToolCall(call.id, chat.AnswerFunction(call.name, call.arguments))
            for call in self._calls[index].calls
        ]
        return chat.AnswerMessage(text or None, calls)

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
    """A text completion. id, created: as in ChatForm. prompts: the token ids of each prompt, for an
    answer that begins with it; filled in before the first piece.
    """

    def __init__(
        self,
        request: completions.Completion,
        tokenizer: Tokenizer,
        id: str,
        created: int,
        prompts: Sequence[list[int]],
    ) -> None:
        self._prompts = prompts
        self._echoed: set[int] = set()
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
        index, text, parts = piece.index, piece.text, list[completions.Logprobs]()
        if self._request.prompt_only:
            piece = Piece(index, "", (), (), piece.prompt_logprobs)
            text = ""
        if self._request.echo and index not in self._echoed:
            self._echoed.add(index)
            prompt = self._prompts[index // self._request.params.n]
            text = self._prompt_text(index) + text
            if self._with_logprobs:
                parts.append(logprobs.of_prompt(self._tokenizer, prompt, piece.prompt_logprobs))
            self._offsets[index] = len(text) - len(piece.text)
        if self._with_logprobs:
            offset = self._offsets[index]
            parts.append(logprobs.of_completion(self._tokenizer, piece, offset))
        self._offsets[index] += len(piece.text)
        if not self._request.stream:
            self._texts[index].append(text)
            self._logprobs[index] += parts
            return b""
        if not text and not parts:
            return b""
        own = logprobs.joined(parts) if parts else None
        return self._event([completions.Choice(index, text, None, own)])

    def finished(self, index: int, reason: str, summary: Summary | None) -> bytes:
        """Of Form."""
        return self._event([completions.Choice(index, "", reason)], summary)

    def last(self, summary: Summary) -> bytes:
        """Of Form."""
        if not self._request.include_usage:
            return wire.DONE
        return self._event([], summary, self._usage(summary)) + wire.DONE

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
        return wire.encode(self._answer(choices, summary, self._usage(summary)))

    def _prompt_text(self, index: int) -> str:
        """The prompt of a choice as it was sent, or what its token ids say."""
        place = index // self._request.params.n
        given = self._request.prompts[place]
        return given if isinstance(given, str) else self._tokenizer.decode(given)

    def _usage(self, summary: Summary) -> Usage:
        """Where only the prompt was wanted, the token that was chosen behind it isn't told of."""
        told = 0 if self._request.prompt_only else summary.completion_tokens
        return Usage.of(summary.prompt_tokens, told, summary.cached_tokens)

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
