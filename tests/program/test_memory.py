"""The memory plan never lets two living values share memory, whatever the program."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond import models
from subsecond.program import memory, rewrites
from subsecond.program.builder import Builder
from subsecond.program.interpret import Interpreter
from subsecond.program.ops import OPS
from subsecond.program.ops_reference import Step, Weight
from subsecond.program.program import Program


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Random straight-line programs of elementwise ops, linears, slices and concats."""
    b = Builder("random", 8, 64)
    widths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    values = [b.embed(b.matrix(f"t{i}", 8, w, "embedding")) for i, w in enumerate(widths)]
    for index in range(draw(st.integers(1, 25))):
        x = draw(st.sampled_from(values))
        width = b.width(x)
        kind = draw(st.sampled_from(["linear", "add", "scale", "activation", "slice", "concat"]))
        if kind == "linear":
            y = b.linear(x, b.matrix(f"m{index}", draw(st.integers(1, 40)), width))
        elif kind == "add":
            y = b.add(x, draw(st.sampled_from([v for v in values if b.width(v) == width])))
        elif kind == "scale":
            y = b.scale(x, 0.5)
        elif kind == "activation":
            y = b.activation(x, "tanh")
        elif kind == "slice":
            y = b.slice(x, 0, max(1, width // 2))
        else:
            y = b.concat(x, draw(st.sampled_from(values)))
        values.append(y)
    used = values[0]
    for value in values[1:]:
        used = b.concat(used, value)
    return b.build(b.gather(b.linear(used, b.matrix("head", 8, b.width(used)))))


def run_in_arena(program: Program, plan: memory.MemoryPlan, tokens: int) -> np.ndarray:
    """Executes the program with every value in its planned place, poisoned beforehand."""
    rng = np.random.default_rng(1)
    weights = {s.name: rng.standard_normal(s.shape).astype(np.float32) / 6 for s in program.tensors}
    ids = rng.integers(0, program.vocab_size, tokens)
    arenas = {rows: np.full(size * tokens, np.nan, np.float32) for rows, size in plan.size.items()}
    step = Step(ids, np.arange(tokens), (0, tokens), np.arange(tokens), ())

    def place(value: int) -> np.ndarray:
        spec = program.values[value]
        begin = plan.offsets[value] * tokens
        return arenas[spec.rows][begin : begin + spec.width * tokens].reshape(tokens, spec.width)

    for op in program.ops:
        inputs = [place(value) for value in op.inputs]
        named = [Weight(weights[name]) if name else None for name in op.weights]
        place(op.output)[:] = OPS[op.kind].reference(inputs, named, op.attributes, step)
    expected = Interpreter(program, weights).logits(ids.tolist())
    assert np.abs(place(program.output) - expected).max() < 1e-4
    return expected


@settings(max_examples=80, deadline=None)
@given(programs(), st.booleans())
def test_living_values_never_overlap(program: Program, in_place: bool) -> None:
    allowed = memory.ELEMENTWISE if in_place else frozenset[str]()
    plan = memory.plan(program, allowed)
    spans = memory.lifetimes(program)
    for a in range(len(program.values)):
        for b in range(a + 1, len(program.values)):
            if program.values[a].rows != program.values[b].rows:
                continue
            first, second = sorted((spans[a], spans[b]))
            width_a, width_b = (memory.padded(program.values[v].width) for v in (a, b))
            apart = (
                plan.offsets[a] + width_a <= plan.offsets[b]
                or plan.offsets[b] + width_b <= plan.offsets[a]
            )
            if second[0] < first[1]:
                assert apart
            elif second[0] == first[1]:
                # Only an elementwise op may write over the input that it is the last to read.
                assert apart or (program.ops[second[0]].kind in allowed)


@settings(max_examples=40, deadline=None)
@given(programs())
def test_programs_run_in_their_arena(program: Program) -> None:
    run_in_arena(program, memory.plan(program), tokens=3)


def test_a_broken_plan_is_noticed() -> None:
    """Teeth: with all values at offset 0 the arena run differs."""
    b = Builder("test", 8, 64)
    x = b.embed(b.matrix("t", 8, 16, "embedding"))
    y = b.linear(x, b.matrix("m", 16, 16))
    program = b.build(b.gather(b.linear(b.add(b.activation(y, "tanh"), x), b.matrix("h", 8, 16))))
    good = memory.plan(program)
    run_in_arena(program, good, 3)
    with pytest.raises(AssertionError):
        run_in_arena(program, memory.MemoryPlan((0,) * len(good.offsets), good.size), 3)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_plan_of_a_model_is_small_and_aligned(family: str) -> None:
    """A layer's memory is used again by the next layer: the arena does not grow with depth."""
    key = "n_layer" if family == "gpt2" else "num_hidden_layers"
    sizes = []
    for layers in (4, 8):
        changes = {key: layers}
        config = tiny.config(family, **changes)
        program = rewrites.fuse(models.build(config, tiny.shapes(family, config)).program)
        plan = memory.plan(program)
        assert all(offset % memory.ALIGNMENT == 0 for offset in plan.offsets)
        sizes.append(plan.size)
    assert sizes[0] == sizes[1]
    widest = max(value.width for value in program.values if value.rows == "T")
    assert sizes[0]["T"] <= 3 * memory.padded(widest)
