"""Qwen3 (dense): Llama's parts with norms on the heads of q and k; upper layers may slide."""

from __future__ import annotations

from subsecond.models.common import activation, head_sizes, qwen_windows
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Decoder, GatedOptions, Heads, Shapes, gated_decoder
from subsecond.models.rope import read_rope


def build(config: ConfigReader, shapes: Shapes) -> Built:
    hidden = config.integer("hidden_size")
    heads, kv_heads, head_dim = head_sizes(config, hidden, head_dim=128)
    positions = config.integer("max_position_embeddings", 32768)
    rope = read_rope(config, head_dim, positions)
    eps = config.number("rms_norm_eps", 1e-6)
    bias = config.flag("attention_bias", False)
    layers = tuple(
        Heads(
            heads,
            kv_heads,
            head_dim,
            scale=head_dim**-0.5,
            window=window,
            rope="rope.inv_freq",
            rotary=rope.rotary,
            rope_factor=rope.factor,
            qk_norm_eps=eps,
        )
        for window in qwen_windows(config)
    )
    options = GatedOptions(
        hidden=hidden,
        intermediate=config.integer("intermediate_size"),
        layers=layers,
        ropes={"rope.inv_freq": rope},
        eps=eps,
        activation=activation(config, "hidden_act", "silu"),
        tied=config.flag("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias,
    )
    vocab = config.integer("vocab_size")
    d = Decoder("qwen3", vocab, positions, shapes, prefix="model.", witness="embed_tokens.weight")
    return gated_decoder(d, options)
