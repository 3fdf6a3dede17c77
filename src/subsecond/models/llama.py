"""Llama: Llama 1 to 3.3, SmolLM and every checkpoint of architecture LlamaForCausalLM."""

from __future__ import annotations

from subsecond.models.common import activation, head_sizes
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Decoder, GatedOptions, Heads, Shapes, gated_decoder
from subsecond.models.rope import read_rope


def build(config: ConfigReader, shapes: Shapes) -> Built:
    hidden = config.integer("hidden_size")
    heads, kv_heads, head_dim = head_sizes(config, hidden)
    positions = config.integer("max_position_embeddings", 2048)
    rope = read_rope(config, head_dim, positions)
    config.only("rope_interleaved", False)
    bias = config.flag("attention_bias", False)
    layer = Heads(
        heads,
        kv_heads,
        head_dim,
        scale=head_dim**-0.5,
        rope="rope.inv_freq",
        rotary=rope.rotary,
        rope_factor=rope.factor,
    )
    options = GatedOptions(
        hidden=hidden,
        intermediate=config.integer("intermediate_size"),
        layers=(layer,) * config.integer("num_hidden_layers", high=1 << 12),
        ropes={"rope.inv_freq": rope},
        eps=config.number("rms_norm_eps", 1e-6),
        activation=activation(config, "hidden_act", "silu"),
        tied=config.flag("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
    )
    vocab = config.integer("vocab_size")
    d = Decoder("llama", vocab, positions, shapes, prefix="model.", witness="embed_tokens.weight")
    return gated_decoder(d, options)
