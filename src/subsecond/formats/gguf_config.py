"""From GGUF metadata to a Hugging Face config, and from GGUF tensor names to Hugging Face tensor
names.

Owns: one table row a GGUF architecture, and what llama.cpp's converter changes in the tensors of
each (rows permuted for interleaved rope, transposed Conv1D, norm weights stored as 1 + w), so that
it can be undone. Knows nothing of bytes: it sees metadata and shapes. What it does not know of the
architecture's keys goes into the config under the key's own name, where the reader of configs
treats it as any unknown key.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subsecond.errors import ModelError, UnsupportedError
from subsecond.formats.gguf_header import Header, Value
from subsecond.formats.gguf_names import FAMILIES, Entry, hub_names

_LIMIT_BLOCKS = 1 << 12
_LIMIT_SIZE = 1 << 24
# Keys of every architecture that do not change the computation, or repeat what the tensors say.
_BOOKKEEPING = {"tensor_data_layout", "rope.scaling.finetuned"}
# Keys by which architectures change the computation, and the values under which they do not: what
# no family here reads is refused under any other value.
_COMPUTATION: Mapping[str, tuple[float | bool, ...]] = {
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
}


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
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError("GGUF metadata general.architecture is missing; the file is not a model")
    family = FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedError(
            f"GGUF architecture {architecture!r} is not supported (supported: "
            f"{', '.join(sorted(FAMILIES))})"
        )
    if metadata.get("split.count", 0) not in (0, 1):
        raise UnsupportedError(
            "this GGUF is one part of several (split.count); merge them with 'gguf-split --merge'"
        )
    keys = _Keys(metadata, architecture, header)
    config = {
        "model_type": family.model_type,
        "architectures": [family.class_name],
        **_CONFIGS[architecture](keys),
    }
    tensors = hub_names(header.tensors, FAMILIES[architecture], keys.blocks)
    config["vocab_size"] = rows = keys.rows("token_embd.weight")
    if keys.integer("vocab_size", rows) != rows:
        raise ModelError(
            f"GGUF {architecture}.vocab_size contradicts the {rows} rows of token_embd"
        )
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config.update(_rope(keys, header, config, floats))
    keys.refuse_computation()
    config.update(keys.unused())
    return Description(config, tensors)


class _Keys:
    """Typed access to the architecture's own metadata; remembers what was read."""

    def __init__(self, metadata: Mapping[str, Value], architecture: str, header: Header) -> None:
        self._prefix = architecture + "."
        self._values = {
            k[len(self._prefix) :]: v for k, v in metadata.items() if k.startswith(self._prefix)
        }
        self._used = set(_BOOKKEEPING)
        self._header = header
        if self._values.get("expert_count", 0):
            raise UnsupportedError(
                f"GGUF {self._prefix}expert_count: mixtures of experts are not supported"
            )
        self.blocks = self.integer("block_count", low=1, high=_LIMIT_BLOCKS)

    def has(self, key: str) -> bool:
        return key in self._values

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = _LIMIT_SIZE
    ) -> int:
        value = self._take(key, default)
        if not isinstance(value, (int, float, str)) and len(value) and len(set(value)) == 1:
            value = value[0]  # one value a layer, all equal
        if type(value) is not int or not low <= value <= high:
            raise ModelError(
                f"GGUF {self._prefix}{key} is {_short(value)}; it must be an integer of {low} to "
                f"{high}"
            )
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._take(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 3e38:
            raise ModelError(
                f"GGUF {self._prefix}{key} is {_short(value)}; it must be a finite number"
            )
        return _decimal(float(value))

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.real(key, default)
        if value <= 0:
            raise ModelError(f"GGUF {self._prefix}{key} is {value}; it must be above 0")
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"GGUF {self._prefix}{key} is {_short(value)}; it must be a bool")
        return value

    def word(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        if not isinstance(value, str):
            raise ModelError(f"GGUF {self._prefix}{key} is {_short(value)}; it must be a string")
        return value

    def rows(self, tensor: str) -> int:
        if tensor not in self._header.tensors:
            raise ModelError(f"GGUF tensor {tensor!r} is missing")
        return self._header.tensors[tensor].shape[0]

    def has_tensor(self, tensor: str) -> bool:
        return tensor in self._header.tensors

    def refuse_computation(self) -> None:
        """Refuses the keys of _COMPUTATION that nobody has read, unless their value is harmless."""
        for key, harmless in _COMPUTATION.items():
            if key in self._used or key not in self._values:
                continue
            value = self._values[key]
            if not any(
                isinstance(value, bool) == isinstance(h, bool) and value == h for h in harmless
            ):
                raise UnsupportedError(
                    f"GGUF {self._prefix}{key} = {_short(value)} changes the computation and is "
                    "not supported for this architecture"
                )
            self._used.add(key)

    def unused(self) -> dict[str, Value]:
        return {self._prefix + k: v for k, v in self._values.items() if k not in self._used}

    def _take(self, key: str, default: Value | None) -> Value:
        self._used.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise ModelError(f"GGUF metadata {self._prefix}{key} is missing")
        return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _decimal(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF keeps float32 (1e-05 as 9.99999975e-06),
    configs decimals."""
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if abs(short) < 3e38 and struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


def _fraction(part: int, whole: int) -> float:
    """part / whole, such that int(whole * fraction) is `part` again."""
    fraction = part / whole
    return fraction if int(whole * fraction) == part else math.nextafter(fraction, math.inf)


def _common(keys: _Keys) -> dict[str, Any]:
    """What all families with RMS norm, gated feed-forward and rope share."""
    heads = keys.integer("attention.head_count")
    hidden = keys.integer("embedding_length")
    head_dim = keys.integer(
        "attention.key_length", hidden // heads if hidden % heads == 0 else None
    )
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(
            "GGUF attention.value_length differs from key_length; that is not supported"
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


def _full_rotary(keys: _Keys, head_dim: int) -> None:
    rotary = keys.integer("rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise UnsupportedError(
            f"GGUF rope.dimension_count is {rotary}, the heads have {head_dim}; not supported here"
        )


def _llama(keys: _Keys) -> dict[str, Any]:
    config = _common(keys) | {"hidden_act": "silu"}
    _full_rotary(keys, config["head_dim"])
    config["attention_bias"] = keys.has_tensor("blk.0.attn_q.bias")
    config["mlp_bias"] = keys.has_tensor("blk.0.ffn_down.bias")
    if keys.has("attention.sliding_window"):  # Mistral keeps the architecture name "llama"
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
        config["sliding_window"] = keys.integer("attention.sliding_window")
        del config["attention_bias"], config["mlp_bias"]
    return config


def _qwen(keys: _Keys) -> dict[str, Any]:
    config = _common(keys) | {"hidden_act": "silu"}
    _full_rotary(keys, config["head_dim"])
    window = keys.integer("attention.sliding_window", 0, low=0, high=1 << 31)
    if 0 < window < config["max_position_embeddings"]:
        raise UnsupportedError(
            f"GGUF attention.sliding_window = {window}: windows of Qwen are not supported"
        )
    return config


def _gpt2(keys: _Keys) -> dict[str, Any]:
    return {
        "n_embd": keys.integer("embedding_length"),
        "n_inner": keys.integer("feed_forward_length"),
        "n_layer": keys.blocks,
        "n_head": keys.integer("attention.head_count"),
        "n_positions": keys.integer("context_length", high=1 << 31),
        "layer_norm_epsilon": keys.real("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def _gptneox(keys: _Keys) -> dict[str, Any]:
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


def _phi3(keys: _Keys) -> dict[str, Any]:
    config = _common(keys) | {"hidden_act": "silu"}
    rotary = keys.integer("rope.dimension_count", config["head_dim"])
    if rotary != config["head_dim"]:
        config["partial_rotary_factor"] = _fraction(rotary, config["head_dim"])
    window = keys.integer("attention.sliding_window", 0, low=0)
    config["sliding_window"] = window or None
    return config


def _gemma(keys: _Keys) -> dict[str, Any]:
    config = _common(keys) | {"hidden_activation": "gelu_pytorch_tanh"}
    _full_rotary(keys, config["head_dim"])
    config["sliding_window"] = keys.integer("attention.sliding_window")
    config["final_logit_softcapping"] = keys.real("final_logit_softcapping", 0.0) or None
    return config


def _gemma2(keys: _Keys) -> dict[str, Any]:
    config = _gemma(keys)
    config["attn_logit_softcapping"] = keys.real("attn_logit_softcapping", 0.0) or None
    # The file does not hold query_pre_attn_scalar. Of the published sizes, only 27B (46 layers)
    # differs from head_dim.
    wide = keys.blocks == 46
    per_head = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = per_head if wide else config["head_dim"]
    return config


def _gemma3(keys: _Keys) -> dict[str, Any]:
    config = _gemma(keys)
    wide = keys.blocks == 62  # 27B, as for Gemma 2
    per_head = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = per_head if wide else config["head_dim"]
    config["rope_local_base_freq"] = keys.positive("rope.freq_base_swa", 10000.0)
    config["sliding_window_pattern"] = keys.integer("attention.sliding_window_pattern", 6)
    return config


def _rope(
    keys: _Keys, header: Header, config: Mapping[str, Any], floats: Callable[[str], Sequence[float]]
) -> dict[str, Any]:
    """Rope scaling, from the scaling keys and from the tensors of per-frequency factors."""
    kind = keys.word("rope.scaling.type", "linear")  # llama.cpp's default
    factor = _rope_factor(keys)
    original = keys.integer("rope.scaling.original_context_length", 0, low=0, high=1 << 31)
    _check_attention_factor(keys, config, original)
    by_frequency = [
        name
        for name in ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
        if name in header.tensors
    ]
    if factor != 1.0 and (kind == "none" or by_frequency):
        raise ModelError(
            f"GGUF rope.scaling.factor {factor} contradicts "
            f"{'rope.scaling.type none' if kind == 'none' else f'the tensor {by_frequency[0]!r}'}"
        )
    if "rope_freqs.weight" in header.tensors:
        return {"rope_scaling": _llama3_scaling(floats("rope_freqs.weight"), config["rope_theta"])}
    if (
        "rope_factors_long.weight" in header.tensors
        or "rope_factors_short.weight" in header.tensors
    ):
        factors: dict[str, Any] = {
            "rope_type": "longrope",
            "long_factor": list(floats("rope_factors_long.weight")),
            "short_factor": list(floats("rope_factors_short.weight")),
        }
        return {"rope_scaling": factors, "original_max_position_embeddings": original}
    if config["model_type"] == "phi3" and original:
        return {"original_max_position_embeddings": original}
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if original:
        scaling["original_max_position_embeddings"] = original
    return {"rope_scaling": scaling}


def _rope_factor(keys: _Keys) -> float:
    """The factor under its new or older name; 0 means none, as in llama.cpp."""
    older = keys.real("rope.scale_linear", 0.0)
    factor = keys.real("rope.scaling.factor", 0.0) or older or 1.0
    if older and older != factor:
        raise ModelError(f"GGUF rope.scaling.factor {factor} contradicts rope.scale_linear {older}")
    return factor


def _check_attention_factor(keys: _Keys, config: Mapping[str, Any], original: int) -> None:
    """Refuses a rope.scaling.attn_factor that is not the one that follows from the model.

    LongRoPE's follows from the two context lengths (arXiv:2402.13753); all others have 1.
    """
    given = keys.real("rope.scaling.attn_factor", 1.0)
    wanted = 1.0
    if config["model_type"] == "phi3" and 1 < original < config["max_position_embeddings"]:
        ratio = config["max_position_embeddings"] / original
        wanted = math.sqrt(1 + math.log(ratio) / math.log(original))
    if given != 1.0 and not math.isclose(given, wanted, rel_tol=1e-4):
        raise UnsupportedError(
            f"GGUF rope.scaling.attn_factor {given} is not supported, only {wanted:.6g}"
        )


def _llama3_scaling(factors: Sequence[float], theta: float) -> dict[str, Any]:
    """The parameters of Llama 3's rope scaling, found again from the factors that the converter
    computed with them."""
    factor, half = max(factors), len(factors)
    if not all(0 < x < math.inf for x in factors):
        raise ModelError(
            "GGUF tensor 'rope_freqs.weight' has factors that are not positive numbers"
        )
    for original in (8192, 4096, 16384, 32768, 2048, 65536, 131072):
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        wanted = [_llama3_factor(theta ** (-i / half), factor, original) for i in range(half)]
        if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(factors, wanted, strict=True)):
            return scaling
    raise UnsupportedError(
        "GGUF tensor 'rope_freqs.weight' is not Llama 3's rope scaling with known parameters"
    )


def _llama3_factor(frequency: float, factor: float, original: int) -> float:
    """What Llama 3 divides this rope frequency by, with low_freq_factor 1 and high_freq_factor
    4."""
    turns = original * frequency / (2 * math.pi)  # full turns within the original context
    if turns > 4:
        return 1.0
    if turns < 1:
        return factor
    smooth = (turns - 1) / 3
    return 1 / ((1 - smooth) / factor + smooth)


_CONFIGS: Mapping[str, Callable[[_Keys], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
}
