"""Configuration keys that many families spell alike.

Owns: reading them with the checks that they share. Knows nothing of a family's structure.
"""

from __future__ import annotations

from subsecond.errors import ModelError, UnsupportedError
from subsecond.models.config import ConfigReader

# Names in configurations -> activations of the op table.
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}


def activation(config: ConfigReader, key: str, default: str) -> str:
    """The op table's activation for the name under `key`."""
    name = config.word(key, default)
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise UnsupportedError(f"config key {key} = {name!r} is not supported, only {known}")
    return _ACTIVATIONS[name]


def head_sizes(
    config: ConfigReader, hidden: int, head_dim: int | None = None
) -> tuple[int, int, int]:
    """(heads, kv_heads, head_dim); head_dim defaults to `head_dim`, else to hidden / heads."""
    heads = config.integer("num_attention_heads", high=1 << 12)
    kv_heads = config.integer("num_key_value_heads", heads, high=1 << 12)
    if heads % kv_heads:
        raise ModelError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if head_dim is None and not config.has("head_dim") and hidden % heads:
        raise ModelError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return heads, kv_heads, config.integer("head_dim", head_dim or hidden // heads, high=1 << 16)


def sliding_layers(config: ConfigReader, layers: int, fallback: list[bool]) -> list[bool]:
    """Which layers slide: from layer_types where given, else `fallback`."""
    types = config.words("layer_types")
    if types is None:
        return fallback
    if len(types) != layers:
        raise ModelError(f"layer_types has {len(types)} entries for num_hidden_layers {layers}")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedError(
                f"layer_types entry {kind!r} is not supported, only full_attention and "
                "sliding_attention"
            )
    return [kind == "sliding_attention" for kind in types]


def qwen_windows(config: ConfigReader) -> list[int]:
    """Qwen's window of each layer (0: all positions). From max_window_layers on, they may slide."""
    count = config.integer("num_hidden_layers", high=1 << 12)
    slides = config.flag("use_sliding_window", False)
    window = config.optional_integer("sliding_window", 4096) if slides else None
    config.ignore("sliding_window")
    first = config.integer("max_window_layers", 28, low=0)
    fallback = [window is not None and index >= first for index in range(count)]
    layers = sliding_layers(config, count, fallback)
    if any(layers) and window is None:
        raise ModelError(
            "layer_types has sliding layers, but use_sliding_window or sliding_window does not"
        )
    return [window if slide and window else 0 for slide in layers]
