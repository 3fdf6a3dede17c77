"""What a caller asks for, and the sequences that answer it.

Owns: the sampling parameters with their complete validation, and the state (computed, wanted) of a
sequence. Does not know: text, pages' contents, runtimes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from subsecond.engine.pages import PageTable
from subsecond.errors import RequestError, SubsecondError

INT_MAX = 2**31 - 1
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
MAX_LOGIT_BIASES = 4096


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Every value is checked; a bad one is a RequestError that names it and
    its range.

    max_tokens          tokens to generate, at least 1; None: as many as the context holds
    min_tokens          before that many tokens, neither end-of-text nor stop tokens are chosen
    temperature         0 chooses the most probable token; else logits are divided by it; at most
    100
    top_k               only the k most probable tokens; 0 is off
    top_p               the fewest tokens whose probabilities sum to p; 1 is off
    min_p               only tokens at least min_p times as probable as the best; 0 is off
    repetition_penalty  CTRL's: positive logits of seen tokens are divided by it, negative ones
    multiplied; 1 is off
    presence_penalty    subtracted from the logits of tokens that were generated before; 0 is off
    frequency_penalty   subtracted once for each time the token was generated; 0 is off
    seed                makes the choice reproducible; None: a new one every time
    logit_bias          token id -> value added to its logit, from -100 to 100
    stop                strings that end the text (and are not part of it)
    stop_token_ids      token ids that end the text
    ignore_eos          go on after the model's end-of-text tokens
    logprobs            None: none; k: the chosen token's and the k best tokens' log probabilities,
    at most 20
    n                   independent texts for the same prompt
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, INT_MAX)
        _integer("min_tokens", self.min_tokens, 0, INT_MAX)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens ({self.max_tokens})",
                "min_tokens",
            )
        _number("temperature", self.temperature, 0.0, 100.0)
        _integer("top_k", self.top_k, 0, INT_MAX)
        _number("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, low_open=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**64 - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, 20)
        _integer("n", self.n, 1, 1024)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(
                f"ignore_eos must be true or false, not {self.ignore_eos!r}", "ignore_eos"
            )
        self._check_stops()
        self._check_biases()

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def _check_stops(self) -> None:
        if not isinstance(self.stop, (str, list, tuple)):
            raise RequestError(
                f"stop must be a string or a list of strings, not {self.stop!r}", "stop"
            )
        if len(self.stops) > MAX_STOPS:
            raise RequestError(
                f"stop has {len(self.stops)} strings; at most {MAX_STOPS} are accepted", "stop"
            )
        for text in self.stops:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise RequestError(
                    f"stop must hold strings of 1 to {MAX_STOP_CHARACTERS} characters, not "
                    f"{_short(text)}",
                    "stop",
                )
        if (
            not isinstance(self.stop_token_ids, (list, tuple))
            or len(self.stop_token_ids) > MAX_STOPS
        ):
            raise RequestError(
                f"stop_token_ids must be a list of at most {MAX_STOPS} token ids, not "
                f"{_short(self.stop_token_ids)}",
                "stop_token_ids",
            )
        for token_id in self.stop_token_ids:
            _integer("stop_token_ids", token_id, 0, INT_MAX)

    def _check_biases(self) -> None:
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise RequestError(
                f"logit_bias must map at most {MAX_LOGIT_BIASES} token ids to numbers, not "
                f"{_short(self.logit_bias)}",
                "logit_bias",
            )
        for token_id, bias in self.logit_bias.items():
            _integer("logit_bias", token_id, 0, INT_MAX)
            _number("logit_bias", bias, -100.0, 100.0)


def check_token_ids(token_ids: object, vocab_size: int, param: str = "prompt") -> list[int]:
    """A list of token ids, each below `vocab_size`; RequestError otherwise, or if it is empty."""
    if not isinstance(token_ids, (list, tuple)):
        raise RequestError(
            f"{param} must be a text or a list of token ids, not {_short(token_ids)}", param
        )
    if not token_ids:
        raise RequestError(
            f"{param} is empty; give at least one token (a beginning-of-text token, say)", param
        )
    for token_id in token_ids:
        _integer(param, token_id, 0, vocab_size - 1)
    return list(token_ids)


def _integer(param: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(
            f"{param} must be an integer from {low} to {high}, not {_short(value)}", param
        )


def _number(param: str, value: object, low: float, high: float, *, low_open: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        fits = False
    else:
        fits = (low < value if low_open else low <= value) and value <= high  # false for NaN too
    if not fits:
        bound = f"above {low:g} and at most {high:g}" if low_open else f"from {low:g} to {high:g}"
        raise RequestError(f"{param} must be a number {bound}, not {_short(value)}", param)


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a caller's own class, or an integer too long to be printed
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Logprob:
    """Log probabilities (nat) at one position: the chosen token's, and the best tokens' in falling
    order.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class SequenceState:
    """One text in the making: `tokens` are wanted, the first `computed` of them are in the KV
    pages.

    `tables` holds one page table a cache group; it is empty before the sequence runs and after it
    is retired. `finish_reason`: None while it runs, then "stop", "length" or "cancelled".
    """

    __slots__ = (
        "choice", "computed", "finish_reason", "logprobs", "request", "sampler", "tables", "tokens"
    )  # fmt: skip

    def __init__(self, request: Request, choice: int, tokens: list[int]) -> None:
        self.request = request
        self.choice = choice
        self.tokens = tokens
        self.computed = 0
        self.tables: list[PageTable] = []
        self.sampler: Any = None
        self.logprobs: list[Logprob] = []
        self.finish_reason: str | None = None

    @property
    def wanted(self) -> int:
        """Tokens that the next steps have to compute before a new one can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Number of tokens chosen so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def last_stored(self) -> int:
        """Most positions that this sequence will ever store: the last chosen token isn't
        computed.
        """
        return len(self.request.prompt) + self.request.max_tokens - 1


class Request:
    """A prompt with its parameters; `sequences` are its `params.n` texts.

    The sequences beyond the first begin as forks of the first when the prompt is computed.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        keep: bool = False,
    ) -> None:
        if keep and params.n > 1:
            raise RequestError(f"only a request with one text can be kept; n is {params.n}", "n")
        self.prompt = prompt
        self.params = params
        self.max_tokens = max_tokens
        self.stop_ids = tuple(dict.fromkeys(stop_ids))
        self.seed = (
            params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little")
        )
        self.keep = keep
        self.promise: list[int] = []  # pages promised to this request, one number a cache group
        self.sequences = [SequenceState(self, choice, list(prompt)) for choice in range(params.n)]
        self.scheduled_s = math.nan  # time.monotonic() of the first step that holds a token of it
        self.first_token_s = math.nan
        self.finished_s = math.nan
        self.cached_tokens = 0
        self.error: SubsecondError | None = None  # why it failed, if it did

    @property
    def finished(self) -> bool:
        """Whether every text has ended."""
        return all(sequence.finish_reason is not None for sequence in self.sequences)
