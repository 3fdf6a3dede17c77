"""A tiny artifact with a chat template, made once for all tests of the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from subsecond.formats.convert import convert

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def roomy_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a context that an answer doesn't fill in the moment in which a test interferes."""
    return make(tmp_path_factory.mktemp("roomy"), max_position_embeddings=32768)


def make(folder: Path, **config: Any) -> Path:
    tiny.write("llama", folder / "checkpoint", tokenizer=True, **config)
    settings = folder / "checkpoint" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": TEMPLATE}))
    return convert(folder / "checkpoint", folder / "artifact", "int4").path
