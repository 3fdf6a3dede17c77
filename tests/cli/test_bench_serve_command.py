"""`subsecond bench serve`: from words to a load, and its output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
from stand_in import StandIn, response, saying

pytest.importorskip("httptools", reason="extra [bench]")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_load_in_text_json_samples_and_trace(
    inline: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    samples = tmp_path / "samples.jsonl"
    with StandIn() as server:
        done = inline(
            "bench", "serve", server.url, "--rate", "200", "--duration", "0.1", "--requests", "30",
            "--deadline-ms", "60000", "--max-tokens", "3", "--body", "temperature=0", "--body",
            "on_deadline=full", "--samples", str(samples), "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["model"] == "stand-in" and found["all"]["on_time"] == found["all"]["requests"]
        assert found["all"]["requests"] >= 30
        assert {r.headers["authorization"] for r in server.requests} == {"Bearer sk-test"}
        assert {r.json["temperature"] for r in server.requests} == {0}
        asked = server.requests[-found["all"]["requests"] :]  # warm-ups ask for no promise
        assert {r.json["on_deadline"] for r in asked} == {"full"}
        assert "sk-test" not in done.stdout + done.stderr + samples.read_text()
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        assert [line["number"] for line in lines] == list(range(found["all"]["requests"]))

        trace = tmp_path / "trace.jsonl"
        trace.write_text('{"at_s": 0.01, "prompt": "b"}\n{"at_s": 0, "prompt": "a"}\n')
        done = inline("bench", "serve", server.url, "--trace", str(trace), "--no-stream")
        assert done.returncode == 0 and "2 requests" in done.stdout
        assert [r.json["messages"][0]["content"] for r in server.requests[-2:]] == ["a", "b"]


def test_nothing_but_failures_is_exit_1(inline: Run) -> None:
    words = ("--rate", "50", "--duration", "0.1", "--warmup", "0", "--model", "m")
    with StandIn(saying(response(b"{}", "500 Oops"))) as server:
        done = inline("bench", "serve", server.url, *words)
        assert done.returncode == 1 and "status 500" in done.stdout
    with StandIn(saying(response(b"{}", "429 No"))) as server:
        assert inline("bench", "serve", server.url, *words).returncode == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "url is missing"),
        (["http://127.0.0.1:1"], "give either --rate"),
        (["http://127.0.0.1:1", "--rate", "1", "--trace", "x"], "give either --rate"),
        (["http://127.0.0.1:1", "--trace", "x", "--duration", "3"], "--duration belongs to --rate"),
        (["http://127.0.0.1:1", "--trace", "/nonexistent"], "can't read '/nonexistent'"),
        (["http://127.0.0.1:1", "--rate", "-3"], "rate is -3"),
        (["ftp://127.0.0.1:1", "--rate", "1"], "must be http://"),
        (["http://127.0.0.1:1", "--rate", "1", "--body", "x"], "NAME=JSON"),
        (["http://127.0.0.1:1", "--rate", "1", "--body", "model=x"], "field model has an option"),
        (["http://127.0.0.1:1", "--rate", "1", "--body", "a=1", "--body", "a=2"], "given twice"),
        (["http://127.0.0.1:1", "--rate", "1", "--endpoint", "x"], "one of chat, completions"),
        (["http://127.0.0.1:1", "--rate", "1", "--drain", "-1"], "drain is -1"),
        (["http://127.0.0.1:1", "--rate", "1", "--warmup", "-1"], "warmup is -1"),
        (["http://127.0.0.1:1", "--rat", "1"], "unknown option '--rat'; did you mean --rate"),
    ],
)
def test_bad_use_is_one_line(inline: Run, words: list[str], problem: str) -> None:
    done = inline("bench", "serve", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr and len(done.stderr.splitlines()) == 1


def test_help_of_both_forms(inline: Run) -> None:
    assert "--rate" in inline("bench", "serve", "--help").stdout
    assert "--prefill" in inline("bench", "--help").stdout
    assert "bench serve" in inline("--help").stdout
