"""The load generator against a scripted server: order, accounting and kinds of ends, no durations.

A limit of time appears only where the script never answers, so that it is reached on any machine.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import msgspec
import pytest
from stand_in import (
    DONE,
    Request,
    Script,
    StandIn,
    answer,
    chunked,
    event,
    piece,
    response,
    saying,
    stream,
    whole,
)

from subsecond.bench import load as load_module
from subsecond.bench.load import Limits, Run, load, request_of
from subsecond.bench.load_arrivals import Schedule, Shape, burst, poisson
from subsecond.bench.load_client import MAX_HEADER_BYTES, Target
from subsecond.bench.load_summary import group
from subsecond.errors import InputError, RuntimeFailure

pytest.importorskip("httptools", reason="extra [bench]")

SHAPE = Shape(prompt_words=3, max_tokens=4)


def ends(run: Run) -> Counter[str]:
    return Counter(o.end for o in run.outcomes)


def at(shape: Shape, *moments: float) -> Schedule:
    """Requests due at these moments."""
    arrivals = burst(shape, len(moments)).arrivals
    placed = zip(arrivals, moments, strict=True)
    return Schedule(
        what="at",
        duration_s=max(moments),
        arrivals=tuple(msgspec.structs.replace(own, at_s=moment) for own, moment in placed),
        seed=0,
    )


def one(script: Script, shape: Shape = SHAPE, limits: Limits | None = None) -> Any:
    """The outcome of one request."""
    with StandIn(script) as server:
        schedule = burst(shape, 1)
        run = load(Target.of(server.url), schedule, model="m", warmup=0, limits=limits)
        assert len(server.requests) == 1  # never sent twice
    assert len(run.outcomes) == 1
    return run.outcomes[0]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("streamed", [True, False])
def test_answers_are_read(endpoint: Any, streamed: bool) -> None:
    shape = Shape(prompt_words=3, max_tokens=4, endpoint=endpoint, stream=streamed, deadline_s=60)
    shown: list[tuple[int, int]] = []
    with StandIn() as server:
        run = load(
            Target.of(server.url),
            poisson(shape, 2000, 0.01, requests=20),
            progress=lambda _what, done, total, _unit: shown.append((done, total)),
        )
        sent = [request for request in server.requests if "x-deadline-ms" in request.headers]
    assert run.model == "stand-in"
    assert len(server.requests) == 21 and len(sent) == 20  # one to warm up, without a deadline
    assert {request.json["model"] for request in sent} == {"stand-in"}
    assert ends(run) == {"answered": 20} and [o.number for o in run.outcomes] == list(range(20))
    for o in run.outcomes:
        assert o.sent_s is not None and o.at_s <= o.sent_s <= o.end_s and o.in_time
        assert (o.tokens, o.finish_reason, o.tokens_counted) == (4, "length", True)
        assert len(o.text_s) == (4 if streamed else 1)
        assert o.sent_s <= o.text_s[0] and o.text_s[-1] <= o.end_s
    assert shown[-1] == (20, 20)
    assert run.cost.connections + run.cost.reused == 20


def test_requests_go_out_though_none_is_answered() -> None:
    """A generator that waited for answers would never send the last one."""
    count = 40
    all_there = threading.Event()
    arrived: list[int] = []

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        arrived.append(request.number)
        if len(arrived) == count:
            all_there.set()
        while not all_there.is_set():
            await asyncio.sleep(0.001)
        await answer(request, writer)

    with StandIn(script) as server:
        schedule = at(SHAPE, *(place / 1000 for place in range(count)))
        run = load(Target.of(server.url), schedule, model="m", warmup=0)
    assert ends(run) == {"answered": count}
    last_sent_s = max(o.sent_s for o in run.outcomes if o.sent_s is not None)
    for o in run.outcomes:
        assert o.end_s >= last_sent_s  # nobody was answered before the last was sent
        assert o.latency_s >= last_sent_s - o.at_s  # and that wait is in its latency
    assert run.cost.connections == count


def test_time_counts_from_the_moment_not_from_the_sending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock jumps when the first request is made: the second one is sent much too late, and
    that is in its latency.
    """
    jump_s = 1000.0
    jumped = threading.Event()
    told: list[float] = []

    def clock() -> float:
        return time.monotonic() + (jump_s if jumped.is_set() else 0.0)

    def made(target: Target, arrival: Any, model: str, late_s: float) -> bytes:
        jumped.set()
        told.append(late_s)
        return request_of(target, arrival, model, late_s)

    monkeypatch.setattr(load_module, "request_of", made)
    shape = Shape(prompt_words=1, max_tokens=1, deadline_s=500.0)
    limits = Limits(timeout_s=5000, drain_s=5000)
    with StandIn() as server:
        schedule = at(shape, 0.0, 0.05)
        run = load(Target.of(server.url), schedule, model="m", warmup=0, limits=limits, clock=clock)
    second = run.outcomes[1]
    assert ends(run) == {"answered": 2}
    assert second.sent_s is not None and second.sent_s - second.at_s >= jump_s - 0.05
    assert second.latency_s >= second.sent_s - second.at_s >= told[1] - 1e-6
    assert not second.in_time
    assert any(stall.overlaps(0.0, jump_s) for stall in run.stalls)  # so did the machine's clock


CUT_STREAM = stream(["a", "b", "c"])


@pytest.mark.parametrize(
    ("script", "end", "detail"),
    [
        (saying(close=True), "closed", "before the answer"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Le", close=True), "closed", "before the answer"),
        (saying(*CUT_STREAM[:3], close=True), "closed", "in the answer"),
        (saying(*CUT_STREAM[:-2], b"0\r\n\r\n"), "format", "[DONE]"),
        (saying(b"SSH-2.0-OpenSSH_9.6\r\n"), "http", ""),
        (saying(b"\x00\xff" * 50), "http", ""),
        (saying(b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEADER_BYTES + b"\r\n\r\n"), "http", "head"),
        (saying(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), "http", ""),
        (saying(response(b"{}")), "format", "asked for text/event-stream"),
        (saying(response(b"no", kind="text/html")), "format", "got text/html"),
        (saying(response(b"busy", "500 Oops")), "status", "busy"),
        (saying(response(b'{"error": {"message": "no field x"}}', "400 Bad")), "status", "field x"),
        (saying(*chunked(piece("a"), event({"error": {"message": "engine died"}}))),
         "error event", "engine died"),
        (saying(*chunked(b"data: {]\n\n", DONE)), "format", ""),
    ],
)  # fmt: skip
def test_each_failure_has_its_kind(script: Script, end: str, detail: str) -> None:
    outcome = one(script)
    assert outcome.end == end and detail in outcome.detail
    assert not outcome.in_time


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "3"}, 3.0),
        ({"Retry_After": "3", "retry_after_ms": "2500"}, 2.5),
        ({"Retry_After": "Fri, 31 Dec 1999 23:59:59 GMT"}, None),
        ({}, None),
    ],
)
def test_declines_are_no_failures(
    status: str, headers: dict[str, str], seconds: float | None
) -> None:
    body = b'{"error": {"message": "too busy"}}'
    outcome = one(saying(response(body, status, **headers)))
    assert (outcome.end, outcome.retry_after_s) == ("declined", seconds)
    assert (outcome.status, outcome.detail) == (int(status[:3]), "too busy")


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    parts = [piece("a"), piece("b", "stop"), DONE]
    assert one(saying(head, *parts, close=True)).end == "answered"
    assert one(saying(head, *parts[:-1], close=True)).end == "format"


def test_bytes_one_by_one_are_an_answer_too() -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + b"".join(stream(["x", "y"]))
    outcome = one(saying(*(data[place : place + 1] for place in range(len(data)))))
    assert (outcome.end, outcome.tokens, len(outcome.text_s)) == ("answered", 2, 2)


def test_what_never_ends_is_given_up() -> None:
    async def silent(_request: Request, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    assert one(silent, limits=Limits(timeout_s=1.0)).end == "timeout"
    assert one(silent, limits=Limits(drain_s=1.0)).end == "unfinished"

    async def halfway(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.writelines(CUT_STREAM[:3])
        await asyncio.Event().wait()

    outcome = one(halfway, limits=Limits(drain_s=1.0))
    assert outcome.end == "unfinished" and outcome.finish_reason is None


def test_nobody_listens() -> None:
    with StandIn() as server:
        url = server.url
    run = load(Target.of(url), burst(SHAPE, 3), model="m", warmup=0)
    assert ends(run) == {"connect": 3}
    assert all(o.sent_s is None and "refused" in o.detail for o in run.outcomes)


def test_a_thousand_requests_of_every_kind_have_one_end_each() -> None:
    """Cuts, declines, garbage, errors and answers, mixed: accounted to the last one."""
    scripts: list[Script] = [
        answer,
        answer,
        saying(*CUT_STREAM[:3], close=True),
        saying(response(b"{}", "429 No", Retry_After="1")),
        saying(b"garbage\r\n\r\n", close=True),
        saying(response(b"{}", "500 Oops", Connection="close"), close=True),
        saying(*chunked(event({"error": "x"}))),
    ]
    kinds = ["answered", "answered", "closed", "declined", "http", "status", "error event"]

    async def mixed(request: Request, writer: asyncio.StreamWriter) -> None:
        await scripts[request.number % len(scripts)](request, writer)

    with StandIn(mixed) as server:
        count = 1001
        schedule = poisson(SHAPE, 2000, 0.3, requests=count)
        run = load(Target.of(server.url), schedule, model="m", warmup=0)
    sent = len(schedule.arrivals)
    assert len(server.requests) == len(run.outcomes) == sent
    expected = Counter(kinds[number % len(kinds)] for number in range(sent))
    assert ends(run) == expected
    counts = group(run.outcomes)
    assert counts.requests == counts.answered + counts.declined + sum(counts.failed.values())
    assert run.cost.connections + run.cost.reused == sent
    assert run.cost.reused > 0


def test_a_connection_with_surplus_bytes_is_left() -> None:
    """The answer counts; what follows it could be taken for the next one's."""
    twice = whole() + whole("forged", 9)
    shape = Shape(prompt_words=1, max_tokens=2, stream=False)
    with StandIn(saying(twice)) as server:
        schedule = at(shape, 0.0, 0.05, 0.1, 0.15)
        run = load(Target.of(server.url), schedule, model="m", warmup=0)
    assert ends(run) == {"answered": 4}
    assert {o.tokens for o in run.outcomes} == {2}
    assert run.cost.reused == 0


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        (response(b'{"data": []}'), "names no model"),
        (response(b"<html>"), "names no model"),
        (response(b'{"error": {"message": "no key"}}', "401 No"), "401: no key"),
    ],
)
def test_a_server_without_models_is_named(models: bytes, problem: str) -> None:
    with StandIn(models=models) as server, pytest.raises(RuntimeFailure, match=problem):
        load(Target.of(server.url), burst(SHAPE, 1))


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_the_warm_up_brings_no_prompt_of_the_load_into_a_cache(endpoint: Any) -> None:
    shape = Shape(prompt_words=20, max_tokens=4, endpoint=endpoint, deadline_s=60.0)
    chat = endpoint == "chat"
    with StandIn() as server:
        load(Target.of(server.url), burst(shape, 1), model="m", warmup=2)
        bodies = [request.json for request in server.requests]
    texts = [body["messages"][0]["content"] if chat else body["prompt"] for body in bodies]
    assert texts[0] == texts[1] == " ".join(reversed(texts[2].split()))
    assert texts[0].split()[:3] != texts[2].split()[:3]
    assert [body["max_tokens"] for body in bodies] == [4, 4, 4]


def test_a_server_that_fails_the_warm_up_gets_no_load() -> None:
    with StandIn(saying(response(b'{"error": {"message": "bad field"}}', "400 Bad"))) as server:
        with pytest.raises(RuntimeFailure, match=r"warm-up.*400: bad field"):
            load(Target.of(server.url), burst(SHAPE, 5))
        assert len(server.requests) == 1


def test_a_warm_up_that_is_declined_is_tried_again_without_its_deadline() -> None:
    declined = response(b'{"error": {"message": "busy"}}', "429 Too", retry_after_ms="5")
    seen: list[dict[str, Any]] = []

    async def script(request: Any, writer: Any) -> None:
        seen.append(request.json)
        if len(seen) < 4:
            writer.write(declined)
        else:
            await answer(request, writer)

    body = {"deadline_ms": 900, "on_deadline": "full", "temperature": 0}
    with StandIn(script) as server:
        shape = Shape(prompt_words=3, max_tokens=4, body=body)
        run = load(Target.of(server.url), burst(shape, 2))
    assert ends(run) == {"answered": 2}
    assert [("deadline_ms" in own, "on_deadline" in own) for own in seen] == [
        *[(False, False)] * 4,
        *[(True, True)] * 2,
    ]
    assert all(own["temperature"] == 0 for own in seen)


def test_a_server_that_declines_every_warm_up_is_given_the_load() -> None:
    never = response(b'{"error": {"message": "too slow"}}', "429 Too", retry_after="3600")
    with StandIn(saying(never)) as server:
        run = load(Target.of(server.url), burst(SHAPE, 3), warmup=2)
        assert len(server.requests) == 4
    assert ends(run) == {"declined": 3}


def test_limits_are_checked() -> None:
    for limits in (Limits(timeout_s=0), Limits(drain_s=-1), Limits(drain_s=float("nan"))):
        with pytest.raises(InputError):
            load(Target.of("http://127.0.0.1:1"), burst(SHAPE, 1), limits=limits)
