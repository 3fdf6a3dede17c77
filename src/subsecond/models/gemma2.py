"""Gemma 2: norms with weight + 1 around each part, capped scores and logits, alternate windows."""

from __future__ import annotations

from subsecond.models.common import activation, head_sizes, sliding_layers
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Decoder, GatedOptions, Heads, Shapes, gated_decoder
from subsecond.models.rope import f32, read_rope


def build(config: ConfigReader, shapes: Shapes) -> Built:
    hidden = config.integer("hidden_size")
    heads, kv_heads, head_dim = head_sizes(config, hidden, head_dim=256)
    positions = config.integer("max_position_embeddings", 8192)
    rope = read_rope(config, head_dim, positions)
    config.only("use_bidirectional_attention", False)
    config.only("use_sliding_window", True)  # transformers ignores it: the layers slide anyway
    config.ignore("hidden_act")  # superseded by hidden_activation, which is what the model uses
    scale = config.number("query_pre_attn_scalar", 256.0, low=1e-6) ** -0.5
    softcap = config.optional_number("attn_logit_softcapping", 50.0) or 0.0
    count = config.integer("num_hidden_layers", high=1 << 12)
    window = config.integer("sliding_window", 4096)
    layers = tuple(
        Heads(
            heads,
            kv_heads,
            head_dim,
            scale=scale,
            window=window if slides else 0,
            softcap=softcap,
            rope="rope.inv_freq",
            rotary=rope.rotary,
            rope_factor=rope.factor,
        )
        for slides in sliding_layers(config, count, [i % 2 == 0 for i in range(count)])
    )
    bias = config.flag("attention_bias", False)
    options = GatedOptions(
        hidden=hidden,
        intermediate=config.integer("intermediate_size"),
        layers=layers,
        ropes={"rope.inv_freq": rope},
        eps=config.number("rms_norm_eps", 1e-6),
        activation=activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        tied=config.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        out_bias=bias,
        norm_add=1.0,
        post_norms=True,
        embedding_scale=f32(hidden**0.5),
        logit_softcap=config.optional_number("final_logit_softcapping", 30.0) or 0.0,
    )
    vocab = config.integer("vocab_size")
    d = Decoder(
        "gemma2", vocab, rope.positions, shapes, prefix="model.", witness="embed_tokens.weight"
    )
    return gated_decoder(d, options)
