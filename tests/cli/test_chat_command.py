"""`chat` on a terminal and from a pipe: Ctrl-C, a full context, and lines that are wrong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from terminal import Terminal

from subsecond import LLM, Chat, SamplingParams
from subsecond.cli.chat_session import Session
from subsecond.formats.convert import convert

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for an answer that takes minutes."""
    folder = tmp_path_factory.mktemp("talkative")
    made = tiny.write(
        "llama", folder / "checkpoint", tokenizer=True, max_position_embeddings=1 << 17
    )
    return convert(made, folder / "artifact", "int4").path


def endless(model: Path) -> list[str]:
    options = ["--ignore-eos", "--temperature", "1.5", "--seed", "1", "--max-tokens", "100000"]
    return ["chat", "-m", str(model), "--threads", "1", *options]


def test_ctrl_c_at_the_prompt_clears_the_line(tiny_artifact: Path, tmp_path: Path) -> None:
    command = ["chat", "-m", str(tiny_artifact), "--max-tokens", "3"]
    with Terminal(command, SUBSECOND_HOME=str(tmp_path)) as terminal:
        terminal.expect("> ")
        terminal.send("half a mess")
        terminal.expect("mess")
        terminal.interrupt("Ctrl-C again")
        terminal.expect("> ")
        terminal.send("/help\r")  # a line in between: the next Ctrl-C is the first one again
        terminal.expect("end the chat (also")
        terminal.expect("> ")
        terminal.interrupt("Ctrl-C again")
        terminal.expect("> ")
        terminal.send("hello\r")
        terminal.expect("> ")
        terminal.send("/history\r")
        assert "half a mess" not in terminal.expect("assistant: ")
        terminal.expect("> ")
        terminal.send("/quit\r")
        assert terminal.end() == 0
        assert b"Traceback" not in terminal.seen


def test_ctrl_c_twice_leaves(tiny_artifact: Path, tmp_path: Path) -> None:
    with Terminal(["chat", "-m", str(tiny_artifact)], SUBSECOND_HOME=str(tmp_path)) as terminal:
        terminal.expect("> ")
        terminal.interrupt("Ctrl-C again")
        terminal.expect("> ")
        terminal.interrupt("subsecond: interrupted")
        assert terminal.end() == 130
        assert b"Traceback" not in terminal.seen


@pytest.mark.parametrize("keys", ["\x04", "/quit\r", "/exit\r"])
def test_ways_out_of_a_chat(tiny_artifact: Path, tmp_path: Path, keys: str) -> None:
    with Terminal(["chat", "-m", str(tiny_artifact)], SUBSECOND_HOME=str(tmp_path)) as terminal:
        terminal.expect("> ")
        terminal.send(keys)
        assert terminal.end() == 0


def test_ctrl_c_ends_the_answer_and_keeps_what_came(talkative: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    with Terminal(endless(talkative), SUBSECOND_HOME=str(tmp_path)) as terminal:
        terminal.expect("> ")
        for line in ("tell me all\r", "and more\r"):
            terminal.send(line)
            terminal.expect(f"{line}\n")  # the echo; what follows is the answer
            terminal.expect_something()
            terminal.interrupt("[interrupted]")
            terminal.expect("> ")
            terminal.send(f"/save {saved}\r")
            terminal.expect("> ")
        terminal.send("/quit\r")
        assert terminal.end() == 0
        assert b"Traceback" not in terminal.seen
    turns = json.loads(saved.read_text("utf-8"))
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert turns[0]["content"] == "tell me all"
    assert all(turn["content"] for turn in turns)


def test_a_place_that_cannot_be_written_costs_the_history_only(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "home").touch()
    command = ["chat", "-m", str(tiny_artifact), "--max-tokens", "2"]
    with Terminal(command, SUBSECOND_HOME=str(tmp_path / "home")) as terminal:
        terminal.expect("> ")
        terminal.send("/quit\r")
        assert terminal.end() == 0


@pytest.fixture
def session(tiny_artifact: Path) -> Iterator[Session]:
    with LLM(tiny_artifact, threads=1, max_sequences=1, context=100) as llm:
        params = SamplingParams(temperature=0.0, ignore_eos=True)
        yield Session(Chat(llm, params=params, answer_tokens=20), llm, can_grow=True)


def test_a_full_context_says_what_to_do_and_the_chat_goes_on(
    session: Session, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(20):
        session.take("hello you there")
        if session.failed:
            break
    errors = capfd.readouterr().err
    assert session.failed == 2
    assert "doesn't fit the context of 100" in errors
    assert "/drop forgets the oldest turn, /reset all turns" in errors
    assert "larger --context" in errors
    turns = len(session.chat.messages)
    assert turns >= 2
    session.take("/drop")
    assert len(session.chat.messages) == turns - 2
    session.take("hello you there")
    assert len(session.chat.messages) == turns
    session.take("x" * 300)
    assert "the message alone has" in capfd.readouterr().err
    session.take("/reset")
    session.take("hello")
    assert len(session.chat.messages) == 2


def test_an_answer_that_fills_the_context_says_so(
    session: Session, capfd: pytest.CaptureFixture[str]
) -> None:
    session.take("y" * 70)
    assert "[the context of 100 tokens is full; to make room, /drop" in capfd.readouterr().err
    assert session.failed == 0


def test_turns_can_be_taken_back(session: Session, capfd: pytest.CaptureFixture[str]) -> None:
    session.chat.answer_tokens = 3
    for line in ("a", "b", "c"):
        session.take(line)
    said = session.chat.messages
    session.take("/undo")
    assert session.chat.messages == said[:4]
    session.take("/drop 1")
    assert session.chat.messages == said[2:4]
    assert session.failed == 0
    session.take("/drop 9")
    assert session.chat.messages == []
    for line in ("/undo", "/drop", "/retry"):
        session.failed = 0
        session.take(line)
        assert session.failed == 2
    session.take("a")
    for line in ("/drop 0", "/drop -1", "/drop x", "/drop ²"):
        session.failed = 0
        session.take(line)
        assert session.failed == 2
        assert len(session.chat.messages) == 2
    assert "did you mean /reset?" not in capfd.readouterr().err
    session.take("/rese")
    assert "did you mean /reset?" in capfd.readouterr().err


def test_stopping_before_the_first_token_leaves_the_conversation(session: Session) -> None:
    session.take("a")
    said = session.chat.messages
    pieces = session.chat.stream("b")
    session.chat.stop()
    assert list(pieces) == []
    assert session.chat.messages == said
    session.take("c")  # and nothing of it is left in the engine
    assert len(session.chat.messages) == len(said) + 2


def test_stopping_within_an_answer_keeps_its_beginning(session: Session) -> None:
    texts = []
    for piece in session.chat.stream("a"):
        texts.append(piece.text)
        if len(texts) == 3:
            session.stop()
    assert 3 <= len(texts) < 20
    assert session.chat.messages[-1]["content"] == "".join(texts)


def test_a_pipe_ends_with_the_code_of_its_first_wrong_line(run: Run, tiny_artifact: Path) -> None:
    command = ("chat", "-m", str(tiny_artifact), "--max-tokens", "2")
    assert run(*command, input="hello\n").returncode == 0
    done = run(*command, input=b"one\n\xff\xfe\ntwo\n/nothing\n/history")
    assert done.returncode == 2
    assert "line 2 of standard input is not valid UTF-8" in done.stderr
    assert "user: one" in done.stdout
    assert "user: two" in done.stdout  # a wrong line doesn't end the chat


def test_a_line_of_a_pipe_is_bounded(run: Run, tiny_artifact: Path) -> None:
    command = ("chat", "-m", str(tiny_artifact), "--max-tokens", "2")
    done = run(*command, input="x" * 10_000_000 + "\nhello\n/history\n")
    assert done.returncode == 2
    line, cut = done.stderr.splitlines()
    assert cut == "[stopped at --max-tokens]"
    assert line.startswith("subsecond: error: line 1 of standard input has more than 1,048,576")
    assert "user: hello" in done.stdout
    assert "xxx" not in done.stdout


def test_max_tokens_is_a_most_and_must_fit_the_context(run: Run, tiny_artifact: Path) -> None:
    command = ("chat", "-m", str(tiny_artifact), "--context", "60", "--ignore-eos")
    assert run(*command, "--max-tokens", "50", input="hello\n").returncode == 0
    done = run(*command, "--max-tokens", "60", input="hello\n")
    assert done.returncode == 2
    assert "--max-tokens 60 doesn't fit the context of 60 tokens" in done.stderr
