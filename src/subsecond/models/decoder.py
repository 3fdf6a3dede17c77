"""Parts of decoder models, and the gated RMS-norm decoder that most families are options of.

Owns: turning parts (embedding, norm, projections, attention, head) into plain ops, and the account
of which checkpoint tensors feed which logical tensor. Knows nothing of any family's configuration
keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from subsecond.errors import ModelError
from subsecond.models.recipe import Recipe, RowBlocks
from subsecond.models.rope import Rope
from subsecond.models.size import keys_of, plain
from subsecond.program.builder import Builder
from subsecond.program.program import Program, Role

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Built:
    """A model's plain program, the recipe of each of its tensors, and warnings for the user.

    `tied`: a checkpoint tensor that is not used and the one that the configuration ties it to. The
    two must hold the same values, which only a reader of the values can tell.
    """

    program: Program
    recipes: dict[str, Recipe]
    warnings: list[str]
    tied: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention of one layer. Window 0: all positions; `rope`: name of inv_freq, "" for none."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    rope: str = ""
    rotary: int = 0
    rope_factor: float = 1.0
    qk_norm_eps: float | None = None


class Decoder:
    """One model under construction: a Builder, and which checkpoint tensors were claimed so far.

    `prefix` begins the canonical names ("model."); checkpoints of the bare backbone leave it out
    and are accepted.
    """

    def __init__(
        self,
        family: str,
        vocab_size: int,
        max_positions: int,
        shapes: Shapes,
        *,
        prefix: str,
        witness: str,
    ) -> None:
        self.builder = Builder(family, vocab_size, max_positions)
        self.recipes: dict[str, Recipe] = {}
        self.warnings: list[str] = []
        self._shapes = shapes
        self._claimed: set[str] = set()
        self._widths: dict[int, int] = {}  # of values whose op doesn't keep a Size
        self._tied: tuple[str, str] | None = None
        self._bare = prefix if prefix + witness not in shapes and witness in shapes else ""

    def matrix(
        self,
        name: str,
        n: int,
        k: int,
        *,
        role: Role = "linear",
        part: str = "",
        rows: RowBlocks | None = None,
        source_rows: int = 0,
        transpose: bool = False,
    ) -> str:
        """Claims checkpoint matrix `name` (or its `rows` as `name[part]`) as a logical [n, k]."""
        whole = source_rows or n
        shape = (k, whole) if transpose else (whole, k)
        source = self._claim(name, shape)
        logical = self.builder.matrix(f"{name}[{part}]" if part else name, n, k, role)
        self.recipes[logical] = Recipe(source, shape, transpose, rows)
        return logical

    def vector(
        self,
        name: str,
        n: int,
        *,
        part: str = "",
        rows: RowBlocks | None = None,
        source_rows: int = 0,
        add: float = 0.0,
    ) -> str:
        """Claims checkpoint vector `name` (or its `rows` as `name[part]`) as a logical one [n]."""
        shape = (source_rows or n,)
        source = self._claim(name, shape)
        logical = self.builder.vector(f"{name}[{part}]" if part else name, n)
        self.recipes[logical] = Recipe(source, shape, rows=rows, add=add)
        return logical

    def computed(self, name: str, values: Sequence[float]) -> str:
        """Declares a vector whose values come from the configuration."""
        self.recipes[name] = Recipe(None, (len(values),), values=tuple(values))
        return self.builder.vector(name, len(values))

    def linear(
        self,
        x: int,
        name: str,
        n: int,
        *,
        bias: bool = False,
        part: str = "",
        rows: RowBlocks | None = None,
        source_rows: int = 0,
        transpose: bool = False,
    ) -> int:
        """x [T, k] through `name`.weight (and `name`.bias): [T, n]."""
        k = self._widths.get(x) or self.builder.width(x)
        weight = self.matrix(
            f"{name}.weight",
            n,
            k,
            part=part,
            rows=rows,
            source_rows=source_rows,
            transpose=transpose,
        )
        vector = (
            self.vector(f"{name}.bias", n, part=part, rows=rows, source_rows=source_rows)
            if bias
            else ""
        )
        return self.builder.linear(x, weight, vector)

    def norm(
        self, x: int, name: str, eps: float, *, kind: str = "rms", add: float = 0.0, groups: int = 1
    ) -> int:
        """x normalized with `name`.weight (+ add), and `name`.bias where kind is layer."""
        n = self.builder.width(x) // groups
        weight = self.vector(f"{name}.weight", n, add=add)
        bias = self.vector(f"{name}.bias", n) if kind == "layer" else ""
        return self.builder.norm(x, kind, eps, weight=weight, bias=bias, groups=int(groups))

    def attention(self, q: int, k: int, v: int, h: Heads) -> int:
        """Rope on q and k, then attention over the next cache layer: [T, heads * head_dim]."""
        b = self.builder
        heads, kv_heads, head_dim = int(h.heads), int(h.kv_heads), int(h.head_dim)
        if h.rope:
            turn = {"head_dim": head_dim, "rotary": int(h.rotary), "factor": h.rope_factor}
            q = b.rope(q, h.rope, heads=heads, **turn)  # type: ignore[arg-type]
            k = b.rope(k, h.rope, heads=kv_heads, **turn)  # type: ignore[arg-type]
        result = b.attention(
            b.concat(q, k, v),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=h.scale,
            window=int(h.window) if h.window < b.max_positions else 0,  # else it hides nothing
            softcap=h.softcap,
        )
        self._widths[result] = h.heads * h.head_dim
        return result

    def rope_tensor(self, name: str, rope: Rope) -> str:
        """Declares the frequencies of a rope, and passes on what it warns of."""
        self.warnings += rope.warnings
        return self.computed(name, rope.inv_freq)

    def head(self, x: int, name: str, tied_to: str, softcap: float = 0.0) -> int:
        """Logits of gathered rows x, by the matrix `tied_to`, or "" for one of its own."""
        b = self.builder
        if tied_to:
            weight = tied_to
            if self.present(f"{name}.weight"):
                copy = self._claim(f"{name}.weight", (b.vocab_size, b.width(x)))
                self._tied = (copy, self._source(tied_to))
        else:
            weight = self.matrix(f"{name}.weight", b.vocab_size, b.width(x), role="output")
        logits = b.linear(x, weight)
        return b.softcap(logits, softcap) if softcap else logits

    def present(self, name: str) -> bool:
        """Whether the checkpoint has this tensor (by canonical name)."""
        return self._source(name) in self._shapes

    def finish(self, output: int, ignorable: Sequence[str] = ()) -> Built:
        """The built model. Raises ModelError for tensors nobody claimed, `ignorable` ends aside."""
        left = sorted(set(self._shapes) - self._claimed)
        left = [name for name in left if not any(name.endswith(end) for end in ignorable)]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ModelError(
                f"the checkpoint has tensor {left[0]!r}{more}, which family "
                f"{self.builder.family} with this config does not use: its layer count or "
                "its architecture is wrong"
            )
        sized = msgspec.to_builtins(self.builder.build(output), enc_hook=plain)
        program = msgspec.convert(sized, Program)
        return Built(program, self.recipes, self.warnings, self._tied)

    def _source(self, name: str) -> str:
        return name.removeprefix(self._bare) if self._bare else name

    def _claim(self, name: str, shape: tuple[int, ...]) -> str:
        source = self._source(name)
        if source not in self._shapes:
            raise ModelError(
                f"the checkpoint lacks tensor {source!r} of shape {list(shape)}, which the config "
                "implies"
            )
        if tuple(self._shapes[source]) != shape:
            found = tuple(self._shapes[source])
            differ = zip(found, shape, strict=True) if len(found) == len(shape) else ()
            keys = [keys_of(wanted) for size, wanted in differ if size != wanted]
            named = ", ".join(dict.fromkeys(filter(None, keys)))
            raise ModelError(
                f"tensor {source!r} has shape {list(found)}, but the config implies {list(shape)}"
                + (f" ({named})" if named else "")
            )
        self._claimed.add(source)
        return source


@dataclass(frozen=True, slots=True)
class GatedOptions:
    """A decoder of RMS norms, rotary attention and a gated MLP, with Llama's tensor names.

    `layers` holds each layer's attention (its `rope` being the name of a tensor in `ropes`).
    """

    hidden: int
    intermediate: int
    layers: tuple[Heads, ...]
    ropes: Mapping[str, Rope]
    eps: float
    activation: str
    tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    fused: bool = False  # q, k, v in one matrix qkv_proj; gate, up in one gate_up_proj
    norm_add: float = 0.0
    post_norms: bool = False  # Gemma: norms behind attention and behind the MLP as well
    embedding_scale: float = 1.0
    logit_softcap: float = 0.0


IGNORABLE = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


def gated_decoder(d: Decoder, o: GatedOptions) -> Built:
    """The whole model of these options."""
    b = d.builder
    for name, rope in o.ropes.items():
        d.rope_tensor(name, rope)
    table = d.matrix("model.embed_tokens.weight", b.vocab_size, o.hidden, role="embedding")
    x = b.embed(table, scale=o.embedding_scale)
    for index, heads in enumerate(o.layers):
        x = _gated_layer(d, o, x, f"model.layers.{index}", heads)
    x = d.norm(b.gather(x), "model.norm", o.eps, add=o.norm_add)
    return d.finish(d.head(x, "lm_head", table if o.tied else "", o.logit_softcap), IGNORABLE)


def _gated_layer(d: Decoder, o: GatedOptions, x: int, name: str, heads: Heads) -> int:
    b = d.builder
    y = d.norm(x, f"{name}.input_layernorm", o.eps, add=o.norm_add)
    q, k, v = _projections(d, o, y, f"{name}.self_attn", heads)
    if heads.qk_norm_eps is not None:
        eps = heads.qk_norm_eps
        q = d.norm(q, f"{name}.self_attn.q_norm", eps, add=o.norm_add, groups=heads.heads)
        k = d.norm(k, f"{name}.self_attn.k_norm", eps, add=o.norm_add, groups=heads.kv_heads)
    y = d.attention(q, k, v, heads)
    y = d.linear(y, f"{name}.self_attn.o_proj", o.hidden, bias=o.out_bias)
    before_mlp = "post_attention_layernorm"
    if o.post_norms:
        y = d.norm(y, f"{name}.post_attention_layernorm", o.eps, add=o.norm_add)
        before_mlp = "pre_feedforward_layernorm"
    x = b.add(x, y)
    y = d.norm(x, f"{name}.{before_mlp}", o.eps, add=o.norm_add)
    y = _gated_mlp(d, o, y, f"{name}.mlp")
    if o.post_norms:
        y = d.norm(y, f"{name}.post_feedforward_layernorm", o.eps, add=o.norm_add)
    return b.add(x, y)


def _projections(d: Decoder, o: GatedOptions, x: int, name: str, h: Heads) -> tuple[int, int, int]:
    sizes = [
        ("q", h.heads * h.head_dim),
        ("k", h.kv_heads * h.head_dim),
        ("v", h.kv_heads * h.head_dim),
    ]
    if not o.fused:
        q, k, v = (d.linear(x, f"{name}.{part}_proj", n, bias=o.qkv_bias) for part, n in sizes)
        return q, k, v
    total = sum(n for _, n in sizes)
    result, start = [], 0
    for part, n in sizes:
        rows = RowBlocks(start, n)
        result.append(
            d.linear(
                x, f"{name}.qkv_proj", n, bias=o.qkv_bias, part=part, rows=rows, source_rows=total
            )
        )
        start += n
    return result[0], result[1], result[2]


def _gated_mlp(d: Decoder, o: GatedOptions, x: int, name: str) -> int:
    n = o.intermediate
    if o.fused:
        gate = d.linear(
            x, f"{name}.gate_up_proj", n, part="gate", rows=RowBlocks(0, n), source_rows=2 * n
        )
        up = d.linear(
            x, f"{name}.gate_up_proj", n, part="up", rows=RowBlocks(n, n), source_rows=2 * n
        )
    else:
        gate = d.linear(x, f"{name}.gate_proj", n, bias=o.mlp_bias)
        up = d.linear(x, f"{name}.up_proj", n, bias=o.mlp_bias)
    return d.linear(
        d.builder.gated(gate, up, o.activation), f"{name}.down_proj", o.hidden, bias=o.mlp_bias
    )
