"""Weights of int8 in two parts: the same products as int8, and bounds that hold.

Owns: the bits against int8's, the bounds over random and adversarial matrices and activations, and
what is no number. How a model uses the bounds is tests/runtime/test_screened_choice.py's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond import _native
from subsecond.formats.layout import FORMATS
from subsecond.formats.pack import Grid, pack_grid, pack_split, split_parts, unpack_grid

kernels = _native.kernels
Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

ISAS = kernels.isas()
SHAPES = [(1, 1), (16, 32), (17, 33), (40, 100), (96, 576), (130, 257), (33, 2055)]  # n, k
SCALES = ("plain", "wide", "huge", "tiny", "zero")
QUANTS = ("random", "low", "high", "middle", "alike")
ROWS = ("plain", "outlier", "huge", "tiny", "zero", "aligned")


def grid_of(n: int, k: int, scales: str = "plain", quants: str = "random", seed: int = 0) -> Grid:
    rng = np.random.default_rng(seed + 1000 * n + k)
    scale = rng.uniform(0.001, 0.1, (n, -(-k // 32)))
    if scales == "wide":
        scale = 10.0 ** rng.uniform(-7, 4.5, scale.shape) * rng.choice([-1, 1], scale.shape)
    elif scales != "plain":
        scale[:] = {"huge": 65504.0, "tiny": 6e-8, "zero": 0.0}[scales]
    quant = rng.integers(0, 256, (n, k), dtype=np.uint8)
    if quants in ("low", "high"):
        quant = np.uint8(0 if quants == "low" else 3) | (quant & np.uint8(0xFC))
    elif quants == "middle":
        quant[:] = 128
    elif quants == "alike":
        quant[:] = quant[:1]
    return Grid("int8", scale.astype(np.float16), None, quant)


def rows_of(m: int, k: int, kind: str, grid: Grid, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed + k)
    x = rng.standard_normal((m, k))
    if kind == "outlier":
        x[:, rng.integers(k)] = 1e4
    elif kind == "aligned":  # with the lower bits of a row: what the bound is tight for
        row = grid.quant[int(rng.integers(len(grid.quant)))]
        x[:] = (row % 4 - 1.5) * 40
    else:
        x *= {"plain": 1.0, "huge": 1e20, "tiny": 1e-34, "zero": 0.0}[kind]
    return np.ascontiguousarray(x, np.float32)


def prepare(isa: str, x: Array) -> Bytes:
    out = np.zeros((len(x), kernels.act_bytes(isa, "int8", x.shape[1])), np.uint8)
    kernels.act_prepare(isa, "int8_split", x, len(x), out)
    return out


def product(  # noqa: PLR0917
    isa: str, format: str, weight: Bytes, n: int, act: Bytes, k: int
) -> Array:
    tiles = -(-n // 16)
    out = np.empty((len(act), 16 * tiles), np.float32)
    kernels.product(isa, format, weight, tiles, k, act, len(act), out, 16 * tiles)
    return out


def screen(isa: str, weight: Bytes, n: int, act: Bytes, k: int) -> tuple[Array, Array]:
    high = np.empty((len(act), -(-n // 16)), np.float32)
    low = np.empty_like(high)
    kernels.screen(isa, weight, high.shape[1], k, act, len(act), high, low)
    return high, low


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_products_and_rows_are_int8_s(isa: str, n: int, k: int) -> None:
    grid = grid_of(n, k)
    whole, split = pack_grid(grid), pack_split(grid)
    x = rows_of(33, k, "plain", grid)
    for m in (1, 2, 3, 4, 5, 6, 7, 11, 33):
        act = prepare(isa, x[:m])
        want = product(isa, "int8", whole, n, act, k)
        assert product(isa, "int8_split", split, n, act, k).tobytes() == want.tobytes(), m
    for index in {0, n // 2, n - 1}:
        a, b = np.empty(k, np.float32), np.empty(k, np.float32)
        kernels.lookup(isa, "int8", whole, index, a)
        kernels.lookup(isa, "int8_split", split, index, b)
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_grid_comes_back(n: int, k: int) -> None:
    grid = grid_of(n, k)
    packed = pack_split(grid)
    assert packed.size == FORMATS["int8_split"].matrix_bytes(n, k)
    back = unpack_grid(packed, "int8_split", n, k)
    np.testing.assert_array_equal(back.quant, grid.quant)
    np.testing.assert_array_equal(back.scale, grid.scale)
    radius = split_parts(packed, n, k)[0].view(np.float32)
    assert np.isfinite(radius).all()
    assert (radius[:n] > 0).all()
    assert (radius[n:] == 0).all()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from(SCALES),
    st.sampled_from(QUANTS),
    st.sampled_from(ROWS),
    st.integers(1, 2),
    st.integers(0, 99),
)
def test_bounds_hold(  # noqa: PLR0917
    isa: str, shape: tuple[int, int], scales: str, quants: str, rows: str, m: int, seed: int
) -> None:
    n, k = shape
    grid = grid_of(n, k, scales, quants, seed)
    split, act = pack_split(grid), prepare(isa, rows_of(m, k, rows, grid, seed))
    high, low = screen(isa, split, n, act, k)
    whole = n // 16
    exact = product(isa, "int8_split", split, n, act, k)[:, : 16 * whole].reshape(m, whole, 16)
    assert np.isfinite(high).all()
    assert np.isfinite(low).all()
    assert (high[:, :whole] >= exact.max(axis=2)).all()
    assert (low[:, :whole] <= exact.max(axis=2)).all()
    want = screen("generic", split, n, act, k)
    assert (high.tobytes(), low.tobytes()) == (want[0].tobytes(), want[1].tobytes())


@pytest.mark.parametrize("isa", ISAS)
def test_bounds_are_of_use(isa: str) -> None:
    grid = grid_of(960, 576)
    act = prepare(isa, rows_of(1, 576, "plain", grid))
    high, low = screen(isa, pack_split(grid), 960, act, 576)
    exact = product(isa, "int8", pack_grid(grid), 960, act, 576)
    assert (high - low).max() < exact.std()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_no_bounds_for_rows_that_are_no_numbers(isa: str, bad: float) -> None:
    grid = grid_of(48, 100)
    x = rows_of(2, 100, "plain", grid)
    x[1, 77] = bad
    for bounds in screen(isa, pack_split(grid), 48, prepare(isa, x), 100):
        assert np.isfinite(bounds[0]).all()
        assert np.isnan(bounds[1]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_bounds_for_scales_that_are_no_numbers(isa: str, bad: float) -> None:
    n, k = 48, 96
    grid = grid_of(n, k)
    packed = pack_split(grid)
    _, _, upper = split_parts(packed, n, k)
    upper[3 * 416 : 3 * 416 + 2] = np.frombuffer(np.float16(bad).tobytes(), np.uint8)  # tile 1
    act = prepare(isa, rows_of(1, k, "plain", grid))
    for bounds in screen(isa, packed, n, act, k):
        assert np.isnan(bounds[0]).tolist() == [False, True, False]
