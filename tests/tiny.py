"""Tiny random checkpoints of every family, as Hugging Face folders, from a NumPy generator alone.

Used by the tests of all rooms. The weights depend on (family, seed, configuration) only, so that
recorded goldens stay valid without torch. Matrices have a variance of 1 / inputs, which keeps
activations near 1.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

VOCAB = 320
Shapes = dict[str, tuple[int, ...]]

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "torch_dtype": "float32",
}

_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 512,
        "max_window_layers": 2,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "head_dim": 32,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "sliding_window": 48,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "n_ctx": 512,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 256,
        "eos_token_id": 257,
    },
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "original_max_position_embeddings": 512,
        "rope_scaling": None,
        "sliding_window": 96,
        "pad_token_id": 258,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "num_hidden_layers": 4,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window": 64,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "cache_implementation": "hybrid",
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 4,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window": 64,
        "sliding_window_pattern": 3,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "attention_bias": False,
    },
}

FAMILIES = tuple(_FAMILIES)


def config(family: str, **overrides: Any) -> dict[str, Any]:
    """The config.json of a tiny model; an override replaces a key."""
    own = _FAMILIES[family]
    base = {} if family == "gpt2" else dict(_COMMON)
    if family == "gpt_neox":
        del base["num_key_value_heads"], base["rms_norm_eps"]
    return {**base, **own, **overrides}


def shapes(family: str, c: Mapping[str, Any]) -> Shapes:
    """Names and shapes of the checkpoint's tensors, as transformers writes them."""
    return _SHAPES.get(family, _llama_shapes)(family, c)


def tensors(family: str, seed: int, c: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    """Random f32 values for `shapes`."""
    result = {}
    for name, shape in shapes(family, c).items():
        # A stream of its own for each tensor: an added tensor leaves the others as they were.
        rng = np.random.default_rng([seed, zlib.crc32(family.encode()), zlib.crc32(name.encode())])
        noise = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            centre = 1.0 if "norm" in name or ".ln_" in name else 0.0
            if name.endswith("bias") or family.startswith("gemma"):
                centre = 0.0
            result[name] = (noise * np.float32(0.2) + np.float32(centre)).astype(np.float32)
        else:
            inputs = shape[0] if _is_transposed(family, name) else shape[1]
            result[name] = (noise / np.float32(np.sqrt(inputs))).astype(np.float32)
    return result


def write(
    family: str,
    path: Path,
    seed: int = 0,
    *,
    tokenizer: bool = False,
    shards: int = 1,
    **overrides: Any,
) -> Path:
    """Writes config.json, safetensors (in `shards` files) and, if asked, tokenizer.json into
    folder `path`.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    c = config(family, **overrides)
    (path / "config.json").write_text(json.dumps(c, indent=1))
    arrays = tensors(family, seed, c)
    names = list(arrays)
    if shards == 1:
        write_safetensors(path / "model.safetensors", arrays)
    else:
        weight_map = {}
        for index in range(shards):
            file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: arrays[name] for name in names[index::shards]}
            write_safetensors(path / file, part)
            weight_map.update(dict.fromkeys(part, file))
        index_json = {"metadata": {}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index_json))
    if tokenizer:
        write_tokenizer(path)
    return path


def write_safetensors(path: Path, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """One safetensors file of f32 tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in arrays.items():
        span = [offset, offset + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": span}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array, "<f4").tobytes())


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE tokenizer of 256 bytes, 3 control tokens and merges up to VOCAB entries."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    vocab = {letters[byte]: byte for byte in range(256)}
    control = ["<|begin|>", "<|end|>", "<|pad|>"]
    vocab.update({token: 256 + index for index, token in enumerate(control)})
    space = letters[32]
    merges = []
    for pair in _MERGES.replace("_", space).split():
        left, right = pair.split("+")
        joined = left in vocab and right in vocab and left + right not in vocab
        if joined and len(vocab) < VOCAB:
            merges.append(f"{left} {right}")
            vocab[left + right] = len(vocab)
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    added = [{"id": vocab[token], "content": token, **flags} for token in control]
    bytes_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": bytes_level,
        "post_processor": None,
        "decoder": bytes_level,
        "model": model,
    }
    (path / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    template = "{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "chat_template": template,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


_MERGES = (
    "t+h _+th e+r i+n o+n a+n e+n r+e _+a _+s _+w _+o a+t n+d _+b _+c _+f _+m _+p _+d i+s o+r "
    "e+s o+u i+t a+r a+l in+g _th+e e+d _+t a+s _+l r+o _+h l+e l+l u+r _+in _+g _+e s+t _+n "
    "u+s _+to o+m _+of e+l _an+d i+c i+d a+c _+i i+l o+l o+w a+d e+t v+e c+h k+e "
)


def _is_transposed(family: str, name: str) -> bool:
    return family == "gpt2" and ".h." in name


def _llama_shapes(family: str, c: Mapping[str, Any]) -> Shapes:
    hidden, mlp = c["hidden_size"], c["intermediate_size"]
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    head_dim = c.get("head_dim") or hidden // heads
    q, kv = heads * head_dim, kv_heads * head_dim
    qkv_bias = family == "qwen2" or c.get("attention_bias", False)
    gemma = family.startswith("gemma")
    result: Shapes = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for index in range(c["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        norms = ["input_layernorm", "post_attention_layernorm"]
        if gemma:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        result.update({f"{layer}.{norm}.weight": (hidden,) for norm in norms})
        if family in ("qwen3", "gemma3"):
            result.update({f"{layer}.self_attn.{x}_norm.weight": (head_dim,) for x in "qk"})
        attention = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden)}
        mlps = {"gate_proj": (mlp, hidden), "up_proj": (mlp, hidden), "down_proj": (hidden, mlp)}
        if family == "phi3":
            attention = {"qkv_proj": (q + 2 * kv, hidden)}
            mlps = {"gate_up_proj": (2 * mlp, hidden), "down_proj": (hidden, mlp)}
        for name, shape in attention.items():
            result[f"{layer}.self_attn.{name}.weight"] = shape
            if qkv_bias:
                result[f"{layer}.self_attn.{name}.bias"] = shape[:1]
        result[f"{layer}.self_attn.o_proj.weight"] = (hidden, q)
        if c.get("attention_bias", False):
            result[f"{layer}.self_attn.o_proj.bias"] = (hidden,)
        for name, shape in mlps.items():
            result[f"{layer}.mlp.{name}.weight"] = shape
            if c.get("mlp_bias", False):
                result[f"{layer}.mlp.{name}.bias"] = shape[:1]
    result["model.norm.weight"] = (hidden,)
    if not c.get("tie_word_embeddings", gemma):
        result["lm_head.weight"] = (c["vocab_size"], hidden)
    return result


def _gpt2_shapes(family: str, c: Mapping[str, Any]) -> Shapes:
    n = c["n_embd"]
    inner = c.get("n_inner") or 4 * n
    result: Shapes = {
        "transformer.wte.weight": (c["vocab_size"], n),
        "transformer.wpe.weight": (c["n_positions"], n),
    }
    for index in range(c["n_layer"]):
        layer = f"transformer.h.{index}"
        for name, outputs, inputs in (
            ("attn.c_attn", 3 * n, n),
            ("attn.c_proj", n, n),
            ("mlp.c_fc", inner, n),
            ("mlp.c_proj", n, inner),
        ):
            result[f"{layer}.{name}.weight"] = (inputs, outputs)
            result[f"{layer}.{name}.bias"] = (outputs,)
        for name in ("ln_1", "ln_2"):
            result[f"{layer}.{name}.weight"] = result[f"{layer}.{name}.bias"] = (n,)
    result["transformer.ln_f.weight"] = result["transformer.ln_f.bias"] = (n,)
    return result


def _gpt_neox_shapes(family: str, c: Mapping[str, Any]) -> Shapes:
    n, mlp = c["hidden_size"], c["intermediate_size"]
    bias = c.get("attention_bias", True)
    result: Shapes = {"gpt_neox.embed_in.weight": (c["vocab_size"], n)}
    for index in range(c["num_hidden_layers"]):
        layer = f"gpt_neox.layers.{index}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            result[f"{layer}.{name}.weight"] = result[f"{layer}.{name}.bias"] = (n,)
        for name, outputs, inputs in (
            ("attention.query_key_value", 3 * n, n),
            ("attention.dense", n, n),
            ("mlp.dense_h_to_4h", mlp, n),
            ("mlp.dense_4h_to_h", n, mlp),
        ):
            result[f"{layer}.{name}.weight"] = (outputs, inputs)
            if bias or name.startswith("mlp"):
                result[f"{layer}.{name}.bias"] = (outputs,)
    result["gpt_neox.final_layer_norm.weight"] = result["gpt_neox.final_layer_norm.bias"] = (n,)
    if not c["tie_word_embeddings"]:
        result["embed_out.weight"] = (c["vocab_size"], n)
    return result


_SHAPES: dict[str, Callable[[str, Mapping[str, Any]], Shapes]] = {
    "gpt2": _gpt2_shapes,
    "gpt_neox": _gpt_neox_shapes,
}
