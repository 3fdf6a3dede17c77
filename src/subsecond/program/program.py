"""The Program: a model as a flat list of op calls over SSA values.

Owns: the data types, their validation, the JSON form and the text form. Knows nothing of
checkpoints, of how a program is made or of how it is executed. A Program that exists has been
checked: building one by hand, from JSON or by a rewrite goes through the same rules, so executors
may trust it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from subsecond.errors import ModelError
from subsecond.program.ops import (
    MAX_HEADS,
    MAX_ROWS_OF_MATRIX,
    MAX_WIDTH,
    OPS,
    AttributeValue,
    ValueShape,
    WeightShape,
)

VERSION = 1
MAX_OPS = 1 << 16
MAX_LAYERS = 1 << 12
MAX_POSITIONS = 1 << 26

Role = Literal["embedding", "output", "linear", "vector"]


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """f32 [rows, width]; `rows` is T (tokens), R (logit rows) or S (sequences)."""

    width: int
    rows: Literal["T", "R", "S"]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A weight by logical name: a matrix [n, k] in some weight format, or an f32 vector [n] (k is
    0).

    A matrix that is both embedding table and output matrix has the role "embedding".
    """

    name: str
    kind: Literal["matrix", "vector"]
    n: int
    k: int
    role: Role

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n, self.k) if self.kind == "matrix" else (self.n,)


class CacheLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One layer's keys and values: kv_heads heads of head_dim values each, a position."""

    kv_heads: int
    head_dim: int


class CacheGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Layers whose cache lives as long: all positions ("full"), or the last `window` ("window")."""

    name: str
    kind: Literal["full", "window"]
    window: int
    layers: tuple[CacheLayer, ...]


class Op(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call. `weights` has the op's fixed places; "" is an absent optional weight."""

    kind: str
    inputs: tuple[int, ...]
    output: int
    weights: tuple[str, ...]
    attributes: dict[str, bool | int | float | str]


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model. The one entry point, `decode`, takes token ids and gives `output`: logits [R,
    vocab_size].

    Raises ModelError when made from parts that contradict each other.
    """

    family: str
    vocab_size: int
    max_positions: int
    tensors: tuple[TensorSpec, ...]
    groups: tuple[CacheGroup, ...]
    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    output: int
    version: int = VERSION

    def __post_init__(self) -> None:
        _check(self)

    def tensor(self, name: str) -> TensorSpec:
        """The tensor of that logical name. Raises ModelError for an unknown name."""
        for spec in self.tensors:
            if spec.name == name:
                return spec
        raise ModelError(f"the program has no tensor {name!r}")

    def to_json(self) -> bytes:
        """Indented UTF-8 JSON; `from_json` gives an equal program back."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @staticmethod
    def from_json(data: bytes | str) -> Program:
        """Reads `to_json`'s form strictly. Raises ModelError for anything else."""
        try:
            return msgspec.json.decode(data, type=Program)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"not a valid program: {error}; convert the model again") from None

    def text(self) -> str:
        """The program for people: tensors, cache groups, then one line an op."""
        return "\n".join(_lines(self)) + "\n"


def _check(p: Program) -> None:
    if p.version != VERSION:
        raise ModelError(f"program version {p.version} is not {VERSION}; convert the model again")
    _bounds("vocab_size", p.vocab_size, 1, MAX_WIDTH)
    _bounds("max_positions", p.max_positions, 1, MAX_POSITIONS)
    _bounds("number of ops", len(p.ops), 1, MAX_OPS)
    shapes = _check_tensors(p)
    _check_groups(p)
    if len(p.values) != len(p.ops):
        raise ModelError(f"{len(p.values)} values for {len(p.ops)} ops: each op makes one value")
    made: dict[int, ValueShape] = {}
    used: set[str] = set()
    cached: set[tuple[int, int]] = set()
    for index, op in enumerate(p.ops):
        try:
            made[op.output] = _check_op(p, op, made, shapes)
        except ModelError as error:
            raise ModelError(f"op {index}: {error}") from None
        used.update(op.weights)
        if op.kind == "attention":
            place = (int(op.attributes["group"]), int(op.attributes["layer"]))
            if place in cached:
                raise ModelError(f"op {index}: cache layer {place} is written twice")
            cached.add(place)
    if cached != {(g, i) for g, group in enumerate(p.groups) for i in range(len(group.layers))}:
        raise ModelError("the cache groups have layers that no attention uses")
    if unused := sorted(set(shapes) - used):
        raise ModelError(f"tensor {unused[0]!r} is not used by any op")
    if made.get(p.output) != (p.vocab_size, "R"):
        raise ModelError(
            f"output must be a value of shape [R, {p.vocab_size}], not {made.get(p.output)}"
        )


def _bounds(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ModelError(f"{name} {value} is outside {low}..{high}")


def _check_tensors(p: Program) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in p.tensors:
        if not spec.name or spec.name in shapes:
            raise ModelError(f"tensor name {spec.name!r} is empty or used twice")
        if (spec.kind == "vector") != (spec.role == "vector"):
            raise ModelError(f"tensor {spec.name!r}: kind {spec.kind} with role {spec.role}")
        if spec.kind == "vector":
            _bounds(f"tensor {spec.name!r}: k", spec.k, 0, 0)
            _bounds(f"tensor {spec.name!r}: n", spec.n, 1, MAX_WIDTH)
        else:
            _bounds(f"tensor {spec.name!r}: n", spec.n, 1, MAX_ROWS_OF_MATRIX)
            _bounds(f"tensor {spec.name!r}: k", spec.k, 1, MAX_WIDTH)
        shapes[spec.name] = spec.shape
    return shapes


def _check_groups(p: Program) -> None:
    _bounds("number of cache groups", len(p.groups), 0, 256)
    for group in p.groups:
        _bounds(f"cache group {group.name!r}: layers", len(group.layers), 1, MAX_LAYERS)
        low, high = (0, 0) if group.kind == "full" else (1, MAX_POSITIONS)
        _bounds(f"cache group {group.name!r}: window", group.window, low, high)
        for layer in group.layers:
            _bounds(f"cache group {group.name!r}: kv_heads", layer.kv_heads, 1, MAX_HEADS)
            _bounds(f"cache group {group.name!r}: head_dim", layer.head_dim, 1, MAX_WIDTH)


def _check_op(
    p: Program, op: Op, made: Mapping[int, ValueShape], shapes: Mapping[str, tuple[int, ...]]
) -> ValueShape:
    record = OPS.get(op.kind)
    if record is None:
        raise ModelError(f"unknown op {op.kind!r}")
    if op.output in made or not 0 <= op.output < len(p.values):
        raise ModelError(f"{op.kind}: output value {op.output} is out of range or made twice")
    for number in op.inputs:
        if number not in made:
            raise ModelError(f"{op.kind}: input value {number} is not made by an earlier op")
    weights: list[WeightShape] = []
    for name in op.weights:
        if name and name not in shapes:
            raise ModelError(f"{op.kind}: tensor {name!r} does not exist")
        weights.append(shapes[name] if name else None)
    shape = record.output([made[i] for i in op.inputs], weights, op.attributes)
    value = p.values[op.output]
    if (value.width, value.rows) != shape:
        raise ModelError(
            f"{op.kind}: value {op.output} is declared {(value.width, value.rows)}, not {shape}"
        )
    if op.kind == "attention":
        _check_attention(p, op.attributes)
    if (
        op.kind == "embed"
        and op.attributes["ids"] == "tokens"
        and shapes[op.weights[0]][0] < p.vocab_size
    ):
        raise ModelError(f"embed: the table has fewer rows than vocab_size {p.vocab_size}")
    if (
        op.kind == "embed"
        and op.attributes["ids"] == "positions"
        and shapes[op.weights[0]][0] < p.max_positions
    ):
        raise ModelError(f"embed: the table has fewer rows than max_positions {p.max_positions}")
    return shape


def _check_attention(p: Program, attributes: Mapping[str, AttributeValue]) -> None:
    group_index, layer_index = int(attributes["group"]), int(attributes["layer"])
    if group_index >= len(p.groups) or layer_index >= len(p.groups[group_index].layers):
        raise ModelError(f"attention: cache group {group_index} layer {layer_index} does not exist")
    group = p.groups[group_index]
    layer = group.layers[layer_index]
    if (layer.kv_heads, layer.head_dim) != (attributes["kv_heads"], attributes["head_dim"]):
        raise ModelError(f"attention: kv_heads or head_dim differ from cache group {group.name!r}")
    if attributes["window"] != group.window:
        raise ModelError(
            f"attention: window {attributes['window']} is not that of cache group {group.name!r}"
        )


def _lines(p: Program) -> list[str]:
    lines = [f"program {p.family} vocab={p.vocab_size} positions={p.max_positions}"]
    for group in p.groups:
        window = f" window={group.window}" if group.kind == "window" else ""
        layers = ", ".join(f"{x.kv_heads}x{x.head_dim}" for x in group.layers)
        lines.append(f"cache {group.name}: {group.kind}{window} [{layers}]")
    for spec in p.tensors:
        lines.append(f"tensor {spec.name} {spec.role} {'x'.join(str(n) for n in spec.shape)}")
    for op in p.ops:
        value = p.values[op.output]
        arguments = [f"%{i}" for i in op.inputs] + [name or "-" for name in op.weights]
        attributes = "".join(f" {key}={_word(op.attributes[key])}" for key in sorted(op.attributes))
        call = f"{op.kind}({', '.join(arguments)}){attributes}"
        lines.append(f"%{op.output}[{value.rows}, {value.width}] = {call}")
    lines.append(f"decode -> %{p.output}")
    return lines


def _word(value: AttributeValue) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
