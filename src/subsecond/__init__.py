"""Subsecond: transformer models on ordinary processors, answered within a second.

    >>> from subsecond import LLM, SamplingParams
    >>> with LLM("smollm2-135m") as llm:
    ...     print(llm.generate("The sky is", SamplingParams(max_tokens=16))[0].text)

The public names below are loaded when they are first used, so that importing the package costs
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subsecond.engine.constraint import Constraint
    from subsecond.engine.request import Logprob
    from subsecond.engine.sampling import SamplingParams
    from subsecond.errors import (
        FetchError,
        InputError,
        ModelError,
        RequestError,
        RuntimeFailure,
        SubsecondError,
        TextError,
        UnsupportedError,
    )
    from subsecond.tasks.chat import Chat
    from subsecond.tasks.completion import Completion, Output, Piece, Timing, Usage
    from subsecond.tasks.generate import LLM
    from subsecond.tasks.logits import Logits

__version__ = "0.1.0"

_HOME = {
    "LLM": "tasks.generate",
    "Chat": "tasks.chat",
    "Logits": "tasks.logits",
    "SamplingParams": "engine.sampling",
    "Constraint": "engine.constraint",
    "Logprob": "engine.request",
    "Completion": "tasks.completion",
    "Output": "tasks.completion",
    "Piece": "tasks.completion",
    "Timing": "tasks.completion",
    "Usage": "tasks.completion",
    "SubsecondError": "errors",
    "InputError": "errors",
    "ModelError": "errors",
    "UnsupportedError": "errors",
    "RequestError": "errors",
    "TextError": "errors",
    "FetchError": "errors",
    "RuntimeFailure": "errors",
}

__all__ = [
    "LLM",
    "Chat",
    "Completion",
    "Constraint",
    "FetchError",
    "InputError",
    "Logits",
    "Logprob",
    "ModelError",
    "Output",
    "Piece",
    "RequestError",
    "RuntimeFailure",
    "SamplingParams",
    "SubsecondError",
    "TextError",
    "Timing",
    "UnsupportedError",
    "Usage",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Loads a public name's module when the name is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'subsecond' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"subsecond.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
