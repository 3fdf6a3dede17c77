"""The checkpoints whose logits are compared with transformers, recorded here or live.

Every family with three seeds, and the options that change a family's computation with one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiny

FILE = Path(__file__).parent / "logits.npz"
PROGRAMS = Path(__file__).parent / "programs"
SEEDS = (0, 1, 2)
LENGTHS = (1, 65, 300)  # the last is longer than every window
COLUMNS = 24
TOLERANCE = 1e-3  # of max(1, standard deviation of the reference's logits)


@dataclass(frozen=True)
class Checkpoint:
    """One tiny checkpoint: a family, a seed, and what its configuration changes."""

    name: str
    family: str
    seed: int
    overrides: dict[str, Any] = field(default_factory=dict)


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_SHORT = [1.0, 1.05, 1.1, 1.2, 1.4, 1.7]
_LONG = [1.0, 1.5, 2.0, 3.0, 4.0, 4.0]

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-llama3-rope": ("llama", {"rope_scaling": _LLAMA3}),
    "llama-new-rope-keys": (
        "llama",
        {"rope_theta": None, "rope_parameters": {**_LLAMA3, "rope_theta": 500000.0}},
    ),
    "llama-biases": (
        "llama",
        {
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 24,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
    ),
    "qwen3-layer-types": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 40,
            "attention_bias": True,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "mistral-full": (
        "mistral",
        {"sliding_window": None, "head_dim": 24, "tie_word_embeddings": True},
    ),
    "gpt2-scales": (
        "gpt2",
        {"n_inner": 128, "scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"},
    ),
    "gpt2-unscaled": ("gpt2", {"scale_attn_weights": False}),
    "gpt_neox-serial": (
        "gpt_neox",
        {
            "use_parallel_residual": False,
            "rotary_pct": 1.0,
            "attention_bias": False,
            "hidden_act": "gelu_fast",
            "tie_word_embeddings": True,
        },
    ),
    "gpt_neox-new-rope-keys": (
        "gpt_neox",
        {
            "rotary_emb_base": None,
            "rotary_pct": None,
            "rope_parameters": {
                "rope_type": "linear",
                "factor": 2.0,
                "rope_theta": 5000,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "qwen2-yarn": (
        "qwen2",
        {
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "llama-yarn-options": (
        "llama",
        {
            "head_dim": 24,
            "rope_theta": None,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 16.0,
                "beta_slow": 0.5,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "truncate": False,
            },
        },
    ),
    "mistral-yarn-factor": (
        "mistral",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 2.0,
                "attention_factor": 1.3,
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "phi3-longrope": (
        "phi3",
        {
            "rope_scaling": {"type": "longrope", "short_factor": _SHORT, "long_factor": _LONG},
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 2048,
            "sliding_window": None,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2-layer-types": (
        "gemma2",
        {
            "layer_types": ["full_attention"] + ["sliding_attention"] * 2 + ["full_attention"],
            "attention_bias": True,
            "attn_logit_softcapping": None,
        },
    ),
    "gemma3-new-rope-keys": (
        "gemma3",
        {
            "rope_scaling": None,
            "rope_theta": None,
            "rope_local_base_freq": None,
            "final_logit_softcapping": 2.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 9000.0},
            },
        },
    ),
}

CHECKPOINTS = [
    *(Checkpoint(f"{f}-{seed}", f, seed) for f in tiny.FAMILIES for seed in SEEDS),
    *(Checkpoint(name, family, 0, changes) for name, (family, changes) in OPTIONS.items()),
]


def prompt(checkpoint: Checkpoint, length: int) -> list[int]:
    """Token ids, the same on every machine."""
    rng = np.random.default_rng([checkpoint.seed, length])
    return [int(token) for token in rng.integers(0, tiny.VOCAB, length)]


def rows(length: int) -> list[int]:
    """The positions whose logits are recorded."""
    return sorted({0, length // 4, length // 2, length - 2, length - 1} & set(range(length)))


def columns(checkpoint: Checkpoint) -> npt.NDArray[np.int64]:
    """The vocabulary entries whose logits are recorded."""
    rng = np.random.default_rng([checkpoint.seed, 99])
    return np.sort(rng.choice(tiny.VOCAB, COLUMNS, replace=False))
