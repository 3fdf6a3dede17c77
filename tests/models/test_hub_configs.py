"""Configurations in the spelling of well-known checkpoints: all keys understood, sizes right.

Only configurations and shapes; the numbers of parameters are the published ones.
"""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from subsecond import models
from subsecond.program import rewrites

LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def sizes(*values: int) -> dict[str, Any]:
    """The keys that every checkpoint of transformers' Llama family has."""
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    return {
        **dict(zip(keys, values, strict=True)),
        "initializer_range": 0.02,
        "use_cache": True,
        "attention_dropout": 0.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
    }


GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}

HUB: dict[str, tuple[str, int, dict[str, Any]]] = {
    "SmolLM2-135M-Instruct": (
        "llama",
        134_515_008,
        {
            **sizes(576, 1536, 30, 9, 3, 49152),
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "hidden_act": "silu",
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        },
    ),
    "Llama-3.2-1B": (
        "llama",
        1_235_814_400,
        {
            **sizes(2048, 8192, 16, 32, 8, 128256),
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "eos_token_id": [128001, 128008, 128009],
            "head_dim": 64,
            "hidden_act": "silu",
            "max_position_embeddings": 131072,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": LLAMA3,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2.5-0.5B": (
        "qwen2",
        494_032_768,
        {
            **sizes(896, 4864, 24, 14, 2, 151936),
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_mrope": False,
            "use_sliding_window": False,
        },
    ),
    "Qwen3-0.6B": (
        "qwen3",
        596_049_920,
        {
            **sizes(1024, 3072, 28, 16, 8, 151936),
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
    ),
    "Mistral-7B-v0.1": (
        "mistral",
        7_241_732_096,
        {
            **sizes(4096, 14336, 32, 32, 8, 32000),
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "gpt2": ("gpt2", 124_439_808, GPT2),
    "pythia-70m": ("gpt_neox", 70_426_624, PYTHIA),
    "Phi-3-mini-4k-instruct": (
        "phi3",
        3_821_079_552,
        {
            **sizes(3072, 8192, 32, 32, 32, 32064),
            "_name_or_path": "Phi-3-mini-4k-instruct",
            "architectures": ["Phi3ForCausalLM"],
            "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
            "model_type": "phi3",
            "attention_bias": False,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "pad_token_id": 32000,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "sliding_window": 2047,
            "tie_word_embeddings": False,
        },
    ),
    "gemma-2-2b": (
        "gemma2",
        2_614_341_888,
        {
            **sizes(2304, 9216, 26, 8, 4, 256000),
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "attention_bias": False,
            "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": 30.0,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
        },
    ),
    "gemma-3-1b-it": (
        "gemma3",
        999_885_952,
        {
            **sizes(1152, 6912, 26, 4, 1, 262144),
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "cache_implementation": "hybrid",
            "eos_token_id": [1, 106],
            "final_logit_softcapping": None,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 32768,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
        },
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_known_checkpoints_are_understood_completely(name: str) -> None:
    family, parameters, config = HUB[name]
    built = models.build(config, tiny.shapes(family, config), strict=True)
    assert built.warnings == []
    checkpoint_tensors = [
        spec for spec in built.program.tensors if built.recipes[spec.name].source is not None
    ]
    assert sum(spec.n * max(spec.k, 1) for spec in checkpoint_tensors) == parameters
    fused = rewrites.fuse(built.program)
    assert not any(op.kind in ("rope", "concat", "gated") for op in fused.ops)


def test_gemma_3_alternates_five_to_one() -> None:
    family, _, config = HUB["gemma-3-1b-it"]
    program = models.build(config, tiny.shapes(family, config)).program
    windows = [op.attributes["window"] for op in program.ops if op.kind == "attention"]
    assert windows == [0 if (index + 1) % 6 == 0 else 512 for index in range(26)]
    assert [(group.kind, len(group.layers)) for group in program.groups] == [
        ("window", 22),
        ("full", 4),
    ]
