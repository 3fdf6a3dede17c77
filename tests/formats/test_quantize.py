"""Quantizing: error bounds. Grids: found exactly, and only where they are."""

from __future__ import annotations

import hashlib

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from subsecond.errors import ModelError
from subsecond.formats.grid import find_grid
from subsecond.formats.pack import Grid, to_bf16
from subsecond.formats.quantize import quantize

MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 70)),
    elements=st.floats(-60000, 60000, width=32),
)


def per_group(grid: Grid, values: np.ndarray) -> np.ndarray:
    """The scale of each value's group, as float32 [n, k]."""
    return np.repeat(np.abs(grid.scale.astype(np.float32)), 32, axis=1)[:, : values.shape[1]]


@settings(max_examples=60, deadline=None)
@given(MATRICES)
def test_int8_errs_by_half_a_step(values: np.ndarray) -> None:
    grid = quantize(values, "int8", "w")
    bound = per_group(grid, values) * np.float32(0.5001) + np.float32(3e-8)
    assert (np.abs(grid.values() - values) <= bound).all()


@settings(max_examples=60, deadline=None)
@given(MATRICES)
def test_int4_is_no_worse_than_min_and_max(values: np.ndarray) -> None:
    grid = quantize(values, "int4", "w")
    wide = np.pad(values, ((0, 0), (0, -values.shape[1] % 32))).reshape(len(values), -1, 32)
    low = wide.min(axis=2).astype(np.float16).astype(np.float32)
    step = ((wide.max(axis=2) - wide.min(axis=2)) / np.float32(15)).astype(np.float16)
    step = step.astype(np.float32)
    safe = np.where(step > 0, step, 1)
    q = np.clip(np.rint((wide - low[..., None]) / safe[..., None]), 0, 15)
    plain = ((step[..., None] * q + low[..., None] - wide).astype(np.float64) ** 2).sum(axis=2)
    ours = np.pad(grid.values() - values, ((0, 0), (0, -values.shape[1] % 32)))
    # Padding counts for `plain` only, and float32 sums differ in their last bits.
    ours = (ours.reshape(wide.shape).astype(np.float64) ** 2).sum(axis=2)
    assert (ours <= plain * 1.0001 + 1e-12).all()


def test_a_matrix_becomes_the_same_bits_on_every_machine() -> None:
    """Recorded; sums in another order would differ in a few groups."""
    values = np.random.default_rng(7).standard_normal((96, 160), np.float32)
    grid = quantize(values, "int4", "w")
    assert grid.minimum is not None
    data = grid.scale.tobytes() + grid.minimum.tobytes() + grid.quant.tobytes()
    recorded = "1e52d450b38a110e07d9fdb6fa35c59daee4acda7957d34f5b5194ff26aa6ff2"
    assert hashlib.sha256(data).hexdigest() == recorded


def test_int4_search_gains_on_ordinary_weights() -> None:
    values = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    error = float(np.sqrt(np.mean((quantize(values, "int4", "w").values() - values) ** 2)))
    reference = gguf.quants.dequantize(
        gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1),
        gguf.GGMLQuantizationType.Q4_1,
    )
    assert error < 0.95 * float(np.sqrt(np.mean((reference - values) ** 2)))


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_values_beyond_fp16_are_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match=r"'w'.*bf16"):
        quantize(np.full((1, 32), 1e5, np.float32), name, "w")


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_tiny_values_do_not_break(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32) * np.float32(1e-7)
    assert np.abs(quantize(values, name, "w").values() - values).max() < 1e-6


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_values_of_known_grids_are_found(kind: str) -> None:
    qtype = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(0).standard_normal((48, 256)).astype(np.float32) / 20
    values[3] = 0  # a dead row
    values[4, :32] = 0.25  # a constant group
    snapped = gguf.quants.dequantize(gguf.quants.quantize(values, qtype), qtype)
    grid = find_grid(snapped)
    assert grid is not None
    assert grid.format == ("int8" if kind == "Q8_0" else "int4")
    np.testing.assert_array_equal(grid.values(), snapped)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 15), st.booleans())
def test_part_of_the_levels_is_enough(seed: int, levels: int, negative: bool) -> None:
    """Groups that use a few levels anywhere on the grid are found as well."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 16 - levels + 1)
    quant = rng.integers(first, first + levels, (3, 64)).astype(np.uint8)
    scale = rng.uniform(0.001, 0.1, (3, 2)).astype(np.float16) * np.float16(-1 if negative else 1)
    made = Grid("int4", scale, scale * np.float16(-8), quant)
    found = find_grid(made.values())
    if found is not None:
        np.testing.assert_array_equal(found.values(), made.values())
    assert found is not None or levels == 1  # one level: its value need not be an fp16


def test_ordinary_weights_are_on_no_grid() -> None:
    values = np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)
    assert find_grid(values) is None
    rounded = to_bf16(values).astype(np.uint32) << 16
    assert find_grid(rounded.view(np.float32)) is None


def test_one_value_off_the_grid_is_noticed() -> None:
    made = quantize(
        np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32), "int4", "w"
    )
    values = made.values()
    assert find_grid(values) is not None
    values[37, 411] = np.nextafter(values[37, 411], np.float32(9))
    assert find_grid(values) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_grid_for_values_that_are_not_finite(bad: float) -> None:
    assert find_grid(np.full((2, 32), bad, np.float32)) is None


def test_no_grid_for_a_ragged_k() -> None:
    assert find_grid(np.zeros((2, 33), np.float32)) is None
