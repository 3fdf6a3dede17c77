"""GGUF tensor names and Hugging Face tensor names.

Owns: one table row a GGUF architecture, and what llama.cpp's converter changes in the tensors of
each (rows permuted for interleaved rope, transposed Conv1D, norm weights stored as 1 + w), so that
it can be undone. Knows nothing of metadata (gguf_config.py) or of bytes (gguf_in.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

RowOrder = Literal["", "rope_q", "rope_k", "neox_qkv"]

# Tensors that carry constants of the config.
CONSTANTS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)


@dataclass(frozen=True)
class Entry:
    """How one Hugging Face tensor lies in the file.

    `rows`: the order that the converter gave to the rows; `transposed`: stored as the transpose;
    `shift`: stored with this number added.
    """

    gguf: str
    rows: RowOrder = ""
    transposed: bool = False
    shift: float = 0.0


@dataclass(frozen=True)
class Family:
    """One GGUF architecture: its model in Hugging Face terms, and its names."""

    model_type: str
    class_name: str
    outer: Mapping[str, str]  # GGUF name without .weight or .bias -> Hugging Face name
    block: Mapping[str, str]  # the same below blk.<i>.
    layer_prefix: str
    row_orders: Mapping[str, RowOrder] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    norm_shift: float = 0.0


def hub_names(names: Iterable[str], family: Family, blocks: int) -> dict[str, Entry]:
    """Hugging Face name -> entry, for the tensor `names` of a file with `blocks` layers.

    A name that is not known stays as it is: the model's builder reports it as a tensor that nothing
    uses.
    """
    tensors: dict[str, Entry] = {}
    numbers = {str(i) for i in range(blocks)}
    for name in names:
        if name in CONSTANTS:
            continue
        stem, _, suffix = name.rpartition(".")
        if stem in family.outer:
            tensors[f"{family.outer[stem]}.{suffix}"] = _entry(family, name, stem, suffix)
            continue
        parts = stem.split(".", 2)
        known = (
            len(parts) == 3
            and parts[0] == "blk"
            and parts[1] in numbers
            and parts[2] in family.block
        )
        if known:
            key = f"{family.layer_prefix}.{parts[1]}.{family.block[parts[2]]}.{suffix}"
            tensors[key] = _entry(family, name, parts[2], suffix)
        else:
            tensors[name] = Entry(name)
    return tensors


def _entry(family: Family, name: str, stem: str, suffix: str) -> Entry:
    shift = family.norm_shift if stem.endswith("norm") and suffix == "weight" else 0.0
    return Entry(
        name,
        family.row_orders.get(stem, ""),
        suffix == "weight" and stem in family.transposed,
        shift,
    )


_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QWEN3_BLOCK = _LLAMA_BLOCK | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA2_BLOCK = _LLAMA_BLOCK | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA3_BLOCK = _GEMMA2_BLOCK | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_PHI3_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_BLOCK = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_NEOX_OUTER = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
}
_NEOX_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_GPT2_TRANSPOSED = frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"})
_LAYERS = "model.layers"

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "llama",
        "LlamaForCausalLM",
        _OUTER,
        _LLAMA_BLOCK,
        _LAYERS,
        {"attn_q": "rope_q", "attn_k": "rope_k"},
    ),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _OUTER, _LLAMA_BLOCK, _LAYERS),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _OUTER, _QWEN3_BLOCK, _LAYERS),
    "phi3": Family("phi3", "Phi3ForCausalLM", _OUTER, _PHI3_BLOCK, _LAYERS),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _OUTER, _GEMMA2_BLOCK, _LAYERS, norm_shift=1.0),
    "gemma3": Family(
        "gemma3_text", "Gemma3ForCausalLM", _OUTER, _GEMMA3_BLOCK, _LAYERS, norm_shift=1.0
    ),
    "gpt2": Family(
        "gpt2",
        "GPT2LMHeadModel",
        _GPT2_OUTER,
        _GPT2_BLOCK,
        "transformer.h",
        transposed=_GPT2_TRANSPOSED,
    ),
    "gptneox": Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _NEOX_OUTER,
        _NEOX_BLOCK,
        "gpt_neox.layers",
        {"attn_qkv": "neox_qkv"},
    ),
}
