"""Configuration keys that many families spell alike, and the decoder that most of them share.

Owns: reading them with the checks that they share, and `Basics`, from which a family of Llama's
shape is built with the few options of its own. Knows nothing of a family's structure beyond that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from subsecond.errors import ModelError, UnsupportedError
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Decoder, GatedOptions, Heads, Shapes, gated_decoder
from subsecond.models.rope import Rope, read_rope

ROPE = "rope.inv_freq"

# Names in configurations -> activations of the op table.
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
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


def layer_count(config: ConfigReader, key: str = "num_hidden_layers") -> int:
    return config.integer(key, high=1 << 12)


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


def one_window(config: ConfigReader, default: int | None) -> list[int]:
    """The windows (0: all positions) of a family whose layers all have the same one.

    Keys of other families that say otherwise would be silent nonsense, so they are refused.
    """
    count = layer_count(config)
    window = config.optional_integer("sliding_window", default)
    if window is not None and not config.flag("use_sliding_window", True):
        raise ModelError(
            f"use_sliding_window is false, but this family slides by sliding_window {window} "
            "alone; set sliding_window to null, or remove use_sliding_window"
        )
    slides = window is not None
    if sliding_layers(config, count, [slides] * count) != [slides] * count:
        raise UnsupportedError(
            f"layer_types contradicts sliding_window {window}: this family's layers "
            f"{'all slide' if slides else 'never slide'}, layers that differ are another "
            "architecture's"
        )
    return [window or 0] * count


def no_window(config: ConfigReader, positions: int) -> list[int]:
    """The windows of a family that has none: all 0.

    A sliding_window that is switched off, or that is as long as the context, means nothing and is
    accepted; any other is left to be refused by name.
    """
    window = config.optional_integer("sliding_window", None) if config.has("sliding_window") else 0
    if not config.flag("use_sliding_window", bool(window)) or (window or 0) >= positions:
        config.ignore("max_window_layers")
    elif window:
        raise UnsupportedError(
            f"config key sliding_window = {window} changes the computation and is not supported by "
            "this family; where the model is meant to see all positions, set use_sliding_window "
            "to false"
        )
    return [0] * layer_count(config)


def qwen_windows(config: ConfigReader) -> list[int]:
    """Qwen's window of each layer (0: all positions). From max_window_layers on, they may slide."""
    count = layer_count(config)
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


@dataclass(frozen=True, slots=True)
class Basics:
    """What the families of Llama's shape read alike."""

    config: ConfigReader
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    eps: float

    def decoder(
        self,
        family: str,
        shapes: Shapes,
        windows: Sequence[int],
        *,
        qk_norm: bool = False,
        **options: Any,
    ) -> Built:
        """The whole model. `windows`: one a layer; `options` are those of GatedOptions."""
        config = self.config
        layers = tuple(
            Heads(
                self.heads,
                self.kv_heads,
                self.head_dim,
                scale=self.head_dim**-0.5,
                window=window,
                rope=ROPE,
                rotary=self.rope.rotary,
                rope_factor=self.rope.factor,
                qk_norm_eps=self.eps if qk_norm else None,
            )
            for window in windows
        )
        gated = GatedOptions(
            hidden=self.hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            ropes={ROPE: self.rope},
            eps=self.eps,
            activation=activation(config, "hidden_act", "silu"),
            tied=config.flag("tie_word_embeddings", False),
            **options,
        )
        d = Decoder(
            family,
            config.integer("vocab_size"),
            self.rope.positions,
            shapes,
            prefix="model.",
            witness="embed_tokens.weight",
        )
        return gated_decoder(d, gated)


def read_basics(
    config: ConfigReader,
    *,
    positions: int,
    eps: float = 1e-6,
    head_dim: int | None = None,
    partial_keys: tuple[str, ...] = (),
    original: int | None = None,
) -> Basics:
    """Reads them; the arguments are the family's defaults, and what `read_rope` needs."""
    hidden = config.integer("hidden_size")
    heads, kv_heads, size = head_sizes(config, hidden, head_dim)
    positions = config.integer("max_position_embeddings", positions)
    rope = read_rope(config, size, positions, partial_keys=partial_keys, original=original)
    return Basics(
        config,
        hidden,
        heads,
        kv_heads,
        size,
        rope,
        config.number("rms_norm_eps", eps),
    )
