"""A request's deadline: what was asked, what is promised of it, and what becomes of the promise.

Owns: the terms that apply (body, header, the server's own), the judgement at the desk, the promise
in the ledger with its one fate. Does not know: prompts' ids, streams, how answers are written.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import msgspec

from subsecond.engine.admission import Decision
from subsecond.engine.messages import SamplingFields, Stamps
from subsecond.serve import ledger
from subsecond.serve.choice_text import ChoiceText
from subsecond.serve.desk import Entry
from subsecond.serve.errors import DeadlineDeclined, PromiseBroken, ServeError, Unavailable
from subsecond.serve.exchange import Exchange
from subsecond.serve.keys import Key
from subsecond.serve.schema import shared
from subsecond.serve.schema.shared import Generation, Promise, Terms

if TYPE_CHECKING:
    from subsecond.serve.server import Server

UNSAID_TOKENS = 16
"""Promised where nobody says how long the answer may be: half of 1,024 is in no second."""

SENTENCE_SHARE = 0.15
"""Of the time until the deadline: in the last part, a text that may end early ends at a
sentence.
"""


class Deadline:
    """Of one request. at_s: the moment (`time.monotonic()`), infinite without one.
    promised_tokens: of each text, once promised. kept: whether it was, once that is known.
    """

    def __init__(self, server: Server, exchange: Exchange, request: Generation, key: Key) -> None:
        self._server = server
        self._exchange = exchange
        self._request = request
        self._key_id = key.id
        header = exchange.header(b"x-deadline-ms")
        header_ms = None
        if header is not None:
            header_ms = shared.header_deadline_ms(header.decode("latin-1"))
        self.terms: Terms = shared.earlier(request.terms, header_ms)
        if self.terms.deadline_ms is None and server.settings.within_s is not None:
            self.terms = msgspec.structs.replace(
                self.terms, deadline_ms=server.settings.within_s * 1e3
            )
        self.at_s = math.inf
        if self.terms.deadline_ms is not None:
            self.at_s = exchange.start_s + self.terms.deadline_ms / 1e3
        self.priority = server.rank(key, self.terms.priority)
        self.promised_tokens: int | None = None
        self.kept: bool | None = None
        self._promise: ledger.Promise | None = None

    @property
    def asked(self) -> bool:
        """Whether there is one."""
        return self.at_s < math.inf

    @property
    def promised(self) -> bool | None:
        """Whether it was promised; None without one."""
        return self._promise is not None if self.asked else None

    def in_full(self) -> None:
        """The answer can't be ended early."""
        self.terms = msgspec.structs.replace(self.terms, on_deadline="full")

    # Before anything is begun.

    def judge(
        self, prompt_tokens: list[int], each: list[SamplingFields], *, take: bool
    ) -> list[Entry]:
        """Promises the deadline for prompts of so many tokens, or raises DeadlineDeclined. take:
        whether what is promised is then on its way; else only declining counts.
        """
        server, name = self._server, self._request.model
        now_s = time.monotonic()
        promised = self._covered(each[0])
        entries = [
            self.entry(tokens, fields, self._exchange.start_s, promised)
            for tokens, fields in zip(prompt_tokens, each, strict=True)
        ]
        found = server.desk.take(entries, now_s) if take else server.desk.judge(entries, now_s)
        if not found.promised:
            server.ledger.decline(self._key_id, name, "deadline")
            server.declined_s = now_s
            raise _declined(found, self._exchange.start_s, self.terms)
        if take:
            self._give(promised)
        return entries

    def entry(
        self, prompt_tokens: int, fields: SamplingFields, arrival_s: float, promised: int = 0
    ) -> Entry:
        """A prompt as the desk sees it."""
        desk = self._server.desk
        return desk.entry(
            self._request.model,
            prompt_tokens,
            fields,
            deadline_s=self.at_s - desk.sending_s(),
            promised_tokens=min(promised, fields.max_tokens),
            priority=self.priority,
            arrival_s=arrival_s,
        )

    def promise_known(self, fields: SamplingFields) -> None:
        """Promises an answer that is there already."""
        if self.asked:
            self._give(self._covered(fields))

    def _covered(self, fields: SamplingFields) -> int:
        """Tokens of each text that a promise covers; at least 1."""
        terms, params = self.terms, self._request.params
        if terms.on_deadline == "finish" and params.max_tokens is None and not params.min_tokens:
            return min(UNSAID_TOKENS, fields.max_tokens)
        return max(1, terms.promised_tokens(params.min_tokens, fields.max_tokens))

    def _give(self, tokens: int) -> None:
        self.promised_tokens = tokens
        self._promise = self._server.ledger.promise(self._key_id, self._request.model)

    # While the answer is made.

    def should_close(self, text: ChoiceText) -> bool:
        """Whether a text ends here, at a sentence, rather than in the middle of a later one."""
        if self.terms.on_deadline != "finish" or not self.asked:
            return False
        if self._request.params.constraint is not None:  # the engine closes it
            return False
        if text.tokens < max(self.promised_tokens or 0, 1) or not text.at_sentence_end:
            return False
        left_s = self.at_s - time.monotonic()
        return left_s < SENTENCE_SHARE * (self.at_s - self._exchange.start_s)

    def check_closed(self, text: ChoiceText) -> None:
        """PromiseBroken for a text that a deadline ended before the promised tokens."""
        if text.finish_reason == "deadline" and text.tokens < (self.promised_tokens or 0):
            raise PromiseBroken(
                f"{self.promised_tokens} tokens were promised by the deadline and {text.tokens} "
                "are there; this is the server's fault"
            )

    # In the end. Of these calls the first one counts.

    def report(self, stamps: list[Stamps]) -> Promise:
        """What the answer says of it, and of the time that it took. stamps: of its prompts."""
        now_s, start_s = time.monotonic(), self._exchange.start_s
        first = stamps[0] if stamps else Stamps(now_s, now_s, now_s, now_s)
        ended_s = max((own.finished_s for own in stamps), default=now_s)
        if self._promise is not None:
            self.kept = now_s <= self.at_s
        return Promise(
            deadline_ms=self.terms.deadline_ms,
            on_deadline=self.terms.on_deadline,
            promised_tokens=self.promised_tokens,
            kept=self.kept,
            queue_ms=_ms(first.scheduled_s - start_s),
            prefill_ms=_ms(first.first_token_s - first.scheduled_s),
            decode_ms=_ms(ended_s - first.first_token_s),
            total_ms=_ms(now_s - start_s),
        )

    def settle(self) -> None:
        """The answer is whole. A client that held up its own answer can't be disappointed."""
        if self._promise is None:
            return
        if self.kept:
            self._promise.keep()
        elif time.monotonic() - self._exchange.waited_s <= self.at_s:
            self._promise.cancel()
        else:
            self._promise.break_("late")

    def blame(self, error: ServeError) -> None:
        """An error has ended the answer. A request that was wrong was promised nothing."""
        if error.status == 400:
            self.cancel()
        elif isinstance(error, PromiseBroken):
            self.break_("short")
        else:
            self.break_("engine" if isinstance(error, Unavailable) else "error")

    def break_(self, reason: ledger.Broken) -> None:
        """The promise is broken."""
        if self._promise is not None:
            self.kept = False
            self._promise.break_(reason)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self._promise is not None:
            self._promise.cancel()


def _declined(found: Decision, start_s: float, terms: Terms) -> DeadlineDeclined:
    """The refusal, in words that say what would help."""
    asked_ms = terms.deadline_ms or 0.0
    predicted_s = found.finish_s - start_s
    if found.reason == "too_large":
        message = (
            "the request is larger than what is computed together here; lower max_tokens or n, or "
            "send fewer prompts at once"
        )
    elif found.reason == "too_short":
        message = (
            f"the deadline is {asked_ms:g} ms, and even an idle server would need about "
            f"{predicted_s * 1e3:.0f} ms; lower max_tokens, or give more time"
        )
    else:
        message = (
            f"the deadline of {asked_ms:g} ms can't be promised now, about "
            f"{predicted_s * 1e3:.0f} ms could; try again in {found.retry_after_s:.2f} s"
        )
    return DeadlineDeclined(message, predicted_s, found.retry_after_s)


def _ms(seconds: float) -> float:
    """Milliseconds; 0 for what never happened."""
    return round(seconds * 1e3, 3) if seconds > 0 and math.isfinite(seconds) else 0.0
