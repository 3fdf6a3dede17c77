"""Phi-3, 3.5 and Phi-4: Llama's parts with fused matrices, partial rotary and LongRoPE.

LongRoPE is exact within the original context, so the program's context is limited to that, with a
warning.
"""

from __future__ import annotations

from subsecond.models.common import activation, head_sizes
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Decoder, GatedOptions, Heads, Shapes, gated_decoder
from subsecond.models.rope import read_rope


def build(config: ConfigReader, shapes: Shapes) -> Built:
    hidden = config.integer("hidden_size")
    heads, kv_heads, head_dim = head_sizes(config, hidden)
    positions = config.integer("max_position_embeddings", 4096)
    rope = read_rope(
        config, head_dim, positions, partial_keys=("partial_rotary_factor",), original=4096
    )
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        config.only(key, False)
    config.ignore("original_max_position_embeddings", "interpolate_factor", "full_attn_mod")
    layer = Heads(
        heads,
        kv_heads,
        head_dim,
        scale=head_dim**-0.5,
        window=config.optional_integer("sliding_window", None) or 0,
        rope="rope.inv_freq",
        rotary=rope.rotary,
        rope_factor=rope.factor,
    )
    options = GatedOptions(
        hidden=hidden,
        intermediate=config.integer("intermediate_size"),
        layers=(layer,) * config.integer("num_hidden_layers", high=1 << 12),
        ropes={"rope.inv_freq": rope},
        eps=config.number("rms_norm_eps", 1e-5),
        activation=activation(config, "hidden_act", "silu"),
        tied=config.flag("tie_word_embeddings", False),
        fused=True,
    )
    limit = min(positions, rope.positions or positions)
    vocab = config.integer("vocab_size")
    d = Decoder("phi3", vocab, limit, shapes, prefix="model.", witness="embed_tokens.weight")
    if limit < positions:
        d.warnings.append(
            f"the context is limited to {limit} of {positions} positions: beyond its original "
            "context, LongRoPE changes the keys of earlier tokens"
        )
    return gated_decoder(d, options)
