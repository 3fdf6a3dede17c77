"""`subsecond serve` as a process: what it prints, what it imports, how it ends."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from command import COMMAND, ENVIRONMENT, PATIENCE_S, command


def options(artifact: Path) -> list[str]:
    return ["--model", f"m={artifact}", "--port", "0", "--threads", "1", "--max-sequences", "4"]


@contextmanager
def stream(port: int, tokens: int) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    body = {"model": "m", "prompt": "hello", "max_tokens": tokens, "min_tokens": tokens}
    connection.request(
        "POST",
        "/v1/completions",
        json.dumps({**body, "stream": True}),
        {"content-type": "application/json"},
    )
    with closing(connection), connection.getresponse() as response:
        yield response


def test_it_states_its_capacity_answers_and_ends_cleanly(artifact: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    found: list[set[Path]] = []
    for _ in range(2):
        with command(*options(artifact), "--within", "20s", "--state", str(state)) as running:
            process, lines, port = running
            assert re.search(r"m promises [\d.]+ requests/s of 128 in, 48 out; p99", "".join(lines))
            with stream(port, 300) as answer:
                assert answer.readline().startswith(b"data: ")
                process.send_signal(signal.SIGTERM)
                assert answer.read().endswith(b"data: [DONE]\n\n")
            assert process.wait(PATIENCE_S) == 0
        found.append(set(artifact.parent.glob(f".{artifact.name}.costs-*.json")))
    assert found[0] and found[0] == found[1]  # the second start has nothing to measure
    row = json.loads((state / "ledger.jsonl").read_text().splitlines()[-1])
    assert (row["promised"], row["kept"]) == (2, 2)


def test_the_drain_has_an_end(artifact: Path) -> None:
    with command(*options(artifact), "--drain", "0s") as (process, _, port):
        with stream(port, 480) as answer:
            assert answer.readline().startswith(b"data: ")
            process.send_signal(signal.SIGTERM)
            rest = answer.read()
        assert b"event: error" in rest or rest.endswith(b"[DONE]\n\n")
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "192.0.2.1"], "API keys are needed"),
        (["--within", "soon"], "--within must be a time"),
        (["--model", "m"], "--model must be NAME=PATH"),
        (["/nothing/here"], "/nothing/here"),
        (["--keys", "/nothing/keys.json"], "there are no keys"),
        (["--port", "70000"], "port is 70000"),
    ],
)
def test_bad_use_is_one_line_and_exit_code_2(artifact: Path, words: list[str], said: str) -> None:
    given = words if words[0].startswith("/") else [*options(artifact), *words]
    run = subprocess.run(
        [*COMMAND, *given],
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 2
    assert said in run.stderr and "Traceback" not in run.stderr


PROGRAM = """
import sys
import subsecond.cli.serve_command, subsecond.serve.run
print(" ".join(name for name in sys.modules if "." not in name))
"""


def test_the_front_imports_nothing_heavy() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "transformers", "numpy", "ray", "pydantic", "fastapi", "gguf"}
    assert not set(run.stdout.split()) & heavy
