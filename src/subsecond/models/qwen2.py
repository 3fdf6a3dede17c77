"""Qwen2 and Qwen2.5: Llama's parts with biases on q, k and v, and optional sliding upper layers."""

from __future__ import annotations

from subsecond.models.common import activation, head_sizes, qwen_windows
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Decoder, GatedOptions, Heads, Shapes, gated_decoder
from subsecond.models.rope import read_rope


def build(config: ConfigReader, shapes: Shapes) -> Built:
    hidden = config.integer("hidden_size")
    heads, kv_heads, head_dim = head_sizes(config, hidden)
    positions = config.integer("max_position_embeddings", 32768)
    rope = read_rope(config, head_dim, positions)
    config.only("use_mrope", False)
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
        )
        for window in qwen_windows(config)
    )
    options = GatedOptions(
        hidden=hidden,
        intermediate=config.integer("intermediate_size"),
        layers=layers,
        ropes={"rope.inv_freq": rope},
        eps=config.number("rms_norm_eps", 1e-6),
        activation=activation(config, "hidden_act", "silu"),
        tied=config.flag("tie_word_embeddings", False),
        qkv_bias=True,
    )
    vocab = config.integer("vocab_size")
    d = Decoder("qwen2", vocab, positions, shapes, prefix="model.", witness="embed_tokens.weight")
    return gated_decoder(d, options)
