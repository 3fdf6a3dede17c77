"""A tiny random model, converted once, and the default model if it was fetched before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from subsecond import LLM
from subsecond.formats import artifact, cache
from subsecond.formats.convert import convert
from subsecond.program import program


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write("llama", folder / "checkpoint", tokenizer=True)
    return convert(folder / "checkpoint", folder / "artifact", "int4").path


@pytest.fixture(scope="session")
def tiny_window_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with sliding windows."""
    folder = tmp_path_factory.mktemp("tiny_window")
    tiny.write("mistral", folder / "checkpoint", tokenizer=True)
    return convert(folder / "checkpoint", folder / "artifact", "f32").path


@pytest.fixture(scope="module")
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=2, max_tokens_per_step=64, max_sequences=8) as model:
        yield model


@pytest.fixture(scope="session")
def real_artifact() -> Path:
    name = f"smollm2-135m--int4--v{artifact.FORMAT_VERSION}.{program.VERSION}"
    path = cache.home() / "models" / name
    if not artifact.is_artifact(path):
        pytest.skip("the default model isn't here; `subsecond pull` fetches it")
    return path
