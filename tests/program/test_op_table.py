"""The op table: records, shape rules, references against independent formulas."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subsecond.errors import ModelError
from subsecond.program.interpret import Interpreter, SequenceCache
from subsecond.program.ops import ACTIVATIONS, OPS, op_table
from subsecond.program.ops_cases import CASES, Case
from subsecond.program.ops_reference import (
    REFERENCES,
    Step,
    Weight,
    activate,
    prepared,
    round_bf16,
    round_int8,
)

ROOT = Path(__file__).resolve().parent.parent.parent
ALL_CASES = [case for op in OPS for case in CASES[op](np.random.default_rng(0))]
IDS = [f"{case.op}-{index}" for index, case in enumerate(ALL_CASES)]


def test_table_is_complete_and_in_the_order_of_the_design() -> None:
    design = (ROOT / "docs" / "design.md").read_text()
    documented = re.findall(r"^\| ([a-z]+) \| (?!inputs)", design, re.MULTILINE)
    assert list(OPS) == [name for name in documented if name != "op"]
    assert list(OPS) == list(REFERENCES) == list(CASES)


def test_importing_the_table_does_not_import_numpy() -> None:
    code = (
        "import sys, subsecond.program.ops, subsecond.program.program, subsecond.program.memory;"
        "sys.exit('numpy' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )


def test_attribute_names_are_sorted() -> None:
    assert op_table()["rope"] == ["factor", "head_dim", "heads", "interleaved", "rotary"]
    assert all(names == sorted(names) for names in op_table().values())


@pytest.mark.parametrize("case", ALL_CASES, ids=IDS)
def test_reference_has_the_shape_of_the_rule(case: Case) -> None:
    """Every case runs in its reference, alone and as a program, and gives the declared shape."""
    rng = np.random.default_rng(1)
    tokens = 5
    width, rows = OPS[case.op].output(
        [(w, "T") for w in case.inputs], case.weights, case.attributes
    )
    inputs = [rng.standard_normal((tokens, w)).astype(np.float32) for w in case.inputs]
    weights = [
        None if shape is None else Weight(rng.standard_normal(shape).astype(np.float32))
        for shape in case.weights
    ]
    ids = np.arange(tokens)
    step = Step(ids, ids, (0, 3, 5), np.array([1, 4]), (SequenceCache(), SequenceCache()))
    result = OPS[case.op].reference(inputs, weights, case.attributes, step)
    assert result.shape == ({"T": tokens, "R": 2, "S": 2}[rows], width)
    assert result.dtype == np.float32
    assert np.isfinite(result).all()


@pytest.mark.parametrize("case", [c for c in ALL_CASES if c.op != "pool"], ids=lambda c: c.op)
def test_case_as_a_program_does_not_depend_on_chunking(case: Case) -> None:
    program = case.program()
    interpreter = Interpreter(program, case.random(np.random.default_rng(2)))
    ids = np.random.default_rng(3).integers(0, program.vocab_size, 90).tolist()
    whole, chunked = interpreter.logits(ids), interpreter.logits(ids, 7)
    assert np.abs(whole - chunked).max() < 2e-5 * max(1.0, whole.std())
    assert whole.std() > 0.01


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("norm", {"kind": "batch"}),
        ("norm", {"eps": -1.0}),
        ("norm", {"eps": math.nan}),
        ("norm", {"eps": 1}),
        ("norm", {"groups": True}),
        ("norm", {"groups": 5}),
        ("rope", {"rotary": 7}),
        ("rope", {"heads": 1 << 40}),
        ("linear", {"residual": 1}),
        ("attention", {"kv_heads": 3}),
        ("slice", {"start": -1}),
        ("softcap", {"cap": 0.0}),
        ("gated", {"unknown": 1}),
    ],
)
def test_bad_attributes_are_refused(op: str, change: dict[str, Any]) -> None:
    case = next(iter(CASES[op](np.random.default_rng(0))))
    attributes = {**case.attributes, **change}
    with pytest.raises(ModelError, match=op):
        OPS[op].output([(w, "T") for w in case.inputs], case.weights, attributes)


@pytest.mark.parametrize(
    ("weights", "attributes", "message"),
    [
        (((8, 4), None, None, None), {}, "width"),
        ((None, None, None, None), {}, "absent"),
        (((8, 6), (7,), None, None), {}, "bias 0"),
        (((8, 6), None, (6,), None), {}, "norm_weight needs"),
        (((8, 6), None, None, None), {"gate": "silu"}, "two matrices"),
        (((8, 6), None, None, None), {"residual": True}, "residual"),
        (((8, 6), None, None), {}, "2n \\+ 2"),
    ],
)
def test_linear_parts_must_fit(weights: Any, attributes: dict[str, Any], message: str) -> None:
    base = {"norm": "none", "eps": 0.0, "gate": "none", "residual": False}
    with pytest.raises(ModelError, match=message):
        OPS["linear"].output([(6, "T")], weights, {**base, **attributes})


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_match_their_definitions(kind: str) -> None:
    x = np.linspace(-12, 12, 97).astype(np.float32)
    exact = {
        "silu": lambda v: v / (1 + math.exp(-v)),
        "gelu": lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))),
        "gelu_tanh": lambda v: (
            0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
        ),
        "relu": lambda v: max(v, 0.0),
        "tanh": math.tanh,
    }[kind]
    assert np.abs(activate(kind, x) - [exact(float(v)) for v in x]).max() < 1e-6


def test_rounding_to_bf16_is_to_nearest_even() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, -3.14159, 0.0], np.float32)
    assert round_bf16(x).tolist() == [1.0, 1.0, 1.015625, -3.140625, 0.0]
    many = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert (np.abs(round_bf16(many) - many) <= np.abs(many) * 2.0**-8).all()


@pytest.mark.parametrize("power_of_two", [False, True])
def test_int8_grid_is_of_each_group_alone(power_of_two: bool) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((3, 70)).astype(np.float32) * np.array([[1], [100], [0]], np.float32)
    rounded = round_int8(x, 32, power_of_two=power_of_two)
    for row in range(3):
        for begin in (0, 32, 64):
            part, grid = x[row, begin : begin + 32], rounded[row, begin : begin + 32]
            step = np.abs(part).max() / 127
            if power_of_two and step > 0:
                step = 2.0 ** np.ceil(np.log2(step))
            assert np.abs(part - grid).max() <= step * 0.5001
            steps = np.divide(grid, step, out=np.zeros_like(grid), where=step > 0)
            assert np.abs(steps - np.rint(steps)).max() < 1e-3
    other = x.copy()
    other[0, 40:] *= 50
    assert (round_int8(other, 32, power_of_two=power_of_two)[0, :32] == rounded[0, :32]).all()


def test_quantized_activations_change_a_product_as_little_as_their_format_says() -> None:
    case = Case(
        "linear",
        (64,),
        ((32, 64), None, None, None),
        {"norm": "none", "eps": 0.0, "gate": "none", "residual": False},
    )
    weights = case.random(np.random.default_rng(5))
    ids = list(range(30))
    exact = Interpreter(case.program(), weights).logits(ids)
    errors = {}
    for weight_format in ("bf16", "int8"):
        rounded = Interpreter(case.program(), weights, {"weight.0": weight_format}).logits(ids)
        errors[weight_format] = np.abs(rounded - exact).max()
        inputs = prepared(weights["input.0"][ids], weight_format)
        assert np.abs(inputs @ weights["weight.0"].T - rounded).max() < 1e-5
    assert 0 < errors["bf16"] < 0.02
    assert 0 < errors["int8"] < 0.04


def test_attention_is_a_softmax_over_the_window() -> None:
    """One head, written out position by position."""
    head, window = 16, 4
    attributes: dict[str, Any] = {
        "group": 0, "layer": 0, "heads": 1, "kv_heads": 1, "head_dim": head, "scale": 0.3,
        "window": window, "softcap": 2.0, "rotary": 0, "interleaved": False, "factor": 1.0,
        "eps": 0.0,
    }  # fmt: skip
    x = np.random.default_rng(6).standard_normal((10, 3 * head)).astype(np.float32)
    ids = np.arange(10)
    step = Step(ids, ids, (0, 10), ids, (SequenceCache(),))
    result = OPS["attention"].reference([x], [None, None, None], attributes, step)
    for t in range(10):
        seen = range(max(0, t - window + 1), t + 1)
        scores = [
            2.0 * math.tanh(0.3 * float(x[t, :head] @ x[s, head : 2 * head]) / 2.0) for s in seen
        ]
        total = sum(math.exp(s) for s in scores)
        expected = sum(
            math.exp(score) / total * x[s, 2 * head :]
            for score, s in zip(scores, seen, strict=True)
        )
        assert np.abs(result[t] - expected).max() < 1e-5


def test_interleaved_rope_is_the_same_rotation_of_other_pairs() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((6, 16)).astype(np.float32)
    order = [*range(0, 16, 2), *range(1, 16, 2)]
    inv_freq = Weight((10000.0 ** -(np.arange(8) / 8)).astype(np.float32))
    positions = np.arange(6) + 100
    step = Step(positions, positions, (0, 6), positions, ())
    base: dict[str, Any] = {"heads": 1, "head_dim": 16, "rotary": 16, "factor": 1.0}
    pairs = OPS["rope"].reference([x], [inv_freq], {**base, "interleaved": True}, step)
    halves = OPS["rope"].reference([x[:, order]], [inv_freq], {**base, "interleaved": False}, step)
    assert (pairs[:, order] == halves).all()
    assert np.abs((pairs**2).sum(axis=1) - (x**2).sum(axis=1)).max() < 1e-4
