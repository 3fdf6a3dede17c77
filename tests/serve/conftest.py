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

TOOL_TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t['function'] | tojson }}\n{% endfor %}"
    "call with <tool_call>\n{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {% if m['tool_calls'] %}"
    "{% for c in m['tool_calls'] %}<tool_call>{{ c['function'] | tojson }}</tool_call>{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
    "{% if m is defined and m['role'] == 'tool' %}{% endif %}"
)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def roomy_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a context that an answer doesn't fill in the moment in which a test interferes."""
    return make(tmp_path_factory.mktemp("roomy"), max_position_embeddings=32768)


@pytest.fixture(scope="session")
def tool_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a chat template that takes tools."""
    return make(tmp_path_factory.mktemp("tools"), TOOL_TEMPLATE, max_position_embeddings=2048)


def make(folder: Path, template: str = TEMPLATE, **config: Any) -> Path:
    tiny.write("llama", folder / "checkpoint", tokenizer=True, **config)
    settings = folder / "checkpoint" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": template}))
    return convert(folder / "checkpoint", folder / "artifact", "int4").path
