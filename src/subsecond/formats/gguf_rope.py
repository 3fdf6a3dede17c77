"""Rope scaling of GGUF files in Hugging Face terms.

Owns: the scaling keys, and the parameters of Llama 3's scaling, found again from the tensor of
factors that llama.cpp's converter computes with them. Knows nothing of other keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from subsecond.errors import ModelError, UnsupportedError
from subsecond.formats.gguf_header import Header
from subsecond.formats.gguf_keys import Keys


def rope(
    keys: Keys, header: Header, config: Mapping[str, Any], floats: Callable[[str], Sequence[float]]
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
    if kind == "yarn":
        scaling |= _yarn(keys)
    return {"rope_scaling": scaling}


def _yarn(keys: Keys) -> dict[str, float]:
    """YaRN's own keys. What has no counterpart in Hugging Face's configs is refused by name."""
    for key, harmless in (("log_multiplier", 0.0), ("ext_factor", 1.0), ("attn_factor", 1.0)):
        value = keys.real(f"rope.scaling.yarn_{key}", harmless)
        if value not in (harmless, -1.0):  # -1: derived, as if it were not given
            raise UnsupportedError(
                f"GGUF rope.scaling.yarn_{key} {value} is not supported, only {harmless}"
            )
    names = ("beta_fast", "beta_slow")
    return {
        name: keys.positive(f"rope.scaling.yarn_{name}")
        for name in names
        if keys.has(f"rope.scaling.yarn_{name}")
    }


def _rope_factor(keys: Keys) -> float:
    """The factor under its new or older name; 0 means none, as in llama.cpp."""
    older = keys.real("rope.scale_linear", 0.0)
    factor = keys.real("rope.scaling.factor", 0.0) or older or 1.0
    if older and older != factor:
        raise ModelError(f"GGUF rope.scaling.factor {factor} contradicts rope.scale_linear {older}")
    return factor


def _check_attention_factor(keys: Keys, config: Mapping[str, Any], original: int) -> None:
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
