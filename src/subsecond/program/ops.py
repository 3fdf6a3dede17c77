"""The op table: one record an op, which every executor is checked against.

Owns: names, inputs, weight places, attributes, shape rules and tolerances of the ops, in the order
of docs/design.md, and the way to their NumPy references and input generators. Knows nothing of
programs, models or executors. Importing it does not import NumPy: references and cases are bound
on first use.

A shape is `(width, rows)` for a value, `(n, k)` for a matrix and `(n,)` for a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from subsecond.errors import ModelError

if TYPE_CHECKING:
    from subsecond.program.ops_cases import Case
    from subsecond.program.ops_reference import Reference

AttributeValue = bool | int | float | str
Attributes = Mapping[str, AttributeValue]
ValueShape = tuple[int, str]
WeightShape = tuple[int, ...] | None
ShapeRule = Callable[[Sequence[ValueShape], Sequence[WeightShape], Attributes], ValueShape]

ROWS = ("T", "R", "S")
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "tanh")
WEIGHT_FORMATS = ("f32", "bf16", "int8", "int4", "int8_split")
KV_FORMATS = ("f32", "bf16", "int8")

# Limits that no real model reaches; they keep every product of sizes inside 63 bits.
MAX_WIDTH = 1 << 22
MAX_ROWS_OF_MATRIX = 1 << 24
MAX_HEADS = 1 << 12


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute: its Python type, and the allowed words or the inclusive bounds."""

    name: str
    kind: type[bool] | type[int] | type[float] | type[str]
    words: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def check(self, op: str, value: object) -> None:
        """Raises ModelError unless `value` is one that this attribute may have."""
        if type(value) is not self.kind:
            raise ModelError(f"{op}: {self.name} must be {self.kind.__name__}, not {value!r}")
        if self.words and value not in self.words:
            raise ModelError(
                f"{op}: {self.name} must be one of {', '.join(self.words)}, not {value!r}"
            )
        if isinstance(value, (int, float)) and not self.low <= value <= self.high:
            raise ModelError(
                f"{op}: {self.name} must lie in {self.low}..{self.high}, not {value!r}"
            )


@dataclass(frozen=True, slots=True)
class OpRecord:
    """What an op is: its places, its shape rule, and how far an executor may be from the reference.

    `tolerance` maps a format (of the op's matrices; of the KV cache for attention) to the largest
    allowed `max |difference| / max(1, std(reference))`, both sides using the same quantized
    activations. A value at a tie may be rounded to the other side of a grid:
    tests allow for a few such rows.
    """

    name: str
    min_inputs: int
    max_inputs: int
    weights: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    shape: ShapeRule
    tolerance: Mapping[str, float]

    @property
    def attribute_names(self) -> tuple[str, ...]:
        return tuple(sorted(a.name for a in self.attributes))

    def check_attributes(self, attributes: Mapping[str, object]) -> None:
        """Raises ModelError unless exactly this op's attributes are there, each of its type."""
        names = {a.name for a in self.attributes}
        if missing := sorted(names - set(attributes)):
            raise ModelError(f"{self.name}: attribute {missing[0]!r} is missing")
        if unknown := sorted(set(attributes) - names):
            raise ModelError(f"{self.name}: unknown attribute {unknown[0]!r}")
        for attribute in self.attributes:
            attribute.check(self.name, attributes[attribute.name])

    def output(
        self, inputs: Sequence[ValueShape], weights: Sequence[WeightShape], attributes: Attributes
    ) -> ValueShape:
        """The shape of the result. Raises ModelError where the parts do not fit together."""
        self.check_attributes(attributes)
        if not self.min_inputs <= len(inputs) <= self.max_inputs:
            raise ModelError(
                f"{self.name}: {len(inputs)} inputs, expected {self.min_inputs}..{self.max_inputs}"
            )
        if self.name != "linear" and len(weights) != len(self.weights):
            raise ModelError(
                f"{self.name}: {len(weights)} weight places, expected {len(self.weights)}"
            )
        width, rows = self.shape(inputs, weights, attributes)
        if not 1 <= width <= MAX_WIDTH:
            raise ModelError(f"{self.name}: result of width {width} is outside 1..{MAX_WIDTH}")
        return width, rows

    @property
    def reference(self) -> Reference:
        """The NumPy reference (imports NumPy)."""
        from subsecond.program.ops_reference import REFERENCES

        return REFERENCES[self.name]

    def cases(self, rng: Any) -> Iterator[Case]:
        """Small random parameterizations of this op for parity tests (imports NumPy)."""
        from subsecond.program.ops_cases import CASES

        return CASES[self.name](rng)


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ModelError(message)


def _vector(op: str, place: str, shape: WeightShape, n: int, optional: bool = True) -> None:
    if shape is None:
        _need(optional, f"{op}: {place} is missing")
        return
    _need(shape == (n,), f"{op}: {place} has shape {list(shape)}, expected [{n}]")


def _matrix(op: str, place: str, shape: WeightShape) -> tuple[int, int]:
    if shape is None or len(shape) != 2:
        raise ModelError(
            f"{op}: {place} must be a matrix, not {'absent' if shape is None else list(shape)}"
        )
    return shape[0], shape[1]


def _same_rows(op: str, inputs: Sequence[ValueShape]) -> str:
    _need(len({rows for _, rows in inputs}) == 1, f"{op}: the inputs have different kinds of rows")
    return inputs[0][1]


def _embed(
    inputs: Sequence[ValueShape], weights: Sequence[WeightShape], a: Attributes
) -> ValueShape:
    return _matrix("embed", "table", weights[0])[1], "T"


def _norm(
    inputs: Sequence[ValueShape], weights: Sequence[WeightShape], a: Attributes
) -> ValueShape:
    width, rows = inputs[0]
    groups = int(a["groups"])
    _need(width % groups == 0, f"norm: width {width} is not a multiple of groups {groups}")
    _vector("norm", "weight", weights[0], width // groups)
    _vector("norm", "bias", weights[1], width // groups)
    _need(a["kind"] == "layer" or weights[1] is None, "norm: kind rms takes no bias")
    return width, rows


def linear_count(weights: Sequence[object]) -> int:
    """The n of a linear op's weight places: n matrices, n biases, two norm vectors."""
    count = (len(weights) - 2) // 2
    if count < 1 or len(weights) != 2 * count + 2:
        raise ModelError(f"linear: {len(weights)} weight places, expected 2n + 2")
    return count


def _linear(
    inputs: Sequence[ValueShape], weights: Sequence[WeightShape], a: Attributes
) -> ValueShape:
    width, rows = inputs[0]
    count = linear_count(weights)
    sizes = []
    for i in range(count):
        n, k = _matrix("linear", f"weight {i}", weights[i])
        _need(k == width, f"linear: weight {i} takes {k} inputs, but the value has width {width}")
        _vector("linear", f"bias {i}", weights[count + i], n)
        sizes.append(n)
    norm = a["norm"]
    _vector("linear", "norm_weight", weights[-2], width)
    _vector("linear", "norm_bias", weights[-1], width)
    _need(norm != "none" or weights[-2] is None, "linear: norm_weight needs norm rms or layer")
    _need(norm == "layer" or weights[-1] is None, "linear: norm_bias needs norm layer")
    if a["gate"] != "none":
        _need(
            sizes[0:1] * 2 == sizes, f"linear: a gate needs two matrices of equal size, not {sizes}"
        )
        out = sizes[0]
    else:
        out = sum(sizes)
    _need(
        len(inputs) == (2 if a["residual"] else 1),
        "linear: the residual input and its attribute disagree",
    )
    if a["residual"]:
        _need(
            inputs[1] == (out, rows), f"linear: residual is {inputs[1]}, the result {(out, rows)}"
        )
    return out, rows


def _rope(
    inputs: Sequence[ValueShape], weights: Sequence[WeightShape], a: Attributes
) -> ValueShape:
    width, rows = inputs[0]
    heads, head_dim, rotary = int(a["heads"]), int(a["head_dim"]), int(a["rotary"])
    _need(rows == "T", "rope: needs rows of tokens")
    _need(
        width == heads * head_dim, f"rope: width {width} is not heads {heads} x head_dim {head_dim}"
    )
    _need(
        2 <= rotary <= head_dim and rotary % 2 == 0,
        f"rope: rotary {rotary} must be even, within {head_dim}",
    )
    _vector("rope", "inv_freq", weights[0], rotary // 2, optional=False)
    return width, rows


def _attention(
    inputs: Sequence[ValueShape], weights: Sequence[WeightShape], a: Attributes
) -> ValueShape:
    width, rows = inputs[0]
    heads, kv_heads, head_dim = int(a["heads"]), int(a["kv_heads"]), int(a["head_dim"])
    rotary = int(a["rotary"])
    _need(rows == "T", "attention: needs rows of tokens")
    _need(
        heads % kv_heads == 0, f"attention: heads {heads} is not a multiple of kv_heads {kv_heads}"
    )
    expected = (heads + 2 * kv_heads) * head_dim
    _need(width == expected, f"attention: q|k|v has width {width}, expected {expected}")
    _vector("attention", "q_norm", weights[0], head_dim)
    _vector("attention", "k_norm", weights[1], head_dim)
    _need(
        (weights[0] is None) == (weights[1] is None), "attention: q_norm and k_norm come together"
    )
    if rotary == 0:
        _need(weights[2] is None, "attention: inv_freq needs rotary > 0")
    else:
        _need(
            rotary % 2 == 0 and rotary <= head_dim,
            f"attention: rotary {rotary} must be even, within {head_dim}",
        )
        _vector("attention", "inv_freq", weights[2], rotary // 2, optional=False)
    return heads * head_dim, rows


def _same(
    inputs: Sequence[ValueShape], weights: Sequence[WeightShape], a: Attributes
) -> ValueShape:
    _need(len(set(inputs)) == 1, f"elementwise: the inputs differ in shape: {list(inputs)}")
    return inputs[0]


def _slice(
    inputs: Sequence[ValueShape], weights: Sequence[WeightShape], a: Attributes
) -> ValueShape:
    width, rows = inputs[0]
    start, size = int(a["start"]), int(a["size"])
    _need(start + size <= width, f"slice: {start}..{start + size} is outside width {width}")
    return size, rows


def _concat(
    inputs: Sequence[ValueShape], weights: Sequence[WeightShape], a: Attributes
) -> ValueShape:
    return sum(width for width, _ in inputs), _same_rows("concat", inputs)


def _gather(
    inputs: Sequence[ValueShape], weights: Sequence[WeightShape], a: Attributes
) -> ValueShape:
    _need(inputs[0][1] == "T", "gather: needs rows of tokens")
    return inputs[0][0], "R"


def _pool(
    inputs: Sequence[ValueShape], weights: Sequence[WeightShape], a: Attributes
) -> ValueShape:
    _need(inputs[0][1] == "T", "pool: needs rows of tokens")
    return inputs[0][0], "S"


def _int(name: str, low: int, high: int) -> Attribute:
    return Attribute(name, int, low=low, high=high)


def _float(name: str, low: float = -1e30, high: float = 1e30) -> Attribute:
    return Attribute(name, float, low=low, high=high)


_EPS = _float("eps", 0.0, 1.0)
_KIND = Attribute("kind", str, ACTIVATIONS)
_HEADS = (_int("heads", 1, MAX_HEADS), _int("head_dim", 1, MAX_WIDTH))
_ROPE = (_int("rotary", 0, MAX_WIDTH), Attribute("interleaved", bool), _float("factor", 0.0))
_EXACT = {"f32": 0.0}
_CLOSE = {"f32": 2e-5}
_PRODUCT = dict.fromkeys(WEIGHT_FORMATS, 2e-5)  # sums in another order
# Kernels may round scaled queries and the weights of the average to the cache's format as well.
_ATTENTION = {"f32": 2e-5, "bf16": 1e-2, "int8": 3e-2}

_TABLE = (
    OpRecord(
        "embed",
        0,
        0,
        ("table",),
        (Attribute("ids", str, ("tokens", "positions")), _float("scale")),
        _embed,
        dict.fromkeys(WEIGHT_FORMATS, 1e-6),
    ),
    OpRecord(
        "norm",
        1,
        1,
        ("weight?", "bias?"),
        (Attribute("kind", str, ("rms", "layer")), _EPS, _int("groups", 1, MAX_HEADS)),
        _norm,
        _CLOSE,
    ),
    OpRecord(
        "linear",
        1,
        2,
        ("weight+", "bias*", "norm_weight?", "norm_bias?"),
        (
            Attribute("norm", str, ("none", "rms", "layer")),
            _EPS,
            Attribute("gate", str, ("none", *ACTIVATIONS)),
            Attribute("residual", bool),
        ),
        _linear,
        _PRODUCT,
    ),
    OpRecord("rope", 1, 1, ("inv_freq",), (*_HEADS, *_ROPE), _rope, _CLOSE),
    OpRecord(
        "attention",
        1,
        1,
        ("q_norm?", "k_norm?", "inv_freq?"),
        (
            _int("group", 0, 255),
            _int("layer", 0, 4095),
            *_HEADS,
            _int("kv_heads", 1, MAX_HEADS),
            _float("scale", 0.0),
            _int("window", 0, 1 << 30),
            _float("softcap", 0.0),
            *_ROPE,
            _EPS,
        ),
        _attention,
        _ATTENTION,
    ),
    OpRecord("activation", 1, 1, (), (_KIND,), _same, _CLOSE),
    OpRecord("gated", 2, 2, (), (_KIND,), _same, _CLOSE),
    OpRecord("add", 2, 2, (), (), _same, _EXACT),
    OpRecord("scale", 1, 1, (), (_float("factor"),), _same, _EXACT),
    OpRecord("softcap", 1, 1, (), (_float("cap", 1e-6),), _same, _CLOSE),
    OpRecord(
        "slice", 1, 1, (), (_int("start", 0, MAX_WIDTH), _int("size", 1, MAX_WIDTH)), _slice, _EXACT
    ),
    OpRecord("concat", 2, 64, (), (), _concat, _EXACT),
    OpRecord("gather", 1, 1, (), (), _gather, _EXACT),
    OpRecord("pool", 1, 1, (), (Attribute("kind", str, ("cls", "mean", "last")),), _pool, _CLOSE),
)

OPS: Mapping[str, OpRecord] = {record.name: record for record in _TABLE}


def op_table() -> dict[str, list[str]]:
    """Name -> sorted attribute names: what `subsecond._native.op_table()` must equal."""
    return {name: list(record.attribute_names) for name, record in OPS.items()}
