"""What callers may give as prompts and parameters, as lists of one kind.

Owns: telling one prompt from several, and the messages that name the right call. Does not know:
models, token ids' range.
"""

from __future__ import annotations

from collections.abc import Sequence

from subsecond.engine.sampling import SamplingParams
from subsecond.engine.values import is_scalar, sequence, short
from subsecond.errors import RequestError

Prompt = str | Sequence[int]


def prompt_list(prompts: object) -> list[Prompt]:
    """One prompt (a text, token ids, a one-dimensional array) or several (a list of prompts, a
    two-dimensional array), as a list. RequestError for anything else.
    """
    if isinstance(prompts, str):
        return [prompts]
    entries = sequence(prompts)
    if entries is None:
        raise RequestError(
            "prompts must be a text, token ids, or a list of them, not "
            f"{type(prompts).__name__}{_decode(prompts)}",
            "prompts",
        )
    if not entries:
        raise RequestError("prompts is empty; give at least one", "prompts")
    return [entries] if all(map(is_scalar, entries)) else list(entries)


def one_prompt(prompt: object) -> Prompt:
    """A text, or the entries of a list or array of token ids; RequestError for several prompts."""
    if isinstance(prompt, str):
        return prompt
    entries = sequence(prompt)
    if entries is None:
        raise RequestError(
            f"the prompt must be a text or a list of token ids, not {type(prompt).__name__}"
            f"{_decode(prompt)}: {short(prompt)}",
            "prompt",
        )
    if entries and not any(map(is_scalar, entries)):
        raise RequestError(
            f"the prompt is a list of {type(entries[0]).__name__}, not of token ids; one prompt is "
            "a text or a list of integers, and only `generate` takes several prompts",
            "prompt",
        )
    return entries


def params_list(params: object, count: int) -> list[SamplingParams]:
    """One SamplingParams for each of `count` prompts; None is `SamplingParams()`."""
    if not isinstance(params, (list, tuple)):
        return [one_params(params)] * count
    if len(params) != count:
        raise RequestError(
            f"{count} prompts need as many params, not {len(params)}; one SamplingParams serves "
            "all",
            "params",
        )
    return [one_params(each) for each in params]


def one_params(params: object) -> SamplingParams:
    """`params`, if they are SamplingParams or None."""
    if params is None:
        return SamplingParams()
    if isinstance(params, SamplingParams):
        return params
    fix = "; write SamplingParams(**params)" if isinstance(params, dict) else ""
    raise RequestError(f"params must be SamplingParams, not {type(params).__name__}{fix}", "params")


def _decode(value: object) -> str:
    return " (decode it: .decode('utf-8'))" if isinstance(value, (bytes, bytearray)) else ""
