"""Tiny GGUF files, written with the gguf library as llama.cpp's converter writes them.

The converter's changes (permuted q and k, transposed Conv1D, norms + 1, q|k|v regrouped) are
spelled out here from the Hugging Face side, so that the reader's undoing of them is checked by
other code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import tiny

F32 = npt.NDArray[np.float32]
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2",
    "gpt_neox": "gptneox", "phi3": "phi3", "gemma2": "gemma2", "gemma3": "gemma3",
}  # fmt: skip
_LAST = {"embed_tokens": "token_embd", "wte": "token_embd", "embed_in": "token_embd",
         "wpe": "position_embd", "lm_head": "output", "embed_out": "output", "norm": "output_norm",
         "ln_f": "output_norm", "final_layer_norm": "output_norm"}  # fmt: skip
_BLOCK = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q",
    "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down", "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm", "qkv_proj": "attn_qkv", "gate_up_proj": "ffn_up",
    "query_key_value": "attn_qkv", "dense": "attn_output", "dense_h_to_4h": "ffn_up",
    "dense_4h_to_h": "ffn_down", "ln_1": "attn_norm", "ln_2": "ffn_norm", "c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
_GEMMA = {"post_attention_layernorm": "post_attention_norm",
          "pre_feedforward_layernorm": "ffn_norm",
          "post_feedforward_layernorm": "post_ffw_norm"}  # fmt: skip


def gguf_name(family: str, name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor."""
    parts = name.split(".")
    suffix, module = parts[-1], parts[-2]
    layer = next((p for p in parts if p.isdecimal()), None)
    if layer is None:
        return f"{_LAST[module]}.{suffix}"
    table = _BLOCK | _GEMMA if family.startswith("gemma") else _BLOCK
    key = ".".join(parts[-3:-1]) if module == "c_proj" else module
    return f"blk.{layer}.{table[key]}.{suffix}"


def stored(family: str, name: str, x: F32, c: Mapping[str, Any]) -> F32:
    """What the converter writes for the Hugging Face tensor `x`."""
    if family in ("llama", "mistral") and ".q_proj." in name:
        return _permuted(x, c["num_attention_heads"])
    if family in ("llama", "mistral") and ".k_proj." in name:
        return _permuted(x, c["num_key_value_heads"])
    if family == "gpt2" and ".h." in name and x.ndim == 2:
        return np.ascontiguousarray(x.T)
    if family.startswith("gemma") and "norm" in name:
        return x + np.float32(1)
    if family == "gpt_neox" and "query_key_value" in name:
        heads = c["num_attention_heads"]
        split = x.reshape(heads, 3, len(x) // heads // 3, *x.shape[1:])
        return np.concatenate([split[:, i].reshape(-1, *x.shape[1:]) for i in range(3)])
    return x


def _permuted(x: F32, heads: int) -> F32:
    split = x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(x.shape)


def write(
    family: str,
    path: Path,
    seed: int = 0,
    *,
    quantized: gguf.GGMLQuantizationType | None = None,
    edit: Callable[[gguf.GGUFWriter], None] | None = None,
    **overrides: Any,
) -> dict[str, F32]:
    """Writes a tiny model; returns its tensors under Hugging Face names, as the file holds them.

    quantized: the type of the matrices. edit: adds to the writer before it writes.
    """
    c = tiny.config(family, **overrides)
    writer = gguf.GGUFWriter(path, ARCHITECTURES[family])
    _add_config(writer, family, c)
    _add_tokenizer(writer)
    held = {}
    for name, x in tiny.tensors(family, seed, c).items():
        data = stored(family, name, x, c)
        if quantized is not None and data.ndim == 2:
            raw = gguf.quants.quantize(data, quantized)
            writer.add_tensor(gguf_name(family, name), raw, raw_dtype=quantized)
            held[gguf_name(family, name)] = gguf.quants.dequantize(raw, quantized)
        else:
            writer.add_tensor(gguf_name(family, name), data)
            held[gguf_name(family, name)] = data
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _add_config(w: gguf.GGUFWriter, family: str, c: Mapping[str, Any]) -> None:
    get: Callable[..., Any] = lambda *names: next(c[n] for n in names if c.get(n) is not None)  # noqa: E731
    hidden, heads = get("hidden_size", "n_embd"), get("num_attention_heads", "n_head")
    w.add_block_count(get("num_hidden_layers", "n_layer"))
    w.add_embedding_length(hidden)
    w.add_head_count(heads)
    w.add_context_length(get("max_position_embeddings", "n_positions"))
    w.add_feed_forward_length(4 * hidden if family == "gpt2" else c["intermediate_size"])
    if family in ("gpt2", "gpt_neox"):
        w.add_layer_norm_eps(1e-5)
    else:
        w.add_head_count_kv(c["num_key_value_heads"])
        w.add_layer_norm_rms_eps(c["rms_norm_eps"])
        w.add_rope_freq_base(c["rope_theta"])
    head_dim = c.get("head_dim") or hidden // heads
    if "head_dim" in c:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if family == "gpt_neox":
        w.add_rope_dimension_count(int(c["rotary_pct"] * head_dim))
        w.add_parallel_residual(c["use_parallel_residual"])
    elif family in ("llama", "mistral", "phi3"):
        w.add_rope_dimension_count(head_dim)
    if family in ("mistral", "phi3", "gemma2", "gemma3"):
        w.add_sliding_window(c["sliding_window"])
    if family == "phi3":
        w.add_rope_scaling_orig_ctx_len(c["original_max_position_embeddings"])
    if family == "gemma2":
        w.add_attn_logit_softcapping(c["attn_logit_softcapping"])
        w.add_final_logit_softcapping(c["final_logit_softcapping"])
    if family == "gemma3":
        w.add_uint32("gemma3.attention.sliding_window_pattern", c["sliding_window_pattern"])
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(c["rope_scaling"]["factor"])


def _add_tokenizer(w: gguf.GGUFWriter) -> None:
    """The tokenizer of tiny.write_tokenizer as GGUF metadata."""
    folder = Path(w.path or "").parent
    tiny.write_tokenizer(folder)
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    vocabulary = document["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"<unused{i}>" for i in range(tiny.VOCAB - len(tokens))]
    control = {entry["content"] for entry in document["added_tokens"]}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([3 if t in control else 1 for t in tokens])
    w.add_token_merges(document["model"]["merges"])
    w.add_bos_token_id(256)
    w.add_eos_token_id(257)
    w.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
