"""A prompt with what was asked of it, and the sequences that answer it.

Owns: the state (computed, wanted) of a sequence, and when it is due. Does not know: how parameters
are checked (`sampling`), text, pages' contents, runtimes.
"""

from __future__ import annotations

import math
import os
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from subsecond.engine.pages import PageTable
from subsecond.engine.sampling import Sampling, SamplingParams
from subsecond.errors import SubsecondError

if TYPE_CHECKING:
    from subsecond.engine.constraint_state import Compiled
    from subsecond.engine.drafting import TextDrafts
    from subsecond.engine.prefix import Entry

CLOSING_S = 0.005
"""Before its deadline a text with a constraint ends by so much, so that it can be closed."""

Rank: TypeAlias = tuple[bool, float, int]
"""A request's place in the order of requests: the least comes first."""


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
        self.rank: Rank = (True, 0.0, 0)  # its place in the order of requests, when it is queued
        self.sequences = [SequenceState(self, choice, list(prompt)) for choice in range(params.n)]
        self.scheduled_s = math.nan  # time.monotonic() of the first step that holds a token of it
        self.first_token_s = math.nan
        self.finished_s = math.nan
        self.cached_tokens = 0
        self.drafted_tokens = self.accepted_tokens = 0  # of drafts that were checked, and chosen
        self.error: SubsecondError | None = None  # why it failed, if it did

    @property
    def promised(self) -> bool:
        """Whether tokens are promised by a deadline."""
        return self.promised_tokens > 0 and self.deadline_s < math.inf

    @property
    def finished(self) -> bool:
        """Whether every text has ended."""
        return all(sequence.finish_reason is not None for sequence in self.sequences)
