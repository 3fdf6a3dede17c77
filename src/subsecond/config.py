"""The few options that users set, with their ranges and defaults.

Owns: `ModelOptions`, which the Python interface and the command line share. Does not know: what the
options do.
"""

from __future__ import annotations

from dataclasses import dataclass

from subsecond.errors import InputError

DEFAULT_MODEL = "smollm2-135m"
WEIGHTS = ("int4", "int8", "bf16", "f32")
KV_FORMATS = ("bf16", "int8", "f32")
MAX_SEQUENCES = 1024
MAX_CONTEXT = 1 << 31
ISAS = ("avx512", "avx512_vnni", "avx2", "neon", "generic")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model is run, and how. InputError for a value out of its range.

    weights: format of the matrices, one of WEIGHTS; None is int4, or what an artifact was converted
    to. kv: format of the KV cache, one of KV_FORMATS (None: what conversion chose).
    threads: None is the number of processors that the process may use. isa: one of ISAS; None is
    the best that the processor has. max_tokens_per_step: longest piece of a prompt that is computed
    at once. max_sequences: texts that are computed together. context: most tokens of a prompt and
    its answer; None is the model's own. prefix_cache: tokens of texts that have ended which memory
    is kept for; None leaves it to whoever loads the model. speculation: tokens that a text is
    likely to repeat are checked several at a time, where that pays; answers are the same.
    """

    model: str = DEFAULT_MODEL
    weights: str | None = None
    kv: str | None = None
    threads: int | None = None
    isa: str | None = None
    max_tokens_per_step: int = 512
    max_sequences: int = 16
    context: int | None = None
    prefix_cache: int | None = None
    speculation: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise InputError(f"model must be a name or a path, not {self.model!r}")
        if self.weights is not None:
            _choice("weights", self.weights, WEIGHTS)
        if self.kv is not None:
            _choice("kv", self.kv, KV_FORMATS)
        if self.isa is not None:
            _choice("isa", self.isa, ISAS)
        if self.threads is not None:
            _integer("threads", self.threads, 1, 1024)
        _integer("max_sequences", self.max_sequences, 1, MAX_SEQUENCES)
        _integer("max_tokens_per_step", self.max_tokens_per_step, self.max_sequences, 1 << 16)
        if self.context is not None:
            _integer("context", self.context, 2, MAX_CONTEXT, "the model's own maximum")
        if self.prefix_cache is not None:
            _integer("prefix_cache", self.prefix_cache, 0, MAX_CONTEXT)
        if not isinstance(self.speculation, bool):
            raise InputError(f"speculation must be true or false, not {_shown(self.speculation)}")


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, not {_shown(value)}")


def _integer(name: str, value: object, low: int, high: int, most: str = "") -> None:
    """most: what `high` stands for, in words."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(
            f"{name} must be an integer from {low} to {most or high}, not {_shown(value)}"
        )


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # an integer too long to be printed, or a caller's own class
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
