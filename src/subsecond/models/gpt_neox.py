"""GPT-NeoX (Pythia): partial rotary, parallel or serial residual, layer norms.

q, k and v are interleaved head by head in one matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from subsecond.errors import ModelError
from subsecond.models.common import activation
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import IGNORABLE, Built, Decoder, Heads, Shapes
from subsecond.models.recipe import RowBlocks
from subsecond.models.rope import read_rope


@dataclass(frozen=True, slots=True)
class _Layer:
    heads: Heads
    intermediate: int
    activation: str
    eps: float
    bias: bool
    parallel: bool


def build(config: ConfigReader, shapes: Shapes) -> Built:
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads", high=1 << 12)
    if hidden % heads:
        raise ModelError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    head_dim = hidden // heads
    config.only("num_key_value_heads", heads)
    config.only("head_dim", head_dim)
    positions = config.integer("max_position_embeddings", 2048)
    rope = read_rope(
        config,
        head_dim,
        positions,
        theta_keys=("rotary_emb_base", "rope_theta"),
        partial_keys=("rotary_pct", "partial_rotary_factor"),
        partial=0.25,
    )
    layer = _Layer(
        Heads(
            heads,
            heads,
            head_dim,
            scale=head_dim**-0.5,
            rope="rope.inv_freq",
            rotary=rope.rotary,
            rope_factor=rope.factor,
        ),
        intermediate=config.integer("intermediate_size"),
        activation=activation(config, "hidden_act", "gelu"),
        eps=config.number("layer_norm_eps", 1e-5),
        bias=config.flag("attention_bias", True),
        parallel=config.flag("use_parallel_residual", True),
    )
    tied = config.flag("tie_word_embeddings", False)
    vocab = config.integer("vocab_size")
    d = Decoder(
        "gpt_neox", vocab, rope.positions, shapes, prefix="gpt_neox.", witness="embed_in.weight"
    )
    b = d.builder
    d.rope_tensor("rope.inv_freq", rope)
    table = d.matrix("gpt_neox.embed_in.weight", vocab, hidden, role="embedding")
    x = b.embed(table)
    for index in range(config.integer("num_hidden_layers", high=1 << 12)):
        x = _layer(d, x, f"gpt_neox.layers.{index}", layer)
    x = d.norm(b.gather(x), "gpt_neox.final_layer_norm", layer.eps, kind="layer")
    ignorable = (*IGNORABLE, ".attention.bias", ".attention.masked_bias")
    return d.finish(d.head(x, "embed_out", table if tied else ""), ignorable)


def _layer(d: Decoder, x: int, name: str, o: _Layer) -> int:
    b = d.builder
    hidden, heads, size = b.width(x), o.heads.heads, o.heads.head_dim
    y = d.norm(x, f"{name}.input_layernorm", o.eps, kind="layer")
    q, k, v = (
        d.linear(
            y,
            f"{name}.attention.query_key_value",
            hidden,
            bias=o.bias,
            part=part,
            rows=RowBlocks(index * size, size, stride=3 * size, count=heads),
            source_rows=3 * hidden,
        )
        for index, part in enumerate("qkv")
    )
    y = d.attention(q, k, v, o.heads)
    after = b.add(x, d.linear(y, f"{name}.attention.dense", hidden, bias=o.bias))
    y = d.norm(x if o.parallel else after, f"{name}.post_attention_layernorm", o.eps, kind="layer")
    y = d.linear(y, f"{name}.mlp.dense_h_to_4h", o.intermediate, bias=True)
    y = b.activation(y, o.activation)
    return b.add(after, d.linear(y, f"{name}.mlp.dense_4h_to_h", hidden, bias=True))
