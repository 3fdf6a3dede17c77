"""What generation returns, and the text state that makes it of tokens.

Owns: the result types, and per text the detokenizer and the stop strings. Does not know: how tokens
are computed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from subsecond.engine.request import Logprob, Request, SequenceState
from subsecond.text.stop import StopStrings
from subsecond.text.stream import Detokenizer
from subsecond.text.tokenizer import Tokenizer


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request.

    prompt_tokens: of the prompt, the template's included. completion_tokens: of all its texts
    together. cached_tokens: how many of the prompt's were not computed again. drafted_tokens: how
    many were guessed and checked together; accepted_tokens: how many of these guesses were right.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Timing(msgspec.Struct, frozen=True):
    """Seconds of one request.

    queue_s: until its first step. prefill_s: from there to its first token. decode_s: from there to
    its end.
    """

    queue_s: float
    prefill_s: float
    decode_s: float

    @property
    def total_s(self) -> float:
        """From the request to its end."""
        return self.queue_s + self.prefill_s + self.decode_s


class Output(msgspec.Struct, frozen=True):
    """One text.

    text: without the token or the stop string that ended it, and without the bytes of a character
    that the last token left unfinished. token_ids: all tokens that were generated, the one that
    ended the text included. finish_reason: "stop" (end of text, stop token or stop string),
    "length" (max_tokens) or "cancelled". logprobs: one Logprob a token if they were asked for
    (`SamplingParams.logprobs`), else None.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[Logprob, ...] | None = None


class Completion(msgspec.Struct, frozen=True):
    """The answer to one prompt.

    outputs: `SamplingParams.n` texts. text, token_ids, finish_reason, logprobs: the first's. usage:
    tokens. timing: seconds.
    """

    outputs: tuple[Output, ...]
    usage: Usage
    timing: Timing

    def to_dict(self) -> dict[str, Any]:
        """All of it as dicts, lists, texts and numbers, as `json.dumps` takes them."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @property
    def text(self) -> str:
        """The first text."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Its tokens, the one that ended it included."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str:
        """Why it ended: "stop", "length" or "cancelled"."""
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> tuple[Logprob, ...] | None:
        """One Logprob a token, if they were asked for."""
        return self.outputs[0].logprobs


class Piece(msgspec.Struct, frozen=True):
    """What one token adds to a text while it streams. The pieces' texts sum up to the whole text.

    text may be empty: inside a character, or while a stop string may be beginning. token_id: the
    token. index: which of n texts. finish_reason: as in Output for the last piece of a text, else
    None. logprob: of the token, if it was asked for.
    """

    text: str
    token_id: int
    index: int = 0
    finish_reason: str | None = None
    logprob: Logprob | None = None


class TextState:
    """One text in the making: takes the tokens that a sequence has won, gives pieces."""

    def __init__(self, tokenizer: Tokenizer, sequence: SequenceState) -> None:
        params = sequence.request.params
        self.sequence = sequence
        self.finish_reason: str | None = None
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(params.stops)
        self._texts: list[str] = []
        self._taken = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stops.found is not None

    def advance(self) -> list[Piece]:
        """The pieces of new tokens. After a stop string was found, the rest is dropped."""
        pieces: list[Piece] = []
        sequence, prompt = self.sequence, len(self.sequence.request.prompt)
        while self.finish_reason is None and self._taken < sequence.generated:
            token_id = sequence.tokens[prompt + self._taken]
            logprob = sequence.logprobs[self._taken] if sequence.logprobs else None
            self._taken += 1
            last = self._taken == sequence.generated and sequence.finish_reason is not None
            ends = (
                last and sequence.finish_reason == "stop"
            )  # the token that ends a text isn't in it
            text = "" if ends else self._detokenizer.push(token_id)
            text = self._stops.push(text)
            if self._stops.found is not None:
                self.finish_reason = "stop"
            elif last:
                text += self._stops.flush()
                self.finish_reason = _told(sequence.finish_reason)
            self._texts.append(text)
            pieces.append(Piece(text, token_id, sequence.choice, self.finish_reason, logprob))
        if sequence.finish_reason is not None and self.finish_reason is None:
            self.finish_reason = _told(sequence.finish_reason)  # cancelled: no last token
        return pieces

    def output(self) -> Output:
        """The text so far."""
        sequence, prompt = self.sequence, len(self.sequence.request.prompt)
        return Output(
            text="".join(self._texts),
            token_ids=tuple(sequence.tokens[prompt : prompt + self._taken]),
            finish_reason=self.finish_reason or "cancelled",
            logprobs=None
            if sequence.request.params.logprobs is None
            else tuple(sequence.logprobs[: self._taken]),
        )


def _told(reason: str | None) -> str | None:
    """The engine's word for an end as users know it: a constraint's end is a stop."""
    return "stop" if reason == "complete" else reason


def timing_of(request: Request, submitted_s: float) -> Timing:
    """Timing of a finished request."""
    return Timing(
        queue_s=request.scheduled_s - submitted_s,
        prefill_s=request.first_token_s - request.scheduled_s,
        decode_s=request.finished_s - request.first_token_s,
    )
