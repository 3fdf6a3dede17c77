"""An open-loop load on any OpenAI-compatible server: each request is sent at its scheduled moment,
whatever became of those before it, and timed from that moment.

Owns: the run: sending in time, one end for every request, the drain, what the generator itself
costs. Does not know: how requests are made (load_arrivals), sent (load_client), read (load_answer)
and summed up (load_summary).

A generator that waits for answers before it sends asks less of a slow server, and what its users
would have waited is in no figure ("coordinated omission", G. Tene). Here a request's clock starts
at its moment, so that a late sending, the connection's set-up and the time in any queue all count.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

import msgspec

from subsecond.bench.load_answer import Body, Failure, Raw, Refusal
from subsecond.bench.load_arrivals import Arrival, Schedule, backwards
from subsecond.bench.load_client import Call, Client, Target
from subsecond.bench.load_heartbeat import Heartbeat, Stall
from subsecond.errors import InputError, RuntimeFailure
from subsecond.formats.progress import Progress

DECLINED = (429, 503)
WARMUP_S = 60.0
_PROMISE_FIELDS = ("deadline_ms", "on_deadline")
_AGAIN_S, _PATIENCE_S = 0.1, 10.0  # after a refusal that doesn't say when; with all of them
PROGRESS_S = 0.5


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When the generator gives up. timeout_s: on one request, from its moment. drain_s: on all that
    are left, from the moment of the last one (or the end of the schedule).
    """

    timeout_s: float = 60.0
    drain_s: float = 30.0

    def check(self) -> None:
        for name, least in (("timeout_s", 0.001), ("drain_s", 0.0)):
            if not least <= getattr(self, name) <= 24 * 3600:
                raise InputError(
                    f"{name.removesuffix('_s')} is {getattr(self, name):g} s; it must be at least "
                    f"{least:g} s and at most a day"
                )


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one request ended. Seconds count from the start of the run.

    end: "answered", "declined" (429 or 503), or a FailureKind of load_answer. sent_s: None if it
    never was. text_s: when each piece of text came. tokens_counted: whether the server told the
    number of tokens (else it is the number of pieces). retry_after_s: as the server told it.
    """

    number: int
    at_s: float
    sent_s: float | None
    end_s: float
    end: str
    detail: str = ""
    status: int = 0
    retry_after_s: float | None = None
    deadline_s: float | None = None
    stream: bool = True
    reused: bool = False
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    tokens: int = 0
    tokens_counted: bool = False
    text_s: tuple[float, ...] = ()

    @property
    def latency_s(self) -> float:
        """From the scheduled moment to the end."""
        return self.end_s - self.at_s

    @property
    def in_time(self) -> bool:
        """Answered before its deadline, if it had one."""
        return self.end == "answered" and (
            self.deadline_s is None or self.latency_s <= self.deadline_s
        )


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What the generator itself took, between the run's start and the last end."""

    wall_s: float
    cpu_s: float
    heartbeat_cpu_s: float
    connections: int
    reused: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run found: one outcome a request, in the order of the schedule."""

    url: str
    model: str
    what: str
    seed: int
    duration_s: float
    limits: Limits
    outcomes: tuple[Outcome, ...]
    stalls: tuple[Stall, ...]
    longest_beat_s: float
    cost: Cost


def load(
    target: Target,
    schedule: Schedule,
    *,
    model: str | None = None,
    limits: Limits | None = None,
    warmup: int = 1,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Run:
    """Sends a schedule to a server and waits for every end.

    model: by default the first of the server's list. warmup: requests before, one after another,
    that don't count, with the words of the first one backwards. Raises InputError for impossible
    values, RuntimeFailure if the server can't be reached, has no model or doesn't answer them.
    """
    limits = limits or Limits()
    limits.check()
    if not 0 <= warmup <= 1000:
        raise InputError(f"warmup is {warmup}; it must be 0 to 1000")
    return asyncio.run(
        _load(
            target,
            schedule,
            model=model,
            limits=limits,
            warmup=warmup,
            progress=progress,
            clock=clock,
        )
    )


async def _load(
    target: Target,
    schedule: Schedule,
    *,
    model: str | None,
    limits: Limits,
    warmup: int,
    progress: Progress | None,
    clock: Callable[[], float],
) -> Run:
    client = Client(target, clock)
    try:
        model = model or await first_model(client, target)
        if schedule.arrivals:
            await _warm_up(client, target, schedule.arrivals[0], model, warmup)
        client.opened = client.reused = 0
        gc.collect()
        gc.freeze()  # what is there already is not walked again while requests are timed
        try:
            with Heartbeat(clock) as heartbeat:
                sender = _Sender(client, schedule, model=model, limits=limits, progress=progress)
                begin_cpu_s = time.process_time()
                outcomes = await sender.run()
                cpu_s = time.process_time() - begin_cpu_s
                wall_s = clock() - sender.start_s
        finally:
            gc.unfreeze()
    finally:
        await client.close()
    begin_s = sender.start_s
    return Run(
        url=target.url,
        model=model,
        what=schedule.what,
        seed=schedule.seed,
        duration_s=schedule.duration_s,
        limits=limits,
        outcomes=outcomes,
        stalls=tuple(Stall(s.begin_s - begin_s, s.end_s - begin_s) for s in heartbeat.stalls),
        longest_beat_s=heartbeat.longest_s,
        cost=Cost(
            wall_s=wall_s,
            cpu_s=cpu_s,
            heartbeat_cpu_s=heartbeat.cpu_s,
            connections=client.opened,
            reused=client.reused,
        ),
    )


class _Sender:
    """Sends each request at its moment and keeps the place of its end."""

    def __init__(
        self,
        client: Client,
        schedule: Schedule,
        *,
        model: str,
        limits: Limits,
        progress: Progress | None,
    ) -> None:
        self.start_s = 0.0
        self._client, self._schedule = client, schedule
        self._model, self._limits, self._progress = model, limits, progress
        self._ends: list[Outcome | None] = [None] * len(schedule.arrivals)
        self._ended = 0
        self._shown_s = 0.0

    async def run(self) -> tuple[Outcome, ...]:
        clock = self._client.clock
        self.start_s = self._shown_s = clock()
        async with asyncio.TaskGroup() as group:
            for number, arrival in enumerate(self._schedule.arrivals):
                # Also where it is due already: who is late must still read the answers.
                await asyncio.sleep(max(0.0, self.start_s + arrival.at_s - clock()))
                group.create_task(self._one(number, arrival))
        ends = tuple(end for end in self._ends if end is not None)
        if len(ends) != len(self._ends) or self._ended != len(ends):
            raise RuntimeFailure(
                f"{len(self._ends)} requests had {self._ended} ends; the load generator has a "
                "fault, its figures are void"
            )
        if self._progress:
            self._progress("requests", len(ends), len(ends), "requests")
        return ends

    async def _one(self, number: int, arrival: Arrival) -> None:
        """Brings one request to its one end."""
        clock, limits = self._client.clock, self._limits
        due_s = self.start_s + arrival.at_s
        timeout_s = due_s + limits.timeout_s
        drained_s = self.start_s + self._schedule.duration_s + limits.drain_s
        stream = bool(arrival.body["stream"])
        loop = asyncio.get_running_loop()
        call = Call(loop.create_future(), "stream" if stream else "answer")
        failure: Failure | None = None
        try:
            # The loop's clock may be another one than ours.
            left_s = min(timeout_s, drained_s) - clock()
            async with asyncio.timeout(max(0.0, left_s)):
                await self._client.run(call, self._maker(arrival, due_s))
            end_s = call.received_s
        except Failure as error:
            failure, end_s = error, clock()
        except TimeoutError:
            if drained_s < timeout_s:
                what = f"drained for {limits.drain_s:g} s"
                failure = Failure("unfinished", what)
            else:
                failure = Failure("timeout", f"no end within {limits.timeout_s:g} s")
            end_s = clock()
        self._keep(_outcome(number, arrival, call, failure, start_s=self.start_s, end_s=end_s))

    def _maker(self, arrival: Arrival, due_s: float) -> Callable[[float], bytes]:
        def make(now_s: float) -> bytes:
            return request_of(self._client.target, arrival, self._model, now_s - due_s)

        return make

    def _keep(self, outcome: Outcome) -> None:
        if self._ends[outcome.number] is not None:
            raise RuntimeFailure(f"request {outcome.number} ended twice; its figures are void")
        self._ends[outcome.number] = outcome
        self._ended += 1
        now_s = self._client.clock()
        if self._progress and now_s - self._shown_s >= PROGRESS_S:
            self._shown_s = now_s
            self._progress("requests", self._ended, len(self._ends), "requests")


def request_of(target: Target, arrival: Arrival, model: str, late_s: float) -> bytes:
    """The bytes of a request that is sent `late_s` after its moment.

    Its deadline counts from the moment, so the server is told what is left of it, in whole ms (at
    least 1), unless the body has a deadline_ms of its own.
    """
    headers: dict[str, str] = {}
    if arrival.deadline_s is not None and "deadline_ms" not in arrival.body:
        headers["X-Deadline-Ms"] = str(max(1, int(1e3 * (arrival.deadline_s - late_s))))
    return target.request("POST", arrival.path, arrival.encoded(model), headers)


def _outcome(
    number: int,
    arrival: Arrival,
    call: Call,
    failure: Failure | None,
    *,
    start_s: float,
    end_s: float,
) -> Outcome:
    body = call.body
    end, detail = "answered", ""
    if failure is not None:
        end, detail = failure.kind, failure.detail
    elif isinstance(body, Refusal):
        end = "declined" if call.status in DECLINED else "status"
        detail = body.message
    text = body if isinstance(body, Body) else Body()
    counted = text.completion_tokens
    return Outcome(
        number=number,
        at_s=arrival.at_s,
        sent_s=None if call.sent_s is None else call.sent_s - start_s,
        end_s=end_s - start_s,
        end=end,
        detail=detail,
        status=call.status,
        retry_after_s=_seconds(call),
        deadline_s=arrival.deadline_s,
        stream=call.expect == "stream",
        reused=call.reused,
        finish_reason=text.finish_reason,
        prompt_tokens=text.prompt_tokens,
        tokens=len(text.text_s) if counted is None else counted,
        tokens_counted=counted is not None,
        text_s=tuple(moment - start_s for moment in text.text_s),
    )


def _seconds(call: Call) -> float | None:
    """Retry-After in seconds; None if there is none, or a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = call.header(name)
        if value is not None and value.replace(".", "", 1).isdecimal() and value.isascii():
            return float(value) * unit
    return None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def first_model(client: Client, target: Target) -> str:
    """The first name of the server's list of models. RuntimeFailure if there is none."""
    call = Call(asyncio.get_running_loop().create_future(), "raw")
    await _ask(client, call, lambda _: target.request("GET", "/models", b"", {}), "list of models")
    data = call.body.data if isinstance(call.body, Raw) else b""
    try:
        models = msgspec.json.decode(data, type=_Models).data
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        models = []
    if not models:
        raise RuntimeFailure(f"{target.url} names no model; name one (--model)")
    return models[0].id


async def _warm_up(client: Client, target: Target, like: Arrival, model: str, count: int) -> None:
    """Requests without a deadline of their own, one after another, and again where the server
    declines: it may be busy with what came before. A server that goes on declining, by a deadline
    of its own, say, is there, and can be given the load.
    """
    stream = bool(like.body["stream"])
    other = backwards(like)
    body = {name: value for name, value in other.body.items() if name not in _PROMISE_FIELDS}
    free = msgspec.structs.replace(other, body=body, deadline_s=None)

    def make(_: float) -> bytes:
        return request_of(target, free, model, 0.0)

    patience_s = client.clock() + _PATIENCE_S
    for _ in range(count):
        while True:
            loop = asyncio.get_running_loop()
            call = Call(loop.create_future(), "stream" if stream else "answer")
            try:
                await _ask(client, call, make, "warm-up")
                break
            except _Declined as declined:
                if client.clock() + declined.wait_s > patience_s:
                    return
                await asyncio.sleep(declined.wait_s)


class _Declined(RuntimeFailure):
    """A call before the run was refused for now. wait_s: when to try again."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


async def _ask(client: Client, call: Call, make: Callable[[float], bytes], what: str) -> None:
    """A call before the run. RuntimeFailure if it isn't answered with 200."""
    where = f"{what}: {client.target.url}"
    try:
        async with asyncio.timeout(WARMUP_S):
            await client.run(call, make)
    except Failure as failure:
        raise RuntimeFailure(f"{where}: {failure.kind}: {failure.detail}") from None
    except TimeoutError:
        raise RuntimeFailure(f"{where} did not answer within {WARMUP_S:g} s") from None
    if isinstance(call.body, Refusal) and call.status in DECLINED:
        message = f"{where} answered {call.status}: {call.body.message}"
        raise _Declined(message, _seconds(call) or _AGAIN_S)
    if isinstance(call.body, Refusal):
        raise RuntimeFailure(f"{where} answered {call.status}: {call.body.message}")
