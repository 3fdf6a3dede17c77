"""The load generator's pure parts: schedules, answers in pieces, beats, figures."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in import DONE, event, piece, usage

from subsecond.bench import load_answer, load_plot
from subsecond.bench.load import Cost, Limits, Outcome, Run, request_of
from subsecond.bench.load_answer import Body, EventStream, Failure, Refusal, shortened
from subsecond.bench.load_arrivals import Shape, burst, poisson, read_trace
from subsecond.bench.load_client import Target
from subsecond.bench.load_heartbeat import STALL_S, Heartbeat, Stall
from subsecond.bench.load_summary import distribution, group, summarize
from subsecond.errors import InputError

SHAPE = Shape(prompt_words=5, max_tokens=3, deadline_s=1.0)


# --- schedules


def test_a_seed_says_the_whole_schedule() -> None:
    first, again = poisson(SHAPE, 20, 5), poisson(SHAPE, 20, 5)
    assert first == again
    other = poisson(Shape(prompt_words=5, seed=1), 20, 5)
    assert [a.at_s for a in other.arrivals] != [a.at_s for a in first.arrivals]
    moments = [a.at_s for a in first.arrivals]
    assert moments == sorted(moments) and moments[0] > 0 and moments[-1] < 5
    prompts = {a.body["messages"][0]["content"] for a in first.arrivals}
    assert len(prompts) == len(moments)  # no two the same
    assert {len(prompt.split()) for prompt in prompts} == {5}


def test_poisson_gaps_are_exponential() -> None:
    moments = [a.at_s for a in poisson(Shape(prompt_words=1), 100, 100).arrivals]
    gaps = [b - a for a, b in pairwise(moments)]
    mean = math.fsum(gaps) / len(gaps)
    spread = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(0.01, rel=0.05)  # 10,000 gaps of one seed: deterministic
    assert spread == pytest.approx(mean, rel=0.05)


def test_so_many_requests_even_past_the_duration() -> None:
    schedule = poisson(SHAPE, 10, 1, requests=50)
    assert len(schedule.arrivals) == 50
    assert schedule.duration_s == schedule.arrivals[-1].at_s > 1
    assert len(poisson(SHAPE, 10, 10, requests=5).arrivals) > 50  # the duration is longer


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: poisson(SHAPE, 0, 1), "rate is 0"),
        (lambda: poisson(SHAPE, math.nan, 1), "rate is nan"),
        (lambda: poisson(SHAPE, 1, math.inf), "duration is inf"),
        (lambda: poisson(SHAPE, 1e5, 1e5), "at most 1,000,000 requests"),
        (lambda: burst(SHAPE, 0), "count is 0"),
        (lambda: burst(Shape(max_tokens=0), 1), "max_tokens is 0"),
        (lambda: burst(Shape(deadline_s=0), 1), "deadline is 0 s"),
        (lambda: burst(Shape(text=" \n"), 1), "no word"),
        (lambda: burst(Shape(body={"stream": False}), 1), "field stream has an option"),
    ],
)
def test_impossible_loads_are_refused(make: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        make()


def test_prompts_go_through_a_text_round_and_round() -> None:
    arrivals = burst(Shape(prompt_words=3, text="a b c d", endpoint="completions"), 4).arrivals
    words = " ".join(a.body["prompt"] for a in arrivals).split()
    assert len(words) == 12
    following = {"a": "b", "b": "c", "c": "d", "d": "a"}
    assert all(following[x] == y for x, y in pairwise(words))


def test_a_trace_is_sorted_and_filled(tmp_path: Path) -> None:
    lines = [
        {"at_s": 2, "prompt": "late", "max_tokens": 9, "stream": False, "body": {"seed": 4}},
        {"at_s": 0.5, "messages": [{"role": "user", "content": "hi"}], "deadline_ms": 250},
        {"at_s": 1, "prompt_words": 2},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    schedule = read_trace(path, SHAPE)
    first, second, third = schedule.arrivals
    assert [a.at_s for a in schedule.arrivals] == [0.5, 1, 2] and schedule.duration_s == 2
    assert first.deadline_s == 0.25 and first.body["messages"][0]["content"] == "hi"
    assert len(second.body["messages"][0]["content"].split()) == 2 and second.deadline_s == 1
    assert third.body == {
        "max_tokens": 9,
        "stream": False,
        "seed": 4,
        "messages": [{"role": "user", "content": "late"}],
    }


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2 of 't.jsonl'"),
        ("[]", "line 2"),
        ('{"at_s": -1}', "at_s is -1"),
        ('{"at_s": "1"}', r"\$\.at_s"),
        ('{"prompt": "x"}', "at_s"),
        ('{"at_s": 0, "promt": "x"}', "promt"),
        ('{"at_s": 0, "prompt": "x", "prompt_words": 3}', "prompt and prompt_words"),
        ('{"at_s": 0, "messages": []}', "messages is empty"),
        ('{"at_s": 0, "max_tokens": 0}', "max_tokens is 0"),
        ('{"at_s": 0, "deadline_ms": 0}', "deadline is 0"),
        ('{"at_s": 0, "body": {"model": "x"}}', "field model"),
        ('{"at_s": 0, "body": ' + '{"a":' * 100_000 + "}", "line 2"),
    ],
)
def test_a_bad_line_is_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"at_s": 0}\n' + line)
    with pytest.raises(InputError, match=problem):
        read_trace(path, SHAPE)


def test_a_trace_without_requests_or_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match="no request"):
        read_trace(tmp_path / "empty", SHAPE)
    with pytest.raises(InputError, match="can't read"):
        read_trace(tmp_path / "none", SHAPE)


# --- requests


def test_the_server_is_told_what_is_left_of_the_deadline() -> None:
    target = Target.of("http://127.0.0.1:1", key="secret")
    arrival = burst(SHAPE, 1).arrivals[0]
    head, _, body = request_of(target, arrival, "m", 0.0304).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:1\r\n")
    assert b"\r\nX-Deadline-Ms: 969\r\n" in head + b"\r\n"
    assert b"\r\nAuthorization: Bearer secret\r\n" in head
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head
    sent = json.loads(body)
    assert sent["model"] == "m" and sent["stream_options"] == {"include_usage": True}
    assert b"X-Deadline-Ms: 1" in request_of(target, arrival, "m", 7.0)
    own = burst(Shape(deadline_s=1.0, body={"deadline_ms": 800}), 1).arrivals[0]
    assert b"X-Deadline" not in request_of(target, own, "m", 0.0)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8000", "/v1"),
        ("http://127.0.0.1:8000/", "/v1"),
        ("http://127.0.0.1:8000/v1/", "/v1"),
        ("http://127.0.0.1/proxy", "/proxy/v1"),
    ],
)
def test_urls(url: str, base: str) -> None:
    assert Target.of(url).base == base


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:80",
        "ftp://127.0.0.1",
        "http://",
        "http://u:p@127.0.0.1",
        "http://127.0.0.1/?a=1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1/\r\nX: y",
        "http://127.0.0.1/a b",
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="the URL"):
        Target.of(url)


def test_a_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(InputError, match="API key"):
        Target.of("http://127.0.0.1", key="a\r\nX: y")


# --- answers


STREAM = (
    b": a comment\r\n\r\n"
    + piece("")
    + piece("Hé")
    + b"event: message\nid: 3\n"
    + piece("llo").replace(b"\n", b"\r\n")
    + piece(None, "stop")
    + usage(11, 5)
    + DONE
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_a_stream_says_the_same_however_it_is_cut(cuts: list[int]) -> None:
    body, places = EventStream(), [0, *sorted(cuts), len(STREAM)]
    for number, (begin, end) in enumerate(pairwise(places)):
        body.feed(STREAM[begin:end], float(number))
    body.end(99.0)
    assert len(body.text_s) == 2 and list(body.text_s) == sorted(body.text_s)
    assert body.finish_reason == "stop"
    assert (body.prompt_tokens, body.completion_tokens) == (11, 5)


@pytest.mark.parametrize(
    ("data", "kind", "detail"),
    [
        (piece("a"), "format", r"without \[DONE\]"),
        (b"data: {nonsense}\n\n" + DONE, "format", "nonsense"),
        (b'data: {"choices": 3}\n\n', "format", "choices"),
        (b'data: {"error": ' + b"[" * 200_000 + b"\n\n", "format", "recursion"),
        (b"data: \xff\xfe\n\n" + DONE, "format", "malformed|utf-8"),
        (event({"error": {"message": "out of\nluck", "code": 500}}), "error event", "out of luck"),
        (event({"error": "boom"}), "error event", "boom"),
        (DONE + piece("more"), "format", r"after \[DONE\]"),
        (b"data: " + b"x" * (load_answer.MAX_LINE_BYTES + 1), "http", "more than"),
        (b"data: abc\n" * (load_answer.MAX_LINE_BYTES // 9 + 1), "http", "more than"),
        (b"", "format", r"without \[DONE\]"),
    ],
)
def test_broken_streams_fail_by_kind(data: bytes, kind: str, detail: str) -> None:
    body = EventStream()
    with pytest.raises(Failure, match=detail) as caught:
        body.feed(data, 1.0)
        body.end(2.0)
    assert caught.value.kind == kind


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_failure_or_an_answer(data: bytes) -> None:
    for body in (EventStream(), Body(), Refusal()):
        try:
            body.feed(data, 1.0)
            body.end(2.0)
        except Failure as failure:
            assert failure.kind in ("format", "http", "error event")


def test_what_others_sent_is_shown_harmlessly() -> None:
    assert shortened("a\n\x1b[31mb\x00") == "a ?[31mb?"
    assert len(shortened("x" * 10_000)) == load_answer.DETAIL_CHARACTERS
    refusal = Refusal()
    refusal.feed(b'{"error": {"message": "too late", "type": "deadline"}}', 0.0)
    refusal.end(0.0)
    assert refusal.message == "too late"


# --- beats


def test_a_stall_is_the_time_between_two_beats() -> None:
    moments = iter([0.0, 0.001, 0.003, 0.0031, 0.2, 0.201, 0.201 + STALL_S, 0.9])
    slept: list[float] = []
    heartbeat: Heartbeat

    def clock() -> float:
        now_s = next(moments)
        if now_s == 0.9:
            heartbeat._ended = True  # the last beat of this script
        return now_s

    heartbeat = Heartbeat(clock, slept.append)
    heartbeat._run()
    assert heartbeat.beats == len(slept) == 7
    assert set(slept) == {0.001}
    assert heartbeat.stalls == [Stall(0.0031, 0.2), Stall(0.201 + STALL_S, 0.9)]
    assert heartbeat.longest_s == pytest.approx(0.9 - 0.201 - STALL_S)


def test_overlap() -> None:
    stall = Stall(1.0, 2.0)
    assert stall.overlaps(0.0, 1.5) and stall.overlaps(1.9, 9.0) and stall.overlaps(0.0, 9.0)
    assert stall.overlaps(1.2, 1.3) and not stall.overlaps(0.0, 1.0) and not stall.overlaps(2, 3)


def test_the_thread_ends_with_its_block() -> None:
    with Heartbeat() as heartbeat:
        while heartbeat.beats < 3:
            pass
    assert not heartbeat._thread.is_alive()
    assert heartbeat.cpu_s > 0


# --- figures


@given(st.lists(st.floats(0, 1e3), max_size=300))
def test_percentiles_are_exact_and_supported(samples: list[float]) -> None:
    found = distribution(samples)
    assert found.count == len(samples)
    for own in found.percentiles:
        assert own.above >= 1 and own.value_s in samples
        at_most = sum(value <= own.value_s for value in samples)
        below = sum(value < own.value_s for value in samples)
        assert at_most >= own.quantile * len(samples) - 1e-6
        assert below < own.quantile * len(samples) + 1e-6
    given_for = {own.quantile for own in found.percentiles}
    assert (0.99 in given_for) == (len(samples) >= 100)
    assert (0.999 in given_for) == (len(samples) >= 1000)


def test_percentiles_of_known_samples() -> None:
    found = distribution(float(value) for value in range(1000, 0, -1))
    assert [(p.quantile, p.value_s, p.above) for p in found.percentiles] == [
        (0.5, 500.0, 500),
        (0.9, 900.0, 100),
        (0.95, 950.0, 50),
        (0.99, 990.0, 10),
        (0.999, 999.0, 1),
    ]
    assert found.greatest_s == 1000 and found.at(0.99) == 990 and found.at(0.25) is None


def outcome(number: int, at_s: float, end_s: float, end: str = "answered", **more: Any) -> Outcome:
    values: dict[str, Any] = {"deadline_s": 1.0, "sent_s": at_s, "tokens_counted": True}
    return Outcome(number=number, at_s=at_s, end_s=end_s, end=end, **(values | more))


def a_run(outcomes: list[Outcome], stalls: tuple[Stall, ...] = ()) -> Run:
    return Run(
        url="http://127.0.0.1:1",
        model="m",
        what="scripted",
        seed=0,
        duration_s=10.0,
        limits=Limits(),
        outcomes=tuple(outcomes),
        stalls=stalls,
        longest_beat_s=0.002,
        cost=Cost(wall_s=10.0, cpu_s=0.4, heartbeat_cpu_s=0.1, connections=2, reused=3),
    )


OUTCOMES = [
    outcome(0, 0.0, 0.8, finish_reason="length", tokens=4, text_s=(0.2, 0.4, 0.4, 0.8)),
    outcome(1, 1.0, 2.0, finish_reason="stop", tokens=2, text_s=(1.5, 2.0)),  # just in time
    outcome(2, 2.0, 3.1, finish_reason="stop", tokens=1, text_s=(3.0,)),
    outcome(3, 3.0, 3.9, finish_reason="deadline", tokens=1, text_s=(3.5,)),
    outcome(4, 4.0, 4.01, "declined", status=429, retry_after_s=2.0),
    outcome(5, 5.0, 5.02, "declined", status=503),
    outcome(6, 6.0, 6.5, "status", status=500, detail="ours"),
    outcome(7, 7.0, 7.5, "closed", detail="closed in the answer"),
    outcome(8, 8.0, 38.0, "unfinished", sent_s=None),
    outcome(9, 9.0, 9.5, finish_reason="stop", tokens=3, text_s=(9.2, 9.4, 9.5)),
]


def test_each_end_is_counted_once() -> None:
    counts = group(OUTCOMES)
    assert (counts.on_time, counts.late, counts.cut_short, counts.declined) == (3, 1, 1, 2)
    assert counts.failed == {"closed": 1, "status 500": 1, "unfinished": 1}
    assert counts.requests == counts.answered + counts.declined + sum(counts.failed.values())
    assert counts.answered == counts.on_time + counts.late + counts.cut_short
    assert counts.without_retry_after == 1 and counts.declined_by_status == {"429": 1, "503": 1}


def test_figures_of_a_run() -> None:
    found = summarize(a_run(OUTCOMES), 2)
    assert found.on_time_per_s == pytest.approx(3 / 10)
    assert found.requests_per_s == pytest.approx(1.0)
    assert found.tokens == 11 and found.retry_after_s == (2.0, 2.0)
    assert found.first_text.count == 5 and found.first_text.greatest_s == pytest.approx(1.0)
    assert found.between_texts.count == 3 + 1 + 2  # between the pieces of one answer only
    assert found.between_texts.greatest_s == pytest.approx(0.5)
    assert found.per_token.count == 3
    assert found.end_to_end.count == 5 and found.decline.count == 2
    assert found.share_of_processor == pytest.approx(0.04)
    assert found.share_of_machine == pytest.approx(0.02)
    text = found.text()
    for words in ("3 on time, 1 late, 1 cut short in time, 2 declined, 3 failed", "2.0% of 2"):
        assert words in text
    assert "Retry-After 2 to 2 s, 1 without" in text and "status 500: 1, first: ours" in text


def test_requests_that_met_a_stall_stand_apart() -> None:
    found = summarize(a_run(OUTCOMES, (Stall(2.5, 2.6), Stall(9.4, 9.9))), 2)
    assert found.stalled.requests == 3 and found.steady.requests == 7
    assert found.stalled.late == 1 and found.stalled.on_time == 1
    assert found.stalled.failed == {"unfinished": 1}  # it waited through both
    assert found.end_to_end.count == 3  # neither 2 nor 9
    assert found.all.requests == 10 and found.on_time_per_s == pytest.approx(0.3)
    assert "stood still 2 times, 0.600 s in all; 3 requests overlap" in found.text()


def test_a_run_without_requests_has_figures() -> None:
    found = summarize(a_run([]), 2)
    assert found.all.requests == 0 and found.on_time_per_s == 0
    assert "0 requests" in found.text()


def test_the_picture_tells_the_ends_apart() -> None:
    found = [load_plot.end_of(o) for o in OUTCOMES]
    assert found == [
        *("on time", "on time", "late", "cut short in time"),
        *("declined", "declined", "failed", "failed", "failed", "on time"),
    ]
    assert set(found) == set(load_plot.ENDS)


def test_the_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="extra [bench]")
    path = tmp_path / "load.png"
    load_plot.draw(a_run(OUTCOMES, (Stall(2.5, 2.6),)), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="can't write the plot"):
        load_plot.draw(a_run(OUTCOMES), tmp_path / "load.nonsense")
