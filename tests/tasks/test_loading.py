"""What is shown while a model is loaded: progress and warnings, each where it belongs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from subsecond import LLM, InputError, SamplingParams
from subsecond.errors import ModelError, RuntimeFailure
from subsecond.runtime import native


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


def test_weights_that_are_cut_while_they_are_in_use_are_an_error_not_a_crash(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, folder)
    with LLM(folder, threads=1) as llm:
        stream = llm.stream("the sky", SamplingParams(max_tokens=60, ignore_eos=True))
        next(stream)
        free = llm._parts.engine.page_use().total
        os.truncate(folder / "weights.bin", 4096)
        for call in (lambda: list(stream), lambda: llm.generate("x"), lambda: llm.logits([1])):
            with pytest.raises(RuntimeFailure, match=r"weights\.bin: was cut to 4096 bytes"):
                call()
        use = llm._parts.engine.page_use()
        assert use.free + use.cached == free


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        ("program.json", lambda d: d["ops"][1].update(weights=[]), "op 1: linear: 0 weight"),
        ("program.json", lambda d: d.pop("values"), r"not a valid program: .*values"),
        ("text.json", lambda d: d.update(version=99), "version 99 is not read"),
        ("text.json", lambda d: d.update(stop_ids=[2**31]), r"not valid: .*stop_ids"),
        ("text.json", lambda d: d.update(stop_ids=[2**70]), r"not valid: .*stop_ids"),
        ("tokenizer.json", lambda d: d["model"].update(dropout=0.5), r"model\.dropout is 0\.5"),
        ("tokenizer.json", lambda d: d.pop("decoder"), "decoder none isn't supported"),
    ],
)
def test_what_is_wrong_in_a_file_of_an_artifact_names_it_and_the_fix(
    tiny_artifact: Path, tmp_path: Path, name: str, edit: Callable[[Any], Any], words: str
) -> None:
    """Its hashes are true: somebody else made it so."""
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, folder)
    document = json.loads((folder / name).read_text())
    edit(document)
    (folder / name).write_text(json.dumps(document))
    data = (folder / name).read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError) as caught:
        LLM(folder, threads=1)
    text = str(caught.value)
    assert text.startswith(f"{folder}/{name}")
    assert re.search(rf"{words}.*;", text), text
    assert text.count(name) == 1


@pytest.mark.parametrize("name", ["threads", "max_tokens_per_step", "max_sequences", "context"])
def test_sizes_may_be_integers_of_another_library(tiny_artifact: Path, name: str) -> None:
    sizes = {"threads": 1, "max_tokens_per_step": 32, "max_sequences": 2, "context": 64}
    with LLM(tiny_artifact, **{**sizes, name: np.int64(sizes[name])}) as llm:
        assert len(llm.generate("the sky", SamplingParams(max_tokens=2))[0].token_ids) == 2
    for wrong in (True, 2.0, np.float64(2.0), "2", -1, 10**5000):
        with pytest.raises(InputError, match=f"{name} must be an integer from"):
            LLM(tiny_artifact, **{**sizes, name: wrong})


def test_what_no_thread_can_check_is_checked_at_once(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    broken = tmp_path / "broken"
    shutil.copytree(tiny_artifact, broken)
    tokenizer = broken / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b"{", b" {", 1))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with LLM(tiny_artifact, threads=1) as llm:
        assert llm.generate([[1, 2]], SamplingParams(max_tokens=2, temperature=0))
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        LLM(broken, threads=1)


def test_memory_that_the_system_refuses_is_an_error_with_its_fix(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poor(native.Model):  # type: ignore[misc]
        def finish(self, *_: object) -> None:
            raise MemoryError

    monkeypatch.setattr(native, "Model", Poor)
    with pytest.raises(RuntimeFailure, match="lower context, max_sequences"):
        LLM(tiny_artifact, threads=1)
