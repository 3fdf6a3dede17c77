"""One text in the making: the engine's events become pieces of text.

Owns: the detokenizer, the stop strings and the tokens that count, of one choice. Does not know:
HTTP, deadlines, how pieces are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from subsecond.engine.messages import Event, TokenLogprob
from subsecond.text.stop import StopStrings
from subsecond.text.stream import Detokenizer, TokenBytes

_ENDS = (".", "!", "?", "…", "\n", "。", "！", "？")
_CLOSES = "\"'”’)]»」』*_ \t"


@dataclass(frozen=True)
class Piece:
    """What an event adds to a text. tokens, logprobs: those that count, one entry each (logprobs:
    only where they were asked for). prompt_logprobs: with a text's first piece, where the prompt is
    scored; one a token from the second on. state: of a prompt that is embedded, float32.
    """

    index: int
    text: str
    tokens: Sequence[int]
    logprobs: Sequence[TokenLogprob] = ()
    prompt_logprobs: Sequence[TokenLogprob] = ()
    state: bytes = b""


class ChoiceText:
    """The text of one choice. index: its place in the answer. What comes after a stop string is
    dropped: the tokens of that event up to the one that completed it count.
    """

    def __init__(self, tokenizer: TokenBytes, index: int, stops: Sequence[str]) -> None:
        self.index = index
        self.tokens = 0
        self.finish_reason: str | None = None
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)
        self._tail = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stops.found is not None

    @property
    def at_sentence_end(self) -> bool:
        """Whether the text so far ends where a reader would not miss anything."""
        return self._tail.rstrip(_CLOSES).endswith(_ENDS)

    def take(self, event: Event) -> Piece:
        """The piece of an event; sets `finish_reason` where the text has ended."""
        if self.finish_reason is not None:
            return Piece(self.index, "", ())
        reason = event.finish_reason
        texts: list[str] = []
        taken = 0
        for token in event.tokens:
            taken += 1
            ends = reason == "stop" and taken == len(event.tokens)
            texts.append(self._stops.push("" if ends else self._detokenizer.push(token)))
            if self.stopped:
                break
        self.tokens += taken
        if self.stopped:
            self.finish_reason = "stop"
        elif reason is not None:
            texts.append(self._stops.flush())
            self.finish_reason = "stop" if reason == "complete" else reason
        text = "".join(texts)
        self._tail = (self._tail + text)[-8:]
        logprobs = (event.logprobs or [])[:taken]
        scores = event.prompt_logprobs or ()
        state = event.state or b""
        return Piece(self.index, text, event.tokens[:taken], logprobs, scores, state)
