"""Parity of every op with its NumPy reference, generated from the op table, for every format and
instruction set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from native_driver import F32, ISAS, Driver, pack

from subsecond.program.interpret import Interpreter, SequenceCache
from subsecond.program.ops import KV_FORMATS, OPS, WEIGHT_FORMATS
from subsecond.program.ops_cases import WEIGHT, Case


def _parameters() -> Iterator[object]:
    rng = np.random.default_rng(0)
    for name, record in OPS.items():
        if name == "pool":
            continue
        for index, case in enumerate(record.cases(rng)):
            for form in record.tolerance:
                for isa in ISAS:
                    yield pytest.param(case, form, isa, id=f"{name}-{index}-{form}-{isa}")


# A normalized activation may lie so near to the middle of two values of its integer grid that it is
# rounded the other way: rare rows, off by about a step of one of k activations.
FLIPPED_ROWS, FLIPPED_TOLERANCE = 0.06, 2e-2


def _check(result: F32, reference: F32, tolerance: float, grid: bool) -> None:
    assert np.isfinite(result).all()
    by_row = np.abs(result - reference).max(axis=1) / max(1.0, float(reference.std()))
    if grid:
        assert (by_row > tolerance).sum() <= max(1, FLIPPED_ROWS * len(by_row))
        tolerance = FLIPPED_TOLERANCE
    assert by_row.max() <= tolerance


@pytest.mark.parametrize(("case", "form", "isa"), list(_parameters()))
def test_op_equals_its_reference(case: Case, form: str, isa: str, tmp_path: Path) -> None:
    """Prompts of three sequences, then steps of two, of two again, and of a single one."""
    program = case.program()
    rng = np.random.default_rng(1)
    weights = case.random(rng)
    kv = form if case.op == "attention" else "f32"
    formats = {
        spec.name: form
        for spec in program.tensors
        if spec.kind == "matrix" and spec.name.startswith(WEIGHT)
    }
    packed = pack(tmp_path / "weights.bin", program, weights, formats)
    oracle = Interpreter(program, packed.values, formats, kv)
    driver = Driver(program, packed, isa=isa, threads=2, kv=kv)
    tolerance = OPS[case.op].tolerance[form]
    ours = [driver.sequence(256) for _ in range(3)]
    theirs = [SequenceCache() for _ in ours]
    for lengths in ((150, 1, 7), (1, 1), (3, 1), (1,)):
        tokens = [rng.integers(0, program.vocab_size, n).tolist() for n in lengths]
        result = driver.step(list(zip(ours, tokens, strict=False)), "all")
        expected = oracle.step(list(zip(theirs, tokens, strict=False)), "all")
        _check(result, expected, tolerance, grid=case.op == "linear" and form in ("int4", "int8"))


@pytest.mark.parametrize("kind", ["cls", "mean", "last"])
def test_pool(kind: str, tmp_path: Path) -> None:
    from subsecond.program.builder import Builder

    builder = Builder("pool", 32, 64)
    x = builder.embed(builder.matrix("table", 40, 32, "embedding"))
    pooled = builder.pool(x, kind)
    program = builder.build(builder.gather(x))
    rng = np.random.default_rng(2)
    table = rng.standard_normal((40, 32)).astype(np.float32)
    driver = Driver(program, pack(tmp_path / "w", program, {"table": table}, {}), threads=2)
    tokens = [rng.integers(0, 32, n).tolist() for n in (5, 1, 9)]
    driver.step([(driver.sequence(64), t) for t in tokens])
    expected = [
        {"cls": table[t][0], "last": table[t][-1], "mean": table[t].mean(axis=0)}[kind]
        for t in tokens
    ]
    np.testing.assert_allclose(driver.value(pooled), np.stack(expected), atol=1e-5)


def test_formats_are_those_of_the_op_table() -> None:
    assert set(OPS["linear"].tolerance) == set(WEIGHT_FORMATS)
    assert set(OPS["attention"].tolerance) == set(KV_FORMATS)
