"""The audit log: what is in it, what is never in it, and files that fill up or move."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from subsecond.serve import journal
from subsecond.serve.audit import MAX_TEXT_CHARACTERS, Audit, Entry, Texts
from subsecond.serve.journal import Appender


def entry(**fields: Any) -> Entry:
    return Entry(**{"request": "r", "key": "k", "action": "chat", "status": 200, "outcome": "stop",
                    **fields})  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_who_what_when_and_outcome(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "audit.jsonl"
    log = Audit(path, clock=lambda: 1700000000.1239)
    log.record(entry(model="m", prompt_tokens=3, promised=True, kept=True))
    log.record(entry(key=None, status=401, outcome="invalid_api_key"))
    log.close()
    first, second = lines(path)
    assert first == {
        "time": "2023-11-14T22:13:20.123Z", "request": "r", "key": "k", "action": "chat",
        "model": "m", "status": 200, "outcome": "stop", "prompt_tokens": 3, "promised": True,
        "kept": True,
    }  # fmt: skip
    assert second["key"] is None
    assert path.stat().st_mode & 0o777 == 0o600


def test_texts_only_if_the_operator_asks(tmp_path: Path) -> None:
    for texts in (False, True):
        path = tmp_path / f"{texts}.jsonl"
        log = Audit(path, texts=texts)
        log.record(entry(prompt="canary-prompt", answer="canary-answer" * 1000))
        log.close()
        assert ("canary" in path.read_text()) is texts
    assert lines(path)[0]["answer"] == "canary-answer" * 1000


def test_texts_are_bounded_and_several_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = Audit(path, texts=True)
    log.record(entry(prompt="x" * (MAX_TEXT_CHARACTERS + 1)))
    log.close()
    (own,) = lines(path)
    assert own["prompt"] == "x" * MAX_TEXT_CHARACTERS + "... (262,145 characters)"
    one = Texts(["a"])
    assert (one.prompt, one.answer) == ("a", None)
    one.take(0, "b")
    one.take(0, "c")
    assert one.answer == "bc"
    several = Texts(["a", [1, 2]])
    several.take(2, "z")
    assert (several.prompt, several.answer) == ('["a",[1,2]]', '["","","z"]')


def test_one_line_each_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = Audit(path)
    log.record(entry(user='a\nb"\u2028\x85\ud800\x00', model="m" * 10_000))
    log.close()
    assert path.read_bytes().count(b"\n") == 1
    (own,) = lines(path)
    assert own["user"] == 'a\nb"\\u2028\\x85\\ud800\x00'
    assert len(own["model"]) == 512


def test_a_moved_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = Audit(path)
    log.record(entry(request="1"))
    log.flush()
    path.rename(tmp_path / "audit.1")
    log.record(entry(request="2"))
    log.close()
    assert [own["request"] for own in lines(tmp_path / "audit.1")] == ["1"]
    assert [own["request"] for own in lines(path)] == ["2"]


def test_half_a_line_of_a_crash_is_not_lengthened(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"time":"2023')
    log = Audit(path)
    log.record(entry())
    log.close()
    first, second = path.read_text().splitlines()
    assert first == '{"time":"2023' and json.loads(second)["request"] == "r"


def test_a_full_disk_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    log = Audit(path)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal.os, "write", full)
    log.record(entry(request="1"))
    log.flush()
    assert log.lost == 1
    monkeypatch.undo()
    log.record(entry(request="2"))
    log.close()
    assert [own["request"] for own in lines(path)] == ["2"]
    log.record(entry(request="3"))
    assert log.lost == 2


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PENDING_LINES", 5)
    file = Appender(tmp_path / "a", interval_s=3600)
    for index in range(8):
        file.append(b"%d" % index)
    assert file.lost == 3
    file.close()
    file.close()
    assert list(journal.lines_of(tmp_path / "a")) == [b"0", b"1", b"2", b"3", b"4"]
    assert list(journal.lines_of(tmp_path / "nothing")) == []


def test_bytes_that_wait_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PENDING_BYTES", 10)
    file = Appender(tmp_path / "a", interval_s=3600)
    for _ in range(3):
        for _ in range(4):
            file.append(b"12345")
        file.flush()
    assert file.lost == 6
    file.close()
    assert len(list(journal.lines_of(tmp_path / "a"))) == 6


def test_the_thread_writes_by_itself(tmp_path: Path) -> None:
    file = Appender(tmp_path / "a", interval_s=0.001)
    file.append(b"x")
    while not (tmp_path / "a").read_bytes():
        pass
    file.close()
    assert (tmp_path / "a").read_bytes() == b"x\n"
