"""Standard streams that are full, closed or without a reader; Ctrl-C; texts cut by max_tokens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from subsecond import LLM, Chat, SamplingParams
from subsecond.cli import console, interrupt
from subsecond.formats import artifact

Run = Callable[..., "subprocess.CompletedProcess[str]"]
COMMANDS = [
    ["--help"],
    ["generate", "--help"],
    ["generate", "x", "-m", "ARTIFACT", "--max-tokens", "3"],
    ["generate", "x", "-m", "ARTIFACT", "--max-tokens", "3", "--json"],
    ["chat", "-m", "ARTIFACT", "--max-tokens", "3"],
    ["--version"],
    ["pull", "ARTIFACT", "--json"],
    ["verify", "ARTIFACT"],
    ["verify", "ARTIFACT", "--json"],
]


@pytest.fixture
def shell(tiny_artifact: Path, tmp_path: Path) -> Run:
    def start(arguments: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
        words = [str(tiny_artifact) if word == "ARTIFACT" else word for word in arguments]
        return subprocess.run(
            ["bash", "-c", f'"$0" -m subsecond "$@" {redirection}', sys.executable, *words],
            input="hello\n",
            capture_output=True,
            text=True,
            env={**os.environ, "SUBSECOND_HOME": str(tmp_path)},
            timeout=60,
            check=False,
        )

    return start


@pytest.mark.parametrize("arguments", [*COMMANDS, ["inspect", "ARTIFACT"]], ids=" ".join)
def test_a_full_standard_output_is_a_failure_in_one_line(shell: Run, arguments: list[str]) -> None:
    done = shell(arguments, ">/dev/full")
    assert done.returncode == 1, done.stderr
    assert done.stderr == "subsecond: error: standard output: No space left on device\n"


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_reader_that_leaves_is_no_error(shell: Run, arguments: list[str]) -> None:
    done = shell(arguments, "| exec 0<&-; exit ${PIPESTATUS[0]}")
    assert done.returncode in (0, 141)  # 0: all was written before the reader left
    assert "rror" not in done.stderr
    assert "Traceback" not in done.stderr


def test_streams_that_are_closed(shell: Run) -> None:
    generate = COMMANDS[2]
    for arguments in (generate, ["--help"], ["pull", "ARTIFACT"]):
        done = shell(arguments, ">&-")
        assert done.returncode == 2
        assert done.stderr.startswith("subsecond: error: standard output is closed; ")
    for redirection in ("2>&-", "2>/dev/full"):
        done = shell(generate, redirection)
        assert done.returncode == 0
        assert "tokens; first token" not in done.stdout
        assert shell(["generate"], redirection).returncode == 2
    for arguments in (["generate", "-", *generate[2:]], ["chat", *generate[2:]]):
        done = shell(arguments, "<&-")
        assert done.returncode == 2
        assert done.stderr.startswith("subsecond: error: standard input is closed; ")


def test_an_input_that_cannot_be_read_is_refused(shell: Run) -> None:
    for arguments in (["generate", "-", *COMMANDS[2][2:]], COMMANDS[4]):
        done = shell(arguments, "0>/dev/null")
        assert done.returncode == 2
        assert done.stderr.startswith("subsecond: error: standard input can't be read (Bad file")


def test_an_empty_pipe_ends_a_chat(shell: Run) -> None:
    assert shell(COMMANDS[4], "</dev/null").returncode == 0


def test_ctrl_c_ends_a_piped_chat(tiny_artifact: Path, tmp_path: Path) -> None:
    command = ["chat", "-m", str(tiny_artifact), "--max-tokens", "400", "--ignore-eos"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "subsecond", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SUBSECOND_HOME": str(tmp_path)},
        bufsize=0,
    )
    process.stdin.write(b"hello\n")
    process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"subsecond: interrupted\n")


CONVERTING = """
import signal, sys
from subsecond.cli import main
from subsecond.formats.progress import TerminalProgress

def interrupted(self, what, done, total, unit):
    if done:  # part of the artifact is written
        signal.raise_signal(signal.SIGINT)

TerminalProgress.__call__ = interrupted
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_a_conversion_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONVERTING, "convert", tiny_checkpoint, "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "subsecond: interrupted\n")
    assert list(tmp_path.iterdir()) == []


NATIVE = """
import threading, os, signal
from subsecond import _native
from subsecond.cli import console, interrupt
with interrupt.watched(console.note):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    _native.limits.f32_rate(1, 60.0)
"""

STUCK = """
import threading, os, signal, time
from subsecond.cli import console, interrupt
interrupt.END_S = 0.2
with interrupt.watched(console.note):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        time.sleep(60)
    finally:
        time.sleep(60)
"""


@pytest.mark.parametrize("code", [NATIVE, STUCK], ids=["native", "stuck"])
def test_ctrl_c_does_not_wait_for_what_takes_long(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (130, "subsecond: interrupted\n")


def test_what_fails_because_it_was_interrupted_is_no_error() -> None:
    def cut_short() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise BufferError("cannot close")

    with pytest.raises(KeyboardInterrupt), interrupt.watched(console.note):
        cut_short()
    with pytest.raises(ZeroDivisionError), interrupt.watched(console.note):
        _ = 1 // 0


IMPORTING = """
import sys, os, signal
from subsecond.cli import main

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "subsecond.cli.run":
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
            raise ImportError("the interrupt was lost")

sys.meta_path.insert(0, Finder())
sys.exit(main())
"""


def test_ctrl_c_during_the_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (130, "subsecond: interrupted\n")


SWALLOWED = """
import sys, signal, weakref
from subsecond.cli import console, interrupt
sys.unraisablehook = lambda _: None
class Thing: pass
with interrupt.watched(console.note):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    print("swallowed", flush=True)
"""


def test_ctrl_c_that_a_callback_swallowed_counts_at_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "swallowed\n"
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"


def test_ctrl_c_while_checksums_are_compared(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads that read the mapping end before it does. (A thread's error fails the test.)"""
    hash, join = artifact.xxhash.xxh3_64_hexdigest, threading.Thread.join
    calls = []

    def slow(data: memoryview) -> str:
        time.sleep(0.01)
        return hash(data)

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        calls.append(thread)
        if len(calls) == 1:
            raise KeyboardInterrupt
        join(thread, timeout)

    monkeypatch.setattr(artifact.xxhash, "xxh3_64_hexdigest", slow)
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        artifact.open_artifact(tiny_artifact)
    assert len(calls) > 1
    assert not any(thread.is_alive() for thread in calls)


def test_the_handlers_are_put_back() -> None:
    before, calls = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), interrupt.watched(console.note):
        signal.raise_signal(signal.SIGINT)
    with interrupt.calling(lambda: calls.append(1)):
        signal.raise_signal(signal.SIGINT)
    assert calls == [1]
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(("tokens", "text"), [(1, ""), (2, "\ufffd"), (3, "\ufffd\ufffd")])
def test_an_answer_cut_inside_a_character_ends_before_it(
    tiny_artifact: Path, tokens: int, text: str
) -> None:
    """Every token is E4, the first byte of a Chinese character. The last one may have begun a
    character; those before it are no character, and stay.
    """
    # The tiny tokenizer's first 256 ids are bytes.
    params = SamplingParams(
        temperature=0.0, max_tokens=tokens, logit_bias={0xE4: 100.0}, ignore_eos=True
    )
    with LLM(tiny_artifact, threads=1, max_sequences=1) as llm:
        done = llm.generate("x", params)[0]
        assert (done.text, len(done.token_ids), done.finish_reason) == (text, tokens, "length")
        assert "".join(piece.text for piece in llm.stream("x", params)) == text
        chat = Chat(llm, params=params)
        assert chat.send("x") == text
        assert chat.messages[-1]["content"] == text
