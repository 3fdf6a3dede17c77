"""From GGUF metadata to a Hugging Face config.

Owns: which file is a model at all, and one function a GGUF architecture (rope is gguf_rope.py's,
tensor names are gguf_names.py's). Knows nothing of bytes: it sees metadata and shapes. What it does
not know of the architecture's keys goes into the config under the key's own name, where the reader
of configs treats it as any unknown key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subsecond.errors import ModelError, UnsupportedError
from subsecond.formats.gguf_header import Header, Value
from subsecond.formats.gguf_keys import Keys, short
from subsecond.formats.gguf_names import FAMILIES, Entry, hub_names
from subsecond.formats.gguf_rope import rope


@dataclass(frozen=True)
class Description:
    """A GGUF model in Hugging Face terms."""

    config: dict[str, Any]
    tensors: dict[str, Entry]


def describe(header: Header, floats: Callable[[str], Sequence[float]]) -> Description:
    """Describes a GGUF file. `floats` reads a small f32 tensor (rope factors).

    Raises UnsupportedError for an architecture that is not known, ModelError for metadata that is
    missing or absurd.
    """
    architecture = _architecture(header.metadata)
    family = FAMILIES[architecture]
    keys = Keys(architecture, header)
    config = {
        "model_type": family.model_type,
        "architectures": [family.class_name],
        **_CONFIGS[architecture](keys),
    }
    tensors = hub_names(header.tensors, family, keys.blocks)
    config["vocab_size"] = rows = keys.rows("token_embd.weight")
    if keys.integer("vocab_size", rows) != rows:
        raise ModelError(
            f"GGUF {architecture}.vocab_size contradicts the {rows} rows of token_embd"
        )
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config.update(rope(keys, header, config, floats))
    keys.refuse_computation()
    config.update(keys.unused())
    return Description(config, tensors)


def _architecture(metadata: Mapping[str, Value]) -> str:
    """The architecture of a file that is a whole model of a known one. Raises ModelError or
    UnsupportedError for other files."""
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedError(
            f"GGUF general.type is {short(kind)}: this file is not a language model on its own; "
            "give the GGUF file of the model itself"
        )
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise UnsupportedError(
            f"GGUF split.count is {short(parts)}: this is one file of several; merge them with "
            "'llama-gguf-split --merge FIRST-FILE OUTPUT' and give the output"
        )
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError(
            "GGUF metadata general.architecture is missing: the file is not a model; get another"
        )
    if architecture not in FAMILIES:
        raise UnsupportedError(
            f"GGUF architecture {short(architecture)} is not supported (supported: "
            f"{', '.join(sorted(FAMILIES))})"
        )
    return architecture


def _fraction(part: int, whole: int) -> float:
    """part / whole, such that int(whole * fraction) is `part` again."""
    fraction = part / whole
    return fraction if int(whole * fraction) == part else math.nextafter(fraction, math.inf)


def _common(keys: Keys) -> dict[str, Any]:
    """What all families with RMS norm, gated feed-forward and rope share."""
    heads = keys.integer("attention.head_count")
    hidden = keys.integer("embedding_length")
    head_dim = keys.integer(
        "attention.key_length", hidden // heads if hidden % heads == 0 else None
    )
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(
            "GGUF attention.value_length differs from key_length, which is not supported"
        )
    return {
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.integer("context_length", high=1 << 31),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.positive("rope.freq_base", 10000.0),
    }


def _full_rotary(keys: Keys, head_dim: int) -> None:
    rotary = keys.integer("rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise UnsupportedError(
            f"GGUF rope.dimension_count is {rotary}, but the heads have {head_dim}, which is not "
            "supported here"
        )


def _llama(keys: Keys) -> dict[str, Any]:
    config = _common(keys) | {"hidden_act": "silu"}
    _full_rotary(keys, config["head_dim"])
    config["attention_bias"] = keys.has_tensor("blk.0.attn_q.bias")
    config["mlp_bias"] = keys.has_tensor("blk.0.ffn_down.bias")
    if keys.has("attention.sliding_window"):  # Mistral keeps the architecture name "llama"
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
        config["sliding_window"] = keys.integer("attention.sliding_window")
        del config["attention_bias"], config["mlp_bias"]
    return config


def _qwen(keys: Keys) -> dict[str, Any]:
    config = _common(keys) | {"hidden_act": "silu"}
    _full_rotary(keys, config["head_dim"])
    window = keys.integer("attention.sliding_window", 0, low=0, high=1 << 31)
    if 0 < window < config["max_position_embeddings"]:
        raise UnsupportedError(
            f"GGUF attention.sliding_window = {window}: windows of Qwen are not supported"
        )
    return config


def _gpt2(keys: Keys) -> dict[str, Any]:
    return {
        "n_embd": keys.integer("embedding_length"),
        "n_inner": keys.integer("feed_forward_length"),
        "n_layer": keys.blocks,
        "n_head": keys.integer("attention.head_count"),
        "n_positions": keys.integer("context_length", high=1 << 31),
        "layer_norm_epsilon": keys.real("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def _gptneox(keys: Keys) -> dict[str, Any]:
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    if hidden % heads:
        raise ModelError(
            f"GGUF gptneox.embedding_length {hidden} is not a multiple of head_count {heads}"
        )
    rotary = keys.integer("rope.dimension_count", hidden // heads)
    return {
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.blocks,
        "num_attention_heads": heads,
        "max_position_embeddings": keys.integer("context_length", high=1 << 31),
        "layer_norm_eps": keys.real("attention.layer_norm_epsilon"),
        "rotary_pct": _fraction(rotary, hidden // heads),
        "rotary_emb_base": keys.positive("rope.freq_base", 10000.0),
        "use_parallel_residual": keys.boolean("use_parallel_residual", True),
        "hidden_act": "gelu",
    }


def _phi3(keys: Keys) -> dict[str, Any]:
    config = _common(keys) | {"hidden_act": "silu"}
    rotary = keys.integer("rope.dimension_count", config["head_dim"])
    if rotary != config["head_dim"]:
        config["partial_rotary_factor"] = _fraction(rotary, config["head_dim"])
    window = keys.integer("attention.sliding_window", 0, low=0)
    config["sliding_window"] = window or None
    return config


def _gemma(keys: Keys) -> dict[str, Any]:
    config = _common(keys) | {"hidden_activation": "gelu_pytorch_tanh"}
    _full_rotary(keys, config["head_dim"])
    config["sliding_window"] = keys.integer("attention.sliding_window")
    config["final_logit_softcapping"] = keys.real("final_logit_softcapping", 0.0) or None
    return config


def _gemma2(keys: Keys) -> dict[str, Any]:
    config = _gemma(keys)
    config["attn_logit_softcapping"] = keys.real("attn_logit_softcapping", 0.0) or None
    # The file does not hold query_pre_attn_scalar. Of the published sizes, only 27B (46 layers)
    # differs from head_dim.
    wide = keys.blocks == 46
    per_head = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = per_head if wide else config["head_dim"]
    return config


def _gemma3(keys: Keys) -> dict[str, Any]:
    config = _gemma(keys)
    wide = keys.blocks == 62  # 27B, as for Gemma 2
    per_head = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = per_head if wide else config["head_dim"]
    config["rope_local_base_freq"] = keys.positive("rope.freq_base_swa", 10000.0)
    config["sliding_window_pattern"] = keys.integer("attention.sliding_window_pattern", 6)
    return config


_CONFIGS: Mapping[str, Callable[[Keys], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
}
