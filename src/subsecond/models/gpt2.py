"""GPT-2: learned positions, layer norms, biases everywhere; matrices stored transposed (Conv1D)."""

from __future__ import annotations

from subsecond.errors import ModelError
from subsecond.models.common import activation
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Decoder, Heads, Shapes
from subsecond.models.recipe import RowBlocks

# Causal masks that old checkpoints carry as buffers.
IGNORABLE = (".attn.bias", ".attn.masked_bias")


def build(config: ConfigReader, shapes: Shapes) -> Built:
    hidden = _size(config, "n_embd", "hidden_size")
    heads = _size(config, "n_head", "num_attention_heads", high=1 << 12)
    if hidden % heads:
        raise ModelError(f"n_embd {hidden} is not a multiple of n_head {heads}")
    config.only("num_key_value_heads", heads)
    config.only("head_dim", hidden // heads)
    eps = config.number("layer_norm_epsilon", 1e-5)
    inner = config.integer("n_inner", 4 * hidden)
    layers = _size(config, "n_layer", "num_hidden_layers", high=1 << 12)
    kind = activation(config, "activation_function", "gelu_new")
    scaled = config.flag("scale_attn_weights", True)
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    tied = config.flag("tie_word_embeddings", True)
    config.ignore(
        "reorder_and_upcast_attn"
    )  # another order of the same product; logits differ by rounding only
    vocab = config.integer("vocab_size")
    positions = _size(config, "n_positions", "max_position_embeddings")
    d = Decoder("gpt2", vocab, positions, shapes, prefix="transformer.", witness="wte.weight")
    b = d.builder
    table = d.matrix("transformer.wte.weight", vocab, hidden, role="embedding")
    learned = d.matrix("transformer.wpe.weight", positions, hidden, role="embedding")
    x = b.add(b.embed(table), b.embed(learned, "positions"))
    for index in range(layers):
        scale = (hidden // heads) ** -0.5 if scaled else 1.0
        sizes = Heads(heads, heads, hidden // heads, scale / (index + 1) if by_layer else scale)
        x = _layer(d, x, f"transformer.h.{index}", sizes, inner=inner, kind=kind, eps=eps)
    x = d.norm(b.gather(x), "transformer.ln_f", eps, kind="layer")
    return d.finish(d.head(x, "lm_head", table if tied else ""), IGNORABLE)


def _size(config: ConfigReader, key: str, alias: str, high: int = 1 << 30) -> int:
    """The size under GPT-2's own name or the one that other families use, as transformers reads
    it."""
    if not config.has(alias):
        return config.integer(key, high=high)
    value = config.integer(alias, high=high)
    if config.integer(key, value, high=high) != value:
        raise ModelError(f"config key {alias} {value} contradicts {key}; remove the wrong one")
    return value


def _layer(
    d: Decoder, x: int, name: str, sizes: Heads, *, inner: int, kind: str, eps: float
) -> int:
    b = d.builder
    hidden = b.width(x)
    y = d.norm(x, f"{name}.ln_1", eps, kind="layer")
    q, k, v = (
        d.linear(
            y,
            f"{name}.attn.c_attn",
            hidden,
            bias=True,
            transpose=True,
            part=part,
            rows=RowBlocks(index * hidden, hidden),
            source_rows=3 * hidden,
        )
        for index, part in enumerate("qkv")
    )
    y = d.attention(q, k, v, sizes)
    x = b.add(x, d.linear(y, f"{name}.attn.c_proj", hidden, bias=True, transpose=True))
    y = d.norm(x, f"{name}.ln_2", eps, kind="layer")
    y = b.activation(d.linear(y, f"{name}.mlp.c_fc", inner, bias=True, transpose=True), kind)
    return b.add(x, d.linear(y, f"{name}.mlp.c_proj", hidden, bias=True, transpose=True))
