"""What generation returns, and the text state that makes it of tokens.

Owns: the result types, and per text the detokenizer and the stop strings. Does not know: how tokens
are computed.
"""

from __future__ import annotations

import msgspec

from subsecond.engine.request import Logprob, Request, SequenceState
from subsecond.text.stop import StopStrings
from subsecond.text.stream import Detokenizer
from subsecond.text.tokenizer import Tokenizer


class Usage(msgspec.Struct, frozen=True):
    """Tokens. cached_tokens: how many of the prompt's were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Timing(msgspec.Struct, frozen=True):
    """Seconds. queue: until the first step; prefill: from there to the first token; decode: from
    there to the end.
    """

    queue_s: float
    prefill_s: float
    decode_s: float

    @property
    def total_s(self) -> float:
        """From the request to its end."""
        return self.queue_s + self.prefill_s + self.decode_s


class Output(msgspec.Struct, frozen=True):
    """One text. finish_reason: "stop" (end of text, stop token or stop string), "length" or
    "cancelled".

    token_ids hold the token that ended the text; `text` doesn't hold it, nor the stop string.
    logprobs: one entry a token if they were asked for, else None.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[Logprob, ...] | None = None


class Completion(msgspec.Struct, frozen=True):
    """The answer to one prompt: `outputs` holds `n` texts; text, token_ids, finish_reason, logprobs
    are the first's.
    """

    outputs: tuple[Output, ...]
    usage: Usage
    timing: Timing

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> tuple[Logprob, ...] | None:
        return self.outputs[0].logprobs


class Piece(msgspec.Struct, frozen=True):
    """What one token adds to a text while it streams. The pieces' texts sum up to the whole text.

    text may be empty: inside a character, or while a stop string may be beginning. index: which of
    n texts. finish_reason: None but for the last piece of a text.
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
            if last:
                text += self._detokenizer.flush()
            text = self._stops.push(text)
            if self._stops.found is not None:
                self.finish_reason = "stop"
            elif last:
                text += self._stops.flush()
                self.finish_reason = sequence.finish_reason
            self._texts.append(text)
            pieces.append(Piece(text, token_id, sequence.choice, self.finish_reason, logprob))
        if sequence.finish_reason is not None and self.finish_reason is None:
            self.finish_reason = sequence.finish_reason  # cancelled: no last token
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


def timing_of(request: Request, submitted_s: float) -> Timing:
    """Timing of a finished request."""
    return Timing(
        queue_s=request.scheduled_s - submitted_s,
        prefill_s=request.first_token_s - request.scheduled_s,
        decode_s=request.finished_s - request.first_token_s,
    )
