"""Progress on a terminal and in a log."""

from __future__ import annotations

import io
import sys

import pytest

from subsecond.formats.progress import TerminalProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_a_quarter(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress() as progress:
        for done in range(101):
            progress("fetching", done, 100, "B")
        progress("converting", 0, 3, "tensors")
    assert capsys.readouterr().err.splitlines() == [
        *(f"fetching: {percent} %" for percent in (0, 25, 50, 75, 100)),
        "converting: 0 %",
    ]


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with TerminalProgress() as progress:
        progress("fetching", 0, 1000, "B")
        progress("fetching", 1000, 1000, "B")
    assert "fetching" in screen.getvalue()
    assert "1.00k" in screen.getvalue()
    assert screen.getvalue().endswith("\r")


def test_nothing_to_do_is_no_division_by_zero(capsys: pytest.CaptureFixture[str]) -> None:
    TerminalProgress()("converting", 0, 0, "tensors")
    assert "converting" in capsys.readouterr().err
