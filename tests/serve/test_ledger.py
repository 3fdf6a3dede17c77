"""The ledger: its law, its file, and what a crash leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond.errors import InputError
from subsecond.serve import ledger as module
from subsecond.serve.ledger import Ledger, Promise, Row, reasons


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.jsonl"


def opened(path: Path | None) -> Ledger:
    return Ledger(path, interval_s=None)


def by_name(ledger: Ledger) -> dict[tuple[str, str], Row]:
    return {(row.key, row.model): row for row in ledger.rows()}


def test_counts_by_key_and_model() -> None:
    ledger = opened(None)
    ledger.promise("a", "m").keep()
    ledger.promise("a", "m").break_("late")
    ledger.promise("a", "n").cancel()
    ledger.promise("b", "m")
    ledger.decline("b", "m", "deadline")
    ledger.decline("b", "m", "deadline")
    rows = by_name(ledger)
    assert rows["a", "m"] == Row(key="a", model="m", promised=2, kept=1, broken={"late": 1})
    assert rows["a", "n"].cancelled == 1
    assert rows["b", "m"].declined == {"deadline": 2}
    total = ledger.total()
    assert (total.promised, total.kept, total.cancelled, total.open) == (4, 1, 1, 1)
    ledger.flush()
    ledger.close()


def test_a_promise_ends_once() -> None:
    ledger = opened(None)
    promise = ledger.promise("a", "m")
    promise.keep()
    promise.break_("late")
    promise.cancel()
    promise.keep()
    assert ledger.total() == Row(key="", model="", promised=1, kept=1)


def test_unknown_reasons_are_refused() -> None:
    ledger = opened(None)
    wrong: Any = "because"
    with pytest.raises(ValueError, match="because"):
        ledger.decline("a", "m", wrong)
    promise = ledger.promise("a", "m")
    with pytest.raises(ValueError, match="because"):
        promise.break_(wrong)
    assert ledger.total().open == 1
    assert ("broken", "late") in set(reasons()) and ("declined", "deadline") in set(reasons())


def test_restarts(path: Path) -> None:
    for round_ in range(1, 4):
        ledger = opened(path)
        ledger.promise("a", "m").keep()
        ledger.decline("a", "m", "full")
        ledger.close()
        again = opened(path)
        total = again.total()
        assert (total.promised, total.kept, total.declined) == (round_, round_, {"full": round_})
        again.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_promises_that_were_open_are_broken_after_a_crash(path: Path) -> None:
    ledger = opened(path)
    ledger.promise("a", "m").keep()
    ledger.promise("a", "m")
    ledger.flush()
    crash(ledger)
    again = opened(path)
    assert again.total().broken == {"lost": 1}
    again.close()
    once_more = opened(path)
    assert once_more.total().broken == {"lost": 1}
    assert once_more.total().open == 0


def crash(ledger: Ledger) -> None:
    """The process dies: nothing more is written, and its lock is gone."""
    assert ledger._held is not None
    os.close(ledger._held)
    ledger._held = None


def test_a_truncated_last_line_loses_only_itself(path: Path) -> None:
    ledger = opened(path)
    ledger.promise("a", "m").keep()
    ledger.flush()
    whole = len(path.read_bytes())
    ledger.promise("a", "m").keep()
    ledger.flush()
    crash(ledger)
    data = path.read_bytes()
    for cut in range(whole, len(data) - 1):
        path.write_bytes(data[:cut])
        again = opened(path)
        assert again.total().kept == 1
        assert again.damaged_lines == (1 if cut > whole else 0)
        again.promise("a", "m").keep()
        again.close()
        last = opened(path)
        assert (last.total().kept, last.damaged_lines) == (2, 0)
        last.close()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 400))
def test_damage_is_counted_and_never_fatal(tmp_path_factory: Any, damage: bytes, at: int) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger = opened(path)
    for index in range(5):
        ledger.promise(f"k{index}", "m").keep()
    ledger.close()
    data = path.read_bytes()
    path.write_bytes(data[:at] + damage + data[at:])
    again = opened(path)
    assert all(row.open >= 0 or row.key not in "k0k1k2k3k4" for row in again.rows())
    assert again.total().kept >= 4 or damage
    again.close()


def test_it_is_compacted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_BYTES", 2000)
    ledger = opened(path)
    for _ in range(300):
        ledger.promise("a", "m").keep()
        ledger.flush()
        assert path.stat().st_size < 2300
    ledger.close()
    again = opened(path)
    assert again.total().kept == 300
    assert path.read_bytes().count(b"\n") == 1


def test_memory_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    ledger = opened(path)
    for index in range(10):
        ledger.promise(f"k{index}", "m" * 1000).keep()
    assert len(ledger.rows()) == 4
    assert by_name(ledger)[module.OTHERS, module.OTHERS].kept == 7
    ledger.close()
    again = opened(path)
    assert (again.total().kept, len(again.rows()), again.damaged_lines) == (10, 4, 0)


def test_a_full_disk_is_survived(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened(path)
    ledger.promise("a", "m").keep()
    ledger.flush()

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "write", full)
    ledger.promise("a", "m").keep()
    ledger.flush()
    assert ledger.problem == os.strerror(errno.ENOSPC)
    assert ledger.total().kept == 2
    monkeypatch.undo()
    ledger.flush()
    assert ledger.problem is None
    ledger.close()
    assert opened(path).total().kept == 2


def test_a_file_that_was_deleted_is_written_anew(path: Path) -> None:
    ledger = opened(path)
    ledger.promise("a", "m").keep()
    ledger.flush()
    path.unlink()
    ledger.promise("b", "m").keep()
    ledger.close()
    assert opened(path).total().kept == 2


def test_two_servers_do_not_share_one(path: Path) -> None:
    first = opened(path)
    with pytest.raises(InputError, match="another server"):
        opened(path)
    first.close()
    opened(path).close()


def test_threads_lose_no_count(path: Path) -> None:
    ledger = Ledger(path, interval_s=0.001)

    def promise() -> None:
        for index in range(300):
            made: Promise = ledger.promise(f"k{index % 3}", "m")
            made.keep() if index % 2 else made.break_("late")

    threads = [threading.Thread(target=promise) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    total = opened(path).total()
    assert (total.promised, total.kept, total.broken) == (1200, 600, {"late": 600})


KILLED = """
import os, signal, sys
from pathlib import Path
from subsecond.serve.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), interval_s=0.01)
for _ in range(50):
    ledger.promise("a", "m").keep()
while b'"kept":50' not in Path(sys.argv[1]).read_bytes():
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_has_written_by_itself(path: Path) -> None:
    source = str(Path(module.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], env=environment, timeout=60, check=False
    )
    assert run.returncode == -9
    again = opened(path)
    assert (again.total().kept, again.total().broken) == (50, {})


def test_rows_are_plain_json(path: Path) -> None:
    ledger = opened(path)
    ledger.promise("a", "m").break_("short")
    ledger.close()
    (line,) = path.read_bytes().splitlines()
    assert msgspec.json.decode(line)["broken"] == {"short": 1}
