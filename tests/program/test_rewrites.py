"""Fusions: each pass keeps the meaning, fires where it should, and leaves the rest alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny

from subsecond import models
from subsecond.program import rewrites
from subsecond.program.builder import Builder
from subsecond.program.interpret import Interpreter
from subsecond.program.program import Program

Weights = dict[str, npt.NDArray[np.float32]]


GEMMA = {"embed": 1, "linear": 17, "attention": 4, "norm": 8, "add": 8, "gather": 2}


def model(family: str, **changes: Any) -> tuple[Program, Weights]:
    config = tiny.config(family, **changes)
    tensors = tiny.tensors(family, 3, config)
    built = models.build(config, {name: array.shape for name, array in tensors.items()})
    return built.program, {name: recipe.apply(tensors) for name, recipe in built.recipes.items()}


def random_weights(program: Program) -> Weights:
    rng = np.random.default_rng(8)
    return {s.name: rng.standard_normal(s.shape).astype(np.float32) / 4 for s in program.tensors}


def kinds(program: Program) -> Counter[str]:
    return Counter(op.kind for op in program.ops)


def assert_equal(a: Program, b: Program, weights: Weights, tokens: int = 24) -> None:
    ids = np.random.default_rng(9).integers(0, a.vocab_size, tokens).tolist()
    left, right = Interpreter(a, weights).logits(ids, 10), Interpreter(b, weights).logits(ids, 10)
    assert np.abs(left - right).max() <= 2e-5 * max(1.0, left.std())


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("index", range(len(rewrites.PASSES)))
def test_each_pass_keeps_the_meaning(family: str, index: int) -> None:
    """Every pass alone on the plain program, and behind the passes before it."""
    program, weights = model(family)
    assert_equal(program, rewrites.PASSES[index](program), weights)
    for apply in rewrites.PASSES[:index]:
        program = apply(program)
    assert_equal(program, rewrites.PASSES[index](program), weights)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_fuse_is_final_and_deterministic(family: str) -> None:
    program, _ = model(family)
    fused = rewrites.fuse(program)
    assert rewrites.fuse(fused) == fused
    assert fused == rewrites.fuse(Program.from_json(program.to_json()))
    assert {spec.name for spec in fused.tensors} == {spec.name for spec in program.tensors}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # Two layers: q|k|v, output, gate|up, down each; the head; two gathers in the last layer.
        ("llama", {"embed": 1, "linear": 9, "attention": 2, "gather": 2}),
        ("qwen3", {"embed": 1, "linear": 9, "attention": 2, "gather": 2}),
        ("phi3", {"embed": 1, "linear": 9, "attention": 2, "gather": 2}),
        ("gpt2", {"embed": 2, "add": 1, "linear": 9, "attention": 2, "activation": 2, "gather": 2}),
        ("gpt_neox", {"embed": 1, "linear": 9, "attention": 2, "activation": 2, "gather": 2}),
        # Four layers with norms between a linear and its residual.
        ("gemma2", {**GEMMA, "softcap": 1}),
        ("gemma3", GEMMA),
    ],
)
def test_everything_that_can_fuse_does(family: str, expected: dict[str, int]) -> None:
    assert kinds(rewrites.fuse(model(family)[0])) == expected


def test_last_layer_skips_rows_without_logits() -> None:
    fused = rewrites.fuse(model("llama")[0])
    after = [op for op in fused.ops if fused.values[op.output].rows == "R" and op.kind == "linear"]
    assert [len(op.weights) for op in after] == [4, 6, 4, 4]  # output, gate|up, down, head


def small() -> tuple[Builder, int]:
    b = Builder("test", 12, 128)
    return b, b.embed(b.matrix("table", 12, 12, "embedding"))


def test_a_norm_with_two_users_stays() -> None:
    b, x = small()
    y = b.norm(x, "rms", 1e-5, weight=b.vector("w", 12))
    z = b.add(b.linear(y, b.matrix("a", 12, 12)), y)
    program = b.build(b.gather(z))
    fused = rewrites.fuse(program)
    assert kinds(fused)["norm"] == 1
    assert_equal(program, fused, random_weights(program))


def test_a_linear_with_two_users_keeps_its_result() -> None:
    b, x = small()
    y = b.linear(x, b.matrix("a", 12, 12))
    z = b.add(b.add(x, y), b.gated(y, x, "silu"))
    program = b.build(b.gather(z))
    fused = rewrites.fuse(program)
    assert all(not op.attributes["residual"] for op in fused.ops if op.kind == "linear")
    assert_equal(program, fused, random_weights(program))


def test_a_value_added_to_itself_is_not_a_residual() -> None:
    b, x = small()
    y = b.linear(x, b.matrix("a", 12, 12))
    program = b.build(b.gather(b.add(y, y)))
    fused = rewrites.fuse(program)
    assert kinds(fused)["add"] == 1
    assert_equal(program, fused, random_weights(program))


def test_gates_of_different_inputs_stay() -> None:
    b, x = small()
    gate = b.linear(x, b.matrix("a", 12, 12))
    up = b.linear(b.scale(x, 2.0), b.matrix("b", 12, 12))
    program = b.build(b.gather(b.gated(gate, up, "silu")))
    fused = rewrites.fuse(program)
    assert kinds(fused)["gated"] == 1
    assert_equal(program, fused, random_weights(program))


@pytest.mark.parametrize("difference", ["rotary", "factor", "inv_freq", "only q"])
def test_unequal_ropes_stay(difference: str) -> None:
    b, x = small()
    f, g = b.vector("f", 2), b.vector("g", 2)
    kv = {"rotary": 4, "factor": 1.0}
    q = b.rope(b.slice(x, 0, 8), f, heads=2, head_dim=4, **kv)  # type: ignore[arg-type]
    k = b.slice(x, 8, 4)
    if difference == "rotary":
        k = b.rope(k, b.vector("h", 1), heads=1, head_dim=4, rotary=2)
    elif difference == "factor":
        k = b.rope(k, f, heads=1, head_dim=4, rotary=4, factor=2.0)
    elif difference == "inv_freq":
        k = b.rope(k, g, heads=1, head_dim=4, rotary=4)
    used = b.rope(b.slice(x, 0, 4), g, heads=1, head_dim=4, rotary=4)
    y = b.attention(b.concat(q, k, b.slice(x, 4, 4)), heads=2, kv_heads=1, head_dim=4, scale=0.5)
    program = b.build(b.gather(b.concat(y, used)))
    fused = rewrites.fuse(program)
    assert all(op.attributes["rotary"] == 0 for op in fused.ops if op.kind == "attention")
    assert_equal(program, fused, random_weights(program))


def test_several_gathers_become_one() -> None:
    b, x = small()
    y = b.linear(x, b.matrix("a", 12, 12))
    program = b.build(b.add(b.gather(y), b.gather(b.add(x, y))))
    fused = rewrites.fuse(program)
    assert kinds(fused)["gather"] == 1
    assert_equal(program, fused, random_weights(program))
