"""What a caller asks for, and the sequences that answer it.

Owns: the sampling parameters with their complete validation, what stands for those that are left
out, and the state (computed, wanted) of a sequence. Does not know: text, pages' contents, runtimes.
"""

from __future__ import annotations

import math
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from subsecond.engine import values
from subsecond.engine.constraint import Constraint
from subsecond.engine.pages import PageTable
from subsecond.engine.values import INT_MAX, short
from subsecond.errors import ModelError, RequestError, SubsecondError

if TYPE_CHECKING:
    from subsecond.engine.constraint_state import Compiled
    from subsecond.engine.drafting import TextDrafts
    from subsecond.engine.prefix import Entry

CLOSING_S = 0.005
"""Before its deadline a text with a constraint ends by so much, so that it can be closed."""

DEFAULT_MAX_TOKENS = 1024
"""Tokens of an answer where nobody says: a small model that repeats itself ends here."""

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024

Rank: TypeAlias = tuple[bool, float, int]
"""A request's place in the order of requests: the least comes first."""

MAX_LOGIT_BIASES = 4096


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of an answer are chosen, and when it ends.

    Every parameter may be left out. `SamplingParams()`, no parameters at all and the command line
    without flags are the same thing: the model's own sampling (its generation_config.json, one
    parameter at a time), the most probable token where it has none, and at most 1,024 tokens.

    Every value is checked when the object is made; what depends on the model (ids in its
    vocabulary, n, the context) when the request is made. A bad value is a RequestError whose
    `param` is the name and whose message has the value and its range. Integers and numbers may be
    NumPy or PyTorch scalars; bool is not a number.

    max_tokens          most tokens to generate, at least 1; None: 1,024, or what the context still
                        holds. More than the context holds is an error, never a silent cut
    min_tokens          before that many tokens, neither end-of-text nor stop tokens are chosen
    temperature         0: the most probable token (greedy); else logits are divided by it, at most
                        100. None: the model's own, else 0
    top_k               only the k most probable tokens; 0 is off. None: the model's own, else off
    top_p               the fewest tokens whose probabilities sum to p, above 0 and at most 1; 1 is
                        off. None: the model's own, else off
    min_p               only tokens at least min_p times as probable as the best, 0 to 1; 0 is off.
                        None: the model's own, else off
    repetition_penalty  CTRL's (Keskar et al. 2019): positive logits of tokens of prompt and answer
                        are divided by it, negative ones multiplied, 0.01 to 100; 1 is off. None:
                        the model's own, else off
    presence_penalty    subtracted from the logits of tokens of the answer, -2 to 2; 0 is off
    frequency_penalty   the same once for each time the token was generated, -2 to 2; 0 is off
    seed                0 to 2**64 - 1, makes the choice reproducible; None: a new one every time
    logit_bias          token id -> value added to its logit, -100 to 100; at most 4,096. Ids may be
                        decimal texts, as in OpenAI's JSON
    stop                a string, or up to 64, that end the text and are not part of it
    stop_token_ids      up to 64 token ids that end the text
    ignore_eos          go on after the model's end-of-text tokens
    logprobs            None: none; k from 0 to 20: log probabilities (nat, of the model's own
                        distribution) of the chosen token and of the k best
    n                   independent texts for the same prompt, at most LLM's max_sequences
    constraint          what the text must look like (`Constraint.json_schema`, ...): the text ends
                        where nothing more can follow, even before min_tokens
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        self._integer("max_tokens", 1, INT_MAX, optional=True)
        self._integer("min_tokens", 0, INT_MAX)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens ({self.max_tokens})",
                "min_tokens",
            )
        self._number("temperature", 0.0, 100.0, optional=True)
        self._integer("top_k", 0, INT_MAX, optional=True)
        self._number("top_p", 0.0, 1.0, low_open=True, optional=True)
        self._number("min_p", 0.0, 1.0, optional=True)
        # Logits are far below 1e36, so a penalty in this range never makes one infinite.
        self._number("repetition_penalty", 0.01, 100.0, optional=True)
        self._number("presence_penalty", -2.0, 2.0)
        self._number("frequency_penalty", -2.0, 2.0)
        self._integer("seed", 0, 2**64 - 1, optional=True)
        self._integer("logprobs", 0, 20, optional=True)
        self._integer("n", 1, 1024)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(
                f"ignore_eos must be true or false, not {short(self.ignore_eos)}", "ignore_eos"
            )
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise RequestError(
                "constraint must be made with Constraint.json_schema, .json_object, .regex or "
                f".choice, not {short(self.constraint)}",
                "constraint",
            )
        self._check_stops()
        self._check_stop_ids()
        self._check_biases()

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def __hash__(self) -> int:  # `logit_bias` is a mapping; equal mappings have equal items
        values = (getattr(self, name) for name in self.__dataclass_fields__ if name != "logit_bias")
        return hash((*values, frozenset(self.logit_bias.items())))

    # Checked values replace what was given: plain Python, and the caller's lists are copied.

    def _integer(self, name: str, low: int, high: int, *, optional: bool = False) -> None:
        given = getattr(self, name)
        if given is not None or not optional:
            object.__setattr__(self, name, values.integer(name, given, low, high))

    def _number(
        self,
        name: str,
        low: float,
        high: float,
        *,
        low_open: bool = False,
        optional: bool = False,
    ) -> None:
        given = getattr(self, name)
        if given is not None or not optional:
            checked = values.number(name, given, low, high, low_open=low_open)
            object.__setattr__(self, name, checked)

    def _check_stops(self) -> None:
        if not isinstance(self.stop, (str, list, tuple)):
            raise RequestError(
                f"stop must be a string or a list of strings, not {short(self.stop)}", "stop"
            )
        if len(self.stops) > MAX_STOPS:
            raise RequestError(
                f"stop has {len(self.stops)} strings; at most {MAX_STOPS} are accepted", "stop"
            )
        for text in self.stops:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise RequestError(
                    f"stop must hold strings of 1 to {MAX_STOP_CHARACTERS} characters, not "
                    f"{short(text)}",
                    "stop",
                )
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise RequestError(
                    f"stop holds {short(text)}, which is not valid Unicode and never occurs", "stop"
                )
        object.__setattr__(self, "stop", self.stops)

    def _check_stop_ids(self) -> None:
        ids = values.sequence(self.stop_token_ids)
        if ids is None or len(ids) > MAX_STOPS:
            raise RequestError(
                f"stop_token_ids must be a list of at most {MAX_STOPS} token ids, not "
                f"{short(self.stop_token_ids)}",
                "stop_token_ids",
            )
        checked = tuple(_token_id("stop_token_ids", given) for given in ids)
        object.__setattr__(self, "stop_token_ids", checked)

    def _check_biases(self) -> None:
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise RequestError(
                f"logit_bias must map at most {MAX_LOGIT_BIASES} token ids to numbers, not "
                f"{short(self.logit_bias)}",
                "logit_bias",
            )
        checked: dict[int, float] = {}
        for given, bias in self.logit_bias.items():
            token_id = _bias_id(given)
            if token_id in checked:
                raise RequestError(f"logit_bias has the token id {token_id} twice", "logit_bias")
            checked[token_id] = values.number("logit_bias", bias, -100.0, 100.0)
        object.__setattr__(self, "logit_bias", checked)


def _token_id(name: str, given: object) -> int:
    """A token id of `name`; its upper bound is checked when the model is known."""
    token_id = values.whole(given)
    if token_id is None:
        return values.check_token_id(given, INT_MAX + 1, name)  # raises, and says why
    if not 0 <= token_id <= INT_MAX:
        raise RequestError(
            f"{name} has the token id {short(token_id)}; token ids are 0 to the model's "
            "LLM.vocab_size - 1",
            name,
        )
    return token_id


def _bias_id(given: object) -> int:
    """OpenAI's JSON has decimal texts for keys, because JSON's objects allow no others."""
    if isinstance(given, str) and given.isascii() and given.isdecimal() and len(given) <= 10:
        given = int(given)
    return _token_id("logit_bias", given)


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters that a SamplingParams may leave to the model, filled in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @staticmethod
    def of(params: SamplingParams, suggested: Mapping[str, Any] | None = None) -> Sampling:
        """`params`, and what the model's authors suggest for its Nones.

        suggested: of generation_config.json: these parameters, and `do_sample`, which means as in
        transformers: false is greedy, true without a temperature is temperature 1. Raises
        ModelError for a suggestion that is used and out of its range.
        """
        model = dict(suggested or {})
        do_sample = model.pop("do_sample", None)
        if do_sample is False:
            model["temperature"] = 0.0
        elif do_sample is True:
            model.setdefault("temperature", 1.0)
        chosen: dict[str, Any] = {}
        for name in Sampling.__struct_fields__:
            value = getattr(params, name)
            if value is None and name in model:
                value = _suggestion(name, model[name])
            if value is not None:
                chosen[name] = value
        return Sampling(**chosen)


def _suggestion(name: str, value: Any) -> Any:
    if name == "top_k" and isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return getattr(SamplingParams(**{name: value}), name)
    except RequestError as error:
        raise ModelError(
            f"the model's generation_config.json suggests bad sampling ({error}); give "
            f"SamplingParams({name}=...)"
        ) from None


@dataclass(frozen=True)
class Logprob:
    """Log probabilities (nat) at one position of an answer, of the model's own distribution (before
    bias, penalties and temperature).

    token_id, logprob: of the chosen token. top: (token id, log probability) of the k most probable
    tokens, best first, where `SamplingParams.logprobs` is k.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class SequenceState:
    """One text in the making: `tokens` are wanted, the first `computed` of them are in the KV
    pages.

    `tables` holds one page table a cache group; it is empty while the sequence waits, and after it
    has ended. entry: where its path in the prefix cache ends; publish_at: the number of computed
    tokens at which the next page joins it. constraint: where the text stands in it. drafts: the
    guesses of what follows, once there were any.
    `finish_reason`: None while it runs, then "stop" (its last token is a stop token, no text),
    "complete" (the constraint lets nothing follow), "length", "cancelled" or "deadline".
    """

    __slots__ = (
        "choice", "computed", "constraint", "drafts", "entry", "finish_reason", "logprobs",
        "publish_at", "request", "sampler", "tables", "tokens"
    )  # fmt: skip

    def __init__(self, request: Request, choice: int, tokens: list[int]) -> None:
        self.request = request
        self.choice = choice
        self.tokens = tokens
        self.computed = 0
        self.tables: list[PageTable] = []
        self.entry: Entry | None = None
        self.publish_at = 0
        self.sampler: Any = None
        self.constraint = None if request.constraint is None else request.constraint.start()
        self.drafts: TextDrafts | None = None
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

    def is_due(self, now_s: float, step_s: float) -> bool:
        """Whether the text must not have another step: its deadline has passed, or, where it may
        end early and has the tokens that were promised, would pass in a step of `step_s` seconds.
        """
        request = self.request
        early_s = 0.0
        if request.on_deadline == "finish" and self.generated >= request.promised_tokens:
            early_s = step_s if self.constraint is None else step_s + CLOSING_S
        return now_s + early_s >= request.deadline_s

    @property
    def last_stored(self) -> int:
        """Most positions that this sequence will ever store: the last chosen token isn't
        computed.
        """
        return len(self.request.prompt) + self.request.max_tokens - 1


class Request:
    """A prompt with its parameters; `sequences` are its `params.n` texts. `sampling`: the numbers
    that `params` may leave to the model; None: where it does, they are greedy and off.

    deadline_s: `time.monotonic()` seconds at which the answer ends, done or not. promised_tokens: a
    text that has fewer isn't ended before the deadline itself. on_deadline: "finish" lets a text
    end a step early, so that it is never late; "full" doesn't. priority: the larger comes first.
    tenant: requests share pages with those of their own tenant alone. arrival_s: when it came,
    default now. constraint: `params.constraint`, made ready. score_prompt: `prompt_logprobs`
    are wanted, of the prompt's tokens from the second on, with `params.logprobs` best ones each.
    embeds: no token is chosen, the model's final `state` after the prompt is wanted.

    The sequences beyond the first begin as forks of the first when the prompt is computed.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling | None = None,
        deadline_s: float = math.inf,
        promised_tokens: int = 0,
        on_deadline: Literal["finish", "full"] = "finish",
        priority: int = 0,
        tenant: str = "",
        arrival_s: float | None = None,
        constraint: Compiled | None = None,
        score_prompt: bool = False,
        embeds: bool = False,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.constraint = constraint
        self.score_prompt = score_prompt
        self.prompt_logprobs: list[Logprob] = []
        self.embeds = embeds
        self.state: array[float] | None = None
        self.sampling = Sampling.of(params) if sampling is None else sampling
        self.max_tokens = max_tokens
        self.stop_ids = tuple(dict.fromkeys(stop_ids))
        self.seed = (
            params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little")
        )
        self.deadline_s = deadline_s
        self.promised_tokens = promised_tokens
        self.on_deadline = on_deadline
        self.priority = priority
        self.tenant = tenant
        self.arrival_s = time.monotonic() if arrival_s is None else arrival_s
        self.promised = promised_tokens > 0 and deadline_s < math.inf
        self.rank: Rank = (True, 0.0, 0)  # its place in the order of requests, when it is queued
        self.sequences = [SequenceState(self, choice, list(prompt)) for choice in range(params.n)]
        self.scheduled_s = math.nan  # time.monotonic() of the first step that holds a token of it
        self.first_token_s = math.nan
        self.finished_s = math.nan
        self.cached_tokens = 0
        self.drafted_tokens = self.accepted_tokens = 0  # of drafts that were checked, and chosen
        self.error: SubsecondError | None = None  # why it failed, if it did

    @property
    def finished(self) -> bool:
        """Whether every text has ended."""
        return all(sequence.finish_reason is not None for sequence in self.sequences)
