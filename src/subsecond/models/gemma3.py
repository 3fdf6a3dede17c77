"""Gemma 3 (text): Gemma 2's parts with q and k norms instead of capped scores, and two rope bases.

Sliding layers rotate with the local base; the others with the global one, whose scaling says how
long the context is.
"""

from __future__ import annotations

from subsecond.errors import ModelError
from subsecond.models.common import activation, head_sizes, sliding_layers
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Decoder, GatedOptions, Heads, Shapes, gated_decoder
from subsecond.models.rope import Base, Rope, f32, one_of, scaled

GLOBAL, LOCAL = "rope.inv_freq", "rope.local.inv_freq"


def build(config: ConfigReader, shapes: Shapes) -> Built:
    hidden = config.integer("hidden_size")
    heads, kv_heads, head_dim = head_sizes(config, hidden, head_dim=256)
    positions = config.integer("max_position_embeddings", 131072)
    ropes = _ropes(config, head_dim, positions)
    eps = config.number("rms_norm_eps", 1e-6)
    scale = config.number("query_pre_attn_scalar", 256.0, low=1e-6) ** -0.5
    config.only("use_bidirectional_attention", False)
    config.only("use_sliding_window", True)  # transformers ignores it: the layers slide anyway
    config.only("attn_logit_softcapping")  # transformers reads it and does not apply it
    config.ignore("hidden_act")  # superseded by hidden_activation, which is what the model uses
    count = config.integer("num_hidden_layers", high=1 << 12)
    pattern = config.integer("sliding_window_pattern", config.integer("_sliding_window_pattern", 6))
    slides = sliding_layers(config, count, [(i + 1) % pattern != 0 for i in range(count)])
    window = config.integer("sliding_window", 4096)
    layers = tuple(
        Heads(
            heads,
            kv_heads,
            head_dim,
            scale=scale,
            window=window if local else 0,
            qk_norm_eps=eps,
            rope=LOCAL if local else GLOBAL,
            rotary=head_dim,
            rope_factor=ropes[LOCAL if local else GLOBAL].factor,
        )
        for local in slides
    )
    bias = config.flag("attention_bias", False)
    options = GatedOptions(
        hidden=hidden,
        intermediate=config.integer("intermediate_size"),
        layers=layers,
        ropes={name: ropes[name] for name in (GLOBAL, LOCAL) if (name == LOCAL) in slides},
        eps=eps,
        activation=activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        tied=config.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        out_bias=bias,
        norm_add=1.0,
        post_norms=True,
        embedding_scale=f32(hidden**0.5),
        logit_softcap=config.optional_number("final_logit_softcapping", None) or 0.0,
    )
    vocab = config.integer("vocab_size")
    d = Decoder(
        "gemma3",
        vocab,
        ropes[GLOBAL].positions,
        shapes,
        prefix="model.",
        witness="embed_tokens.weight",
    )
    return gated_decoder(d, options)


def _ropes(config: ConfigReader, head_dim: int, positions: int) -> dict[str, Rope]:
    """Both ropes, from rope_parameters by layer type or from the older flat keys."""
    both = config.nested("rope_parameters")
    for key in ("rope_type", "rope_theta", "factor"):
        if both is not None:
            both.only(key)  # it belongs to one of the two kinds of layers
    outer = both.nested("full_attention") if both is not None else None
    local = both.nested("sliding_attention") if both is not None else None
    older = config.nested("rope_scaling")
    if older is not None and outer is not None:
        raise ModelError("config has both rope_parameters and rope_scaling; remove one of them")
    outer = outer or older
    theta = one_of(config, outer, ("rope_theta",), "rope_theta", 1e6)
    local_theta = one_of(config, local, ("rope_local_base_freq",), "rope_theta", 1e4)
    return {
        GLOBAL: scaled(config, outer, Base(theta, head_dim, positions)),
        LOCAL: scaled(config, local, Base(local_theta, head_dim, positions)),
    }
