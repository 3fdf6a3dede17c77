"""A tiny random model, converted once, and a way to run the command line in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from subsecond.cli import main
from subsecond.formats.convert import convert

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write("llama", tmp_path_factory.mktemp("tiny") / "checkpoint", tokenizer=True)


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path) -> Path:
    return convert(tiny_checkpoint, tiny_checkpoint.parent / "artifact", "int4").path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `subsecond ARGUMENTS` with its own home; text in and out."""

    def start(
        *arguments: str, input: str | bytes | None = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        home = {"SUBSECOND_HOME": str(tmp_path / "home"), "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            [sys.executable, "-m", "subsecond", *arguments],
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True,
            env={**os.environ, **home, **env},
            timeout=120,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
        )

    return start


@pytest.fixture
def inline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """The same in this process: much faster, for commands that read no standard input."""
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            code = main(arguments)
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        shown = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, shown.out, shown.err)

    return start
