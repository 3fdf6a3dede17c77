"""Fusions: programs to equal programs with fewer, larger ops.

Owns: the passes and their order. Knows nothing of families or executors; a pass looks only at ops
and at how often a value is used. Each pass is checked by running both programs in the interpreter.
Results are equal up to the order of float additions where a residual moves into a linear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from subsecond.program.program import Op, Program, Value


@dataclass(frozen=True, slots=True)
class _View:
    """What a rewrite may look at: who makes a value (rewritten so far) and how often it is used."""

    program: Program
    makers: dict[int, Op]
    uses: Counter[int]

    def single(self, value: int, kind: str) -> Op | None:
        """The op of that kind which makes `value` for one user alone."""
        op = self.makers.get(value)
        return op if op is not None and op.kind == kind and self.uses[value] == 1 else None

    def plain_linear(self, value: int) -> Op | None:
        """Like single(), for a linear of one matrix with nothing fused."""
        op = self.single(value, "linear")
        if op is None or len(op.weights) != 4:
            return None
        a = op.attributes
        return op if a["norm"] == "none" and a["gate"] == "none" and not a["residual"] else None


Rewrite = Callable[[Op, _View], Op]
Pass = Callable[[Program], Program]


def fuse(program: Program) -> Program:
    """All passes, in order: what executors run."""
    for apply in PASSES:
        program = apply(program)
    return program


def gather_early(program: Program) -> Program:
    """Row-wise ops whose results matter only in the gathered rows are computed in those rows alone.

    So the last layer's output projection and MLP skip the tokens of a prompt that need no logits.
    """
    users: dict[int, list[Op]] = {}
    for op in program.ops:
        for value in op.inputs:
            users.setdefault(value, []).append(op)
    early: set[int] = set()
    for op in reversed(program.ops):
        by = users.get(op.output, [])
        late = not by or program.values[op.output].rows != "T" or op.kind not in _ROW_WISE
        if not late and all(user.kind == "gather" or user.output in early for user in by):
            early.add(op.output)
    values = list(program.values)
    ops: list[Op] = []
    gathered: dict[int, int] = {}  # value of T rows -> its gathered twin
    renamed: dict[int, int] = {}  # a gather op's result -> the twin that replaces it

    def gather(value: int) -> int:
        if values[value].rows == "R":
            return value
        if value not in gathered:
            gathered[value] = len(values)
            values.append(Value(values[value].width, "R"))
            ops.append(Op("gather", (value,), gathered[value], (), {}))
        return gathered[value]

    for op in program.ops:
        if op.kind == "gather":
            renamed[op.output] = gather(op.inputs[0])
        elif op.output in early:
            values[op.output] = Value(values[op.output].width, "R")
            inputs = tuple(gather(value) for value in op.inputs)
            ops.append(msgspec.structs.replace(op, inputs=inputs))
        else:
            inputs = tuple(renamed.get(value, value) for value in op.inputs)
            ops.append(msgspec.structs.replace(op, inputs=inputs))
    return _rebuilt(program, ops, values, renamed.get(program.output, program.output))


def _fuse_into_attention(op: Op, view: _View) -> Op:
    """attention(concat(rope(norm(q)), rope(norm(k)), v)): norm and rope become attention's own."""
    if op.kind != "attention" or op.attributes["rotary"] or any(op.weights):
        return op
    concat = view.single(op.inputs[0], "concat")
    if concat is None or len(concat.inputs) != 3:
        return op
    a = dict(op.attributes)
    weights = ["", "", ""]
    sources: list[int] = list(concat.inputs[:2])
    ropes = [view.single(value, "rope") for value in sources]
    if ropes[0] is not None and ropes[1] is not None:
        if not _same_rope(ropes[0], ropes[1], op):
            return op
        a.update({key: ropes[0].attributes[key] for key in ("rotary", "interleaved", "factor")})
        weights[2] = ropes[0].weights[0]
        sources = [ropes[0].inputs[0], ropes[1].inputs[0]]
    elif ropes != [None, None]:
        return op
    norms = [view.single(value, "norm") for value in sources]
    if norms[0] is not None and norms[1] is not None and _head_norms(norms[0], norms[1], op):
        a["eps"] = norms[0].attributes["eps"]
        weights[:2] = [norms[0].weights[0], norms[1].weights[0]]
        sources = [norms[0].inputs[0], norms[1].inputs[0]]
    if not any(weights):
        return op
    # The concat keeps its value number and width; only where its parts come from changes.
    view.makers[concat.output] = msgspec.structs.replace(
        concat, inputs=(*sources, concat.inputs[2])
    )
    return msgspec.structs.replace(op, weights=tuple(weights), attributes=a)


def _same_rope(q: Op, k: Op, attention: Op) -> bool:
    keys = ("rotary", "interleaved", "factor", "head_dim")
    a = attention.attributes
    return (
        q.weights == k.weights
        and all(q.attributes[key] == k.attributes[key] for key in keys)
        and q.attributes["head_dim"] == a["head_dim"]
        and (q.attributes["heads"], k.attributes["heads"]) == (a["heads"], a["kv_heads"])
    )


def _head_norms(q: Op, k: Op, attention: Op) -> bool:
    a = attention.attributes
    return (
        q.attributes["kind"] == k.attributes["kind"] == "rms"
        and q.attributes["eps"] == k.attributes["eps"]
        and (q.attributes["groups"], k.attributes["groups"]) == (a["heads"], a["kv_heads"])
        and all(norm.weights[0] for norm in (q, k))
    )


def _fuse_gate(op: Op, view: _View) -> Op:
    """gated(linear(x), linear(x)) is one linear with a gate."""
    if op.kind != "gated":
        return op
    gate, up = view.plain_linear(op.inputs[0]), view.plain_linear(op.inputs[1])
    if gate is None or up is None or gate.inputs != up.inputs:
        return op
    return _joined([gate, up], op.output, str(op.attributes["kind"]))


def _fuse_concat(op: Op, view: _View) -> Op:
    """concat of linears that share their input is one linear of several matrices."""
    if op.kind != "concat":
        return op
    parts: list[Op] = []
    for value in op.inputs:
        part = view.plain_linear(value)
        if part is None or (parts and part.inputs != parts[0].inputs):
            return op
        parts.append(part)
    return _joined(parts, op.output, "none")


def _joined(parts: Sequence[Op], output: int, gate: str) -> Op:
    weights = [part.weights[0] for part in parts] + [part.weights[1] for part in parts] + ["", ""]
    attributes = {**parts[0].attributes, "gate": gate}
    return Op("linear", parts[0].inputs, output, tuple(weights), attributes)


def _fuse_residual(op: Op, view: _View) -> Op:
    """add(x, linear(y)) is a linear with a residual."""
    if op.kind != "add" or op.inputs[0] == op.inputs[1]:
        return op
    for residual, value in (op.inputs, op.inputs[::-1]):
        linear = view.single(value, "linear")
        if linear is not None and not linear.attributes["residual"]:
            attributes = {**linear.attributes, "residual": True}
            return Op("linear", (linear.inputs[0], residual), op.output, linear.weights, attributes)
    return op


def _fuse_norm(op: Op, view: _View) -> Op:
    """linear(norm(x)) normalizes its own input. A norm with several users stays: it would be
    computed again.
    """
    if op.kind != "linear" or op.attributes["norm"] != "none":
        return op
    norm = view.single(op.inputs[0], "norm")
    if norm is None or norm.attributes["groups"] != 1:
        return op
    attributes = {**op.attributes, "norm": norm.attributes["kind"], "eps": norm.attributes["eps"]}
    inputs = (norm.inputs[0], *op.inputs[1:])
    return Op("linear", inputs, op.output, (*op.weights[:-2], *norm.weights), attributes)


def _pass(rewrite: Rewrite) -> Pass:
    """The pass that offers each op, in program order, to `rewrite`."""

    def apply(program: Program) -> Program:
        uses = Counter(value for op in program.ops for value in op.inputs)
        uses[program.output] += 1
        view = _View(program, {}, uses)
        for op in program.ops:
            view.makers[op.output] = rewrite(op, view)
        ops = [view.makers[op.output] for op in program.ops]
        return _rebuilt(program, ops, program.values, program.output)

    return apply


def _rebuilt(program: Program, ops: Sequence[Op], values: Sequence[Value], output: int) -> Program:
    """The program of the ops that `output` needs, values numbered in order."""
    needed = {output}
    kept: list[Op] = []
    for op in reversed(ops):
        if op.output in needed:
            needed.update(op.inputs)
            kept.append(op)
    kept.reverse()
    number = {op.output: index for index, op in enumerate(kept)}
    renumbered = tuple(
        msgspec.structs.replace(
            op, inputs=tuple(number[v] for v in op.inputs), output=number[op.output]
        )
        for op in kept
    )
    return msgspec.structs.replace(
        program,
        values=tuple(values[op.output] for op in kept),
        ops=renumbered,
        output=number[output],
    )


_ROW_WISE = frozenset(
    {"norm", "linear", "activation", "gated", "add", "scale", "softcap", "slice", "concat"}
)

fuse_into_attention = _pass(_fuse_into_attention)
fuse_gate = _pass(_fuse_gate)
fuse_concat = _pass(_fuse_concat)
fuse_residual = _pass(_fuse_residual)
fuse_norm = _pass(_fuse_norm)

# Attention first, so that the projections' concat is bare; residual and norm last, so that they
# see joined linears.
PASSES: tuple[Pass, ...] = (
    gather_early,
    fuse_into_attention,
    fuse_gate,
    fuse_concat,
    fuse_residual,
    fuse_norm,
)
