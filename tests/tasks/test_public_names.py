"""The public interface: exactly these names, and importing them costs nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import subsecond


def test_all_names_exist_and_are_the_ones_promised() -> None:
    assert sorted(subsecond.__all__) == sorted([*subsecond._HOME, "__version__"])
    for name in subsecond.__all__:
        assert getattr(subsecond, name) is not None
    assert dir(subsecond) == sorted(subsecond.__all__)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        subsecond.nothing_like_this  # noqa: B018


def test_importing_the_package_loads_none_of_it() -> None:
    code = "import sys, subsecond; print([n for n in sys.modules if n.startswith('subsecond.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HEAVY = ["numpy", "torch", "transformers", "ray", "gguf", "huggingface_hub", "tqdm", "argparse"]


def test_generating_in_python_imports_nothing_heavy(tiny_artifact: object) -> None:
    code = (
        "import sys; from subsecond import LLM, SamplingParams\n"
        f"llm = LLM({str(tiny_artifact)!r})\n"
        "llm.generate('x', SamplingParams(max_tokens=3)); "
        "llm.chat([{'role': 'user', 'content': 'x'}])\n"
        f"print([n for n in {HEAVY} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
