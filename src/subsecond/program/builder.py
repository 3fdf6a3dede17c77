"""Builder: writes a program of plain ops, checking shapes at each call.

Owns: value numbers, tensor declarations and cache layers while a program grows. Knows nothing of
model families or fusions: it emits exactly the op asked for, in its plain form.
"""

from __future__ import annotations

from collections.abc import Sequence

from subsecond.errors import ModelError
from subsecond.program.ops import OPS, AttributeValue
from subsecond.program.program import CacheGroup, CacheLayer, Op, Program, Role, TensorSpec, Value


class Builder:
    """Makes one Program. A value is the int that a method returns; a weight is a logical name.

    "" is an absent weight.
    """

    def __init__(self, family: str, vocab_size: int, max_positions: int) -> None:
        self.family = family
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self._tensors: dict[str, TensorSpec] = {}
        self._groups: list[tuple[str, int, list[CacheLayer]]] = []
        self._values: list[Value] = []
        self._ops: list[Op] = []

    def matrix(self, name: str, n: int, k: int, role: Role = "linear") -> str:
        """Declares a matrix [n, k], again as often as you like, and returns its name."""
        return self._declare(TensorSpec(name, "matrix", n, k, role))

    def vector(self, name: str, n: int) -> str:
        """Declares an f32 vector [n] and returns its name."""
        return self._declare(TensorSpec(name, "vector", n, 0, "vector"))

    def group(self, window: int = 0) -> int:
        """The index of the cache group for attention over `window` positions (0: all)."""
        for index, (_, known, _) in enumerate(self._groups):
            if known == window:
                return index
        self._groups.append(("window" if window else "full", window, []))
        return len(self._groups) - 1

    def cache_layer(self, window: int, kv_heads: int, head_dim: int) -> tuple[int, int]:
        """Adds a layer to the cache group of `window`: (group, layer)."""
        group = self.group(window)
        layers = self._groups[group][2]
        layers.append(CacheLayer(kv_heads, head_dim))
        return group, len(layers) - 1

    def width(self, value: int) -> int:
        return self._values[value].width

    def embed(self, table: str, ids: str = "tokens", scale: float = 1.0) -> int:
        return self.emit("embed", (), (table,), ids=ids, scale=scale)

    def norm(
        self, x: int, kind: str, eps: float, *, weight: str = "", bias: str = "", groups: int = 1
    ) -> int:
        return self.emit("norm", (x,), (weight, bias), kind=kind, eps=eps, groups=groups)

    def linear(self, x: int, weight: str, bias: str = "") -> int:
        return self.emit(
            "linear",
            (x,),
            (weight, bias, "", ""),
            norm="none",
            eps=0.0,
            gate="none",
            residual=False,
        )

    def rope(
        self,
        x: int,
        inv_freq: str,
        *,
        heads: int,
        head_dim: int,
        rotary: int,
        interleaved: bool = False,
        factor: float = 1.0,
    ) -> int:
        return self.emit(
            "rope",
            (x,),
            (inv_freq,),
            heads=heads,
            head_dim=head_dim,
            rotary=rotary,
            interleaved=interleaved,
            factor=factor,
        )

    def attention(
        self,
        qkv: int,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> int:
        """Plain attention over the next cache layer of the group that has this window."""
        group, layer = self.cache_layer(window, kv_heads, head_dim)
        return self.emit(
            "attention",
            (qkv,),
            ("", "", ""),
            group=group,
            layer=layer,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=scale,
            window=window,
            softcap=softcap,
            rotary=0,
            interleaved=False,
            factor=1.0,
            eps=0.0,
        )

    def activation(self, x: int, kind: str) -> int:
        return self.emit("activation", (x,), (), kind=kind)

    def gated(self, gate: int, up: int, kind: str) -> int:
        return self.emit("gated", (gate, up), (), kind=kind)

    def add(self, a: int, b: int) -> int:
        return self.emit("add", (a, b), ())

    def scale(self, x: int, factor: float) -> int:
        return self.emit("scale", (x,), (), factor=factor)

    def softcap(self, x: int, cap: float) -> int:
        return self.emit("softcap", (x,), (), cap=cap)

    def slice(self, x: int, start: int, size: int) -> int:
        return self.emit("slice", (x,), (), start=start, size=size)

    def concat(self, *values: int) -> int:
        return self.emit("concat", values, ())

    def gather(self, x: int) -> int:
        return self.emit("gather", (x,), ())

    def pool(self, x: int, kind: str) -> int:
        return self.emit("pool", (x,), (), kind=kind)

    def emit(
        self,
        op: str,
        inputs: Sequence[int],
        weights: Sequence[str],
        /,
        **attributes: AttributeValue,
    ) -> int:
        """Adds one op and returns its value. Raises ModelError where the parts do not fit."""
        for name in weights:
            if name and name not in self._tensors:
                raise ModelError(f"{op}: tensor {name!r} is not declared")
        shapes = [self._tensors[name].shape if name else None for name in weights]
        given = [(self._values[i].width, self._values[i].rows) for i in inputs]
        width, rows = OPS[op].output(given, shapes, attributes)
        output = len(self._values)
        self._values.append(Value(width, rows))  # type: ignore[arg-type]
        self._ops.append(Op(op, tuple(inputs), output, tuple(weights), attributes))
        return output

    def build(self, output: int) -> Program:
        """The finished program, whose logits are the value `output` [R, vocab_size]."""
        groups = tuple(
            CacheGroup(f"{name}{window or ''}", name, window, tuple(layers))  # type: ignore[arg-type]
            for name, window, layers in self._groups
        )
        return Program(
            family=self.family,
            vocab_size=self.vocab_size,
            max_positions=self.max_positions,
            tensors=tuple(self._tensors.values()),
            groups=groups,
            values=tuple(self._values),
            ops=tuple(self._ops),
            output=output,
        )

    def _declare(self, spec: TensorSpec) -> str:
        known = self._tensors.setdefault(spec.name, spec)
        if known.shape != spec.shape:
            raise ModelError(
                f"tensor {spec.name!r} is declared {list(known.shape)} and {list(spec.shape)}"
            )
        return spec.name
