"""A model in the engine process: its engine, and what the front has been told of each request.

Owns: requests made of messages, events made of the sequences' progress, the ends of requests. Does
not know: sockets, other models, when it has a turn.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from subsecond.engine.cost import CostModel
from subsecond.engine.engine import Engine
from subsecond.engine.messages import (
    Cancel,
    EndReason,
    ErrorInfo,
    Event,
    ModelInfo,
    Stamps,
    StepDone,
    StepStats,
    Submit,
    TokenLogprob,
    Usage,
    error_info,
)
from subsecond.engine.policy import StepLimits
from subsecond.engine.report import StepReport
from subsecond.engine.request import Request, SequenceState
from subsecond.engine.sampling import Sampling, SamplingParams
from subsecond.engine.sharing import Sharing
from subsecond.engine.turns import Turn, slack_s
from subsecond.engine.values import check_token_id, check_token_ids

if TYPE_CHECKING:
    from subsecond.engine.constraint_state import Compiled

log = logging.getLogger(__name__)

_SMOOTHING = 0.2  # weight of the newest step in the expected duration of the next


class Stream:
    """A request on its way. sent: tokens a text that the front has. open: texts that go on."""

    __slots__ = ("id", "open", "received_s", "request", "sent")

    def __init__(self, id: int, request: Request) -> None:
        self.id = id
        self.request = request
        self.sent = [0] * request.params.n
        self.open = request.params.n
        self.received_s = time.monotonic()


class StepTimes:
    """How long the next step will take, from the last ones: prompts and decoding apart. For as long
    as nobody has measured what steps cost.
    """

    def __init__(self) -> None:
        self._decode_s = math.nan
        self._prompt_s = math.nan

    def observe(self, report: StepReport) -> None:
        """Learns from a step."""
        elapsed_s = report.elapsed_s / max(1, report.steps)
        if report.shape.tokens > report.shape.sequences:
            self._prompt_s = _smooth(self._prompt_s, elapsed_s)
        else:
            self._decode_s = _smooth(self._decode_s, elapsed_s)

    def expected_s(self, *, prompts: bool) -> float:
        """Seconds of a step, with prompts in it or not; 0 before any was seen."""
        known = [s for s in (self._prompt_s, self._decode_s) if not math.isnan(s)]
        if not known:
            return 0.0
        if prompts:
            return known[0]
        return known[-1]


class ServedModel:
    """One loaded model. Not thread-safe."""

    def __init__(self, name: str, engine: Engine, executor: str) -> None:
        self.name = name
        self.engine = engine
        self.last_turn = 0
        self.times = StepTimes()
        runner = engine.runner
        self.info = ModelInfo(
            context=engine.context,
            vocab_size=runner.vocab_size,
            max_tokens=runner.max_tokens,
            max_sequences=runner.max_sequences,
            max_rows=runner.max_rows,
            pages_total=engine.page_use().total,
            executor=executor,
        )
        self._streams: dict[Request, Stream] = {}
        self._by_id: dict[int, Stream] = {}
        self._events: list[Event] = []
        self._report: StepReport | None = None
        self._elapsed_s = self._ended_s = 0.0
        self._warmed = 0  # KV pages of each group
        # Steps are measured without drafts; then it is known what drafts may take.
        self._drafting, engine.drafting = engine.drafting, None
        engine.warm(0)

    def keep_promises(self, data: bytes) -> None:
        """What the model's steps cost, as measured. InputError for what isn't that."""
        runner = self.engine.runner
        limits = StepLimits(
            tokens=runner.max_tokens, sequences=runner.max_sequences, rows=runner.max_rows
        )
        cost = CostModel.from_json(data, max_tokens=runner.max_tokens)
        self.engine.keep_promises(Sharing(cost, limits))
        self.engine.drafting = self._drafting

    def warm(self, pages: int = 1) -> bool:
        """Takes the memory of some more KV pages, while there is nothing else to do; False when all
        have theirs. Requests fill all pages anyway, since what they leave stays known.
        """
        if self._warmed >= self.engine.runner.pages_per_group:
            return False
        self._warmed += pages
        self.engine.warm(self._warmed)
        return True

    @property
    def in_flight(self) -> int:
        """Requests that haven't ended."""
        return len(self._streams)

    @property
    def has_events(self) -> bool:
        """Whether the front hasn't been told of something."""
        return bool(self._events)

    def submit(self, message: Submit, constraint: Compiled | None = None) -> None:
        """Queues a request; any exception means that it isn't queued, and that nothing else has
        changed. constraint: the message's, made ready.
        """
        if message.id in self._by_id:
            raise ValueError(f"request {message.id} exists already")
        request = _request(message, self.info.vocab_size, constraint)
        self.engine.submit(request)
        self._streams[request] = self._by_id[message.id] = Stream(message.id, request)

    def cancel(self, message: Cancel) -> bool:
        """Ends a request, or one of its texts; whether it was here."""
        stream = self._by_id.get(message.id)
        if stream is None:
            return False
        texts = stream.request.sequences
        choice = message.choice
        if choice is not None and choice < len(texts) and texts[choice].generated:
            texts = [texts[choice]]
        self._end(texts, message.reason)
        return True

    def expire(self, now_s: float) -> None:
        """Ends what must not have another step, so that nothing is spent on it."""
        sharing = self.engine.scheduler.sharing
        guard_s = 0.0 if sharing is None else sharing.limits.guard_s  # whoever sends may be delayed
        for sequence in self.engine.expire(now_s, self._step_s(now_s) + guard_s):
            self._tell(sequence)

    def step(self, since_s: float | None = None) -> None:
        """One call into the runtime. An exception means that the engine can't be trusted any
        more. since_s: since when there was nothing else to do than this step (default: now).
        """
        since_s = time.monotonic() if since_s is None else since_s
        report = self.engine.step()
        if report is None:
            return
        self._report = report
        self._ended_s = time.monotonic()
        self._elapsed_s = self._ended_s - since_s
        self.times.observe(report)
        sharing = self.engine.scheduler.sharing
        if sharing is not None and report.steps == 1 and not report.drafted:
            sharing.cost.observe(report.shape, self._elapsed_s)
        for sequence in report.chosen:
            self._tell(sequence)

    def fail(self, error: ErrorInfo) -> None:
        """Ends every request with an error, without touching the engine."""
        for stream in list(self._by_id.values()):
            self._close(stream)
            self._events.append(Event(id=stream.id, choice=0, error=error))

    def turn(self, now_s: float) -> Turn:
        """What the choice between models needs to know."""
        step_s = self._step_s(now_s)
        slacks = (
            slack_s(request.deadline_s, now_s, self._steps_left(request), step_s)
            for requests in (self.engine.scheduler.running, self.engine.scheduler.waiting)
            for request in requests
            if request.deadline_s < math.inf
        )
        return Turn(min(slacks, default=math.inf), step_s, self.last_turn)

    def take_message(self) -> StepDone | None:
        """What has happened since the last call; None if nothing."""
        report, events = self._report, self._events
        if report is None and not events:
            return None
        self._report, self._events = None, []
        scheduler, pages = self.engine.scheduler, self.engine.page_use()
        stats = StepStats(
            shape=report.shape if report else None,
            elapsed_s=self._elapsed_s if report else 0.0,
            steps=report.steps if report else 0,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages_free=pages.free,
            pages_total=pages.total,
            pages_cached=pages.cached,
            ended_s=self._ended_s if report else time.monotonic(),
            prompts=self._prompts(report) if report else [],
            drafted=report.drafted if report else 0,
            accepted=report.accepted if report else 0,
        )
        return StepDone(self.name, events, stats)

    def _prompts(self, report: StepReport) -> list[tuple[int, int]]:
        """What is left of the prompts that the step has computed a part of."""
        found = []
        for text in report.begun:
            stream = self._streams.get(text.request)
            if stream is not None and text.choice == 0:
                found.append((stream.id, text.wanted))
        return found

    def _step_s(self, now_s: float) -> float:
        """Seconds of the next step."""
        scheduler = self.engine.scheduler
        if scheduler.sharing is None:
            return self.times.expected_s(prompts=self._has_prompts())
        return scheduler.sharing.longest_s(scheduler.active(), now_s)

    def _has_prompts(self) -> bool:
        """Whether the next step may hold parts of prompts."""
        scheduler = self.engine.scheduler
        return bool(scheduler.waiting) or any(
            request.sequences[0].wanted > 1 for request in scheduler.running
        )

    def _steps_left(self, request: Request) -> int:
        """Steps until the request has its promised tokens."""
        first = request.sequences[0]
        chunks = -(-max(0, first.wanted - 1) // self.info.max_tokens)
        return chunks + max(1, request.promised_tokens - first.generated)

    def _end(self, texts: list[SequenceState], reason: EndReason) -> None:
        for sequence in texts:
            if sequence.finish_reason is None:
                self.engine.finish(sequence, reason)
                self._tell(sequence)

    def _tell(self, sequence: SequenceState) -> None:
        """The event for what a sequence has won since the last one."""
        request, choice = sequence.request, sequence.choice
        stream = self._streams.get(request)
        if stream is None:  # another of its texts has failed
            return
        if request.error is not None:
            self._close(stream)
            self._events.append(Event(id=stream.id, choice=0, error=error_info(request.error)))
            return
        sent = stream.sent[choice]
        tokens = sequence.tokens[len(request.prompt) + sent :]
        logprobs = None
        if request.params.logprobs is not None:
            logprobs = [TokenLogprob(lp.logprob, list(lp.top)) for lp in sequence.logprobs[sent:]]
        scores = None
        if sent == 0 and request.score_prompt:
            scores = [TokenLogprob(lp.logprob, list(lp.top)) for lp in request.prompt_logprobs]
        stream.sent[choice] = sent + len(tokens)
        if sequence.finish_reason is None:
            self._events.append(
                Event(stream.id, choice, tokens, None, logprobs, prompt_logprobs=scores)
            )
            return
        stream.open -= 1
        timing = usage = None
        if stream.open == 0:
            self._close(stream)
            timing, usage = _timing(stream), _usage(stream)
        self._events.append(
            Event(
                stream.id,
                choice,
                tokens,
                sequence.finish_reason,  # type: ignore[arg-type]
                logprobs,
                None,
                timing,
                usage,
                scores,
                None if request.state is None else request.state.tobytes(),
            )
        )

    def _close(self, stream: Stream) -> None:
        del self._streams[stream.request], self._by_id[stream.id]


def _request(message: Submit, vocab_size: int, constraint: Compiled | None) -> Request:
    """The engine's request; RequestError for a value out of its range."""
    fields = message.params
    params = SamplingParams(
        max_tokens=fields.max_tokens,
        min_tokens=fields.min_tokens,
        temperature=fields.temperature,
        top_k=fields.top_k,
        top_p=fields.top_p,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        seed=fields.seed,
        logit_bias=fields.logit_bias,
        logprobs=fields.logprobs,
        n=fields.n,
        constraint=message.constraint,
    )
    for token_id in params.logit_bias:
        check_token_id(token_id, vocab_size, "logit_bias", "a token id of logit_bias")
    if fields.stop_ids:
        check_token_ids(fields.stop_ids, vocab_size, "stop_token_ids")
    return Request(
        check_token_ids(message.prompt, vocab_size),
        params,
        max_tokens=fields.max_tokens,
        stop_ids=fields.stop_ids,
        sampling=Sampling.of(params),
        deadline_s=message.deadline_s,
        promised_tokens=message.promised_tokens,
        on_deadline=message.on_deadline,
        priority=message.priority,
        tenant=message.tenant,
        arrival_s=message.arrival_s,
        constraint=constraint,
        score_prompt=fields.score_prompt,
        embeds=fields.embeds,
    )


def _timing(stream: Stream) -> Stamps:
    request = stream.request
    return Stamps(stream.received_s, request.scheduled_s, request.first_token_s, request.finished_s)


def _usage(stream: Stream) -> Usage:
    request = stream.request
    return Usage(
        len(request.prompt),
        sum(sequence.generated for sequence in request.sequences),
        request.cached_tokens,
    )


def _smooth(average: float, value: float) -> float:
    return value if math.isnan(average) else average + _SMOOTHING * (value - average)
