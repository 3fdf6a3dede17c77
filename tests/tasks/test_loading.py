"""What is shown while a model is loaded: progress and warnings, each where it belongs."""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path

import pytest
import tiny

from subsecond import LLM, InputError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that hasn't been converted, with a key that nobody knows."""
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    tiny.write("llama", tmp_path / "checkpoint", tokenizer=True)
    path = tmp_path / "checkpoint" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "no_such_key": 7}))
    return tmp_path / "checkpoint"


def test_a_warning_points_at_the_caller(checkpoint: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LLM(checkpoint, threads=1).close()
    (warning,) = caught
    assert "no_such_key" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("terminal", "progress", "shown"),
    [(True, None, True), (True, False, False), (False, None, False)],
)
def test_a_terminal_shows_how_far_the_first_loading_is(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    progress: None,
    shown: bool,
) -> None:
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    LLM(checkpoint, threads=1, progress=progress).close()
    assert ("convert" in screen.getvalue()) == shown
    if not shown:
        assert screen.getvalue() == ""
    size = len(screen.getvalue())
    LLM(checkpoint, threads=1, progress=progress).close()  # converted before
    assert len(screen.getvalue()) == size


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_progress_may_be_a_function(checkpoint: Path) -> None:
    told: list[tuple[str, int, int, str]] = []
    LLM(checkpoint, threads=1, progress=lambda *what: told.append(what)).close()
    assert told
    with pytest.raises(InputError, match="progress must be a function, False or None, not str"):
        LLM(checkpoint, threads=1, progress="yes")  # type: ignore[arg-type]
