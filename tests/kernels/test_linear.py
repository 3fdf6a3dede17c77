"""Matrix products of every weight format and instruction set against NumPy.

Owns: the numbers (exact integer grid, tolerances), the same-bits contract (rows, tiles and cuts do
not matter), and what NaN, infinity and extreme values do. The layout of weights comes from
`formats.pack`, so a change of either side shows here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from subsecond import _native
from subsecond.formats.pack import Grid, from_bf16, pack_float, pack_grid, to_bf16, unpack

kernels = _native.kernels
Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

ISAS = kernels.isas()
FORMATS = ["f32", "bf16", "int8", "int4"]
INTEGER = ["int8", "int4"]
SHAPES = [(1, 1), (16, 32), (17, 33), (40, 100), (96, 576), (130, 257), (33, 2055)]  # n, k
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33]

GROUP = np.dtype(
    [("value", "i1", 32), ("scale", "<f4"), ("scaled_sum", "<f4"), ("offset_dot", "<i4")]
)


def weights(format: str, n: int, k: int, seed: int = 0) -> Bytes:
    """A packed random matrix [n, k]."""
    rng = np.random.default_rng(seed + 1000 * n + k)
    if format in ("f32", "bf16"):
        return pack_float(rng.standard_normal((n, k)).astype(np.float32), format)
    groups = -(-k // 32)
    scale = rng.uniform(0.001, 0.1, (n, groups)).astype(np.float16)
    minimum = None
    if format == "int4":
        minimum = (-scale * rng.uniform(0, 15, (n, groups))).astype(np.float16)
    quant = rng.integers(0, 16 if format == "int4" else 256, (n, k), dtype=np.uint8)
    return pack_grid(Grid(format, scale, minimum, quant))


def activations(m: int, k: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed + 77 * m + k)
    return (rng.standard_normal((m, k)) * rng.uniform(0.1, 4, (m, 1))).astype(np.float32)


def prepare(isa: str, format: str, x: Array) -> Bytes:
    out = np.zeros((len(x), kernels.act_bytes(isa, format, x.shape[1])), np.uint8)
    kernels.act_prepare(isa, format, np.ascontiguousarray(x), len(x), out)
    return out


def groups_of(row: Bytes, k: int) -> npt.NDArray[np.void]:
    return row[: -(-k // 32) * GROUP.itemsize].view(GROUP)


def product(  # noqa: PLR0917
    isa: str, format: str, weight: Bytes, tiles: int, k: int, act: Bytes
) -> Array:
    out = np.empty((len(act), 16 * tiles), np.float32)
    kernels.product(isa, format, weight, tiles, k, act, len(act), out, 16 * tiles)
    return out


def on_grid(format: str, x: Array) -> npt.NDArray[np.float64]:
    """Activations as the format sees them, by the contract's own words."""
    if format == "f32":
        return x.astype(np.float64)
    if format == "bf16":
        return from_bf16(to_bf16(x)).astype(np.float64)
    m, k = x.shape
    padded = np.zeros((m, -(-k // 32) * 32), np.float32)
    padded[:, :k] = x
    groups = padded.reshape(m, -1, 32)
    absmax = np.abs(groups).max(axis=2, keepdims=True)
    with np.errstate(divide="ignore"):
        scale = np.exp2(np.ceil(np.log2((absmax / np.float32(127)).astype(np.float64))))
    values = np.rint(np.divide(groups, scale, where=scale > 0, out=np.zeros_like(scale * groups)))
    return (values * scale).reshape(m, -1)[:, :k]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_product_is_the_matrix_product(isa: str, format: str, n: int, k: int) -> None:
    weight, tiles = weights(format, n, k), -(-n // 16)
    for m in (1, 5, 16):
        x = activations(m, k)
        got = product(isa, format, weight, tiles, k, prepare(isa, format, x))[:, :n]
        w, a = unpack(weight, format, n, k).astype(np.float64), on_grid(format, x)
        # Rounding grows with the number of float additions and with what cancels.
        magnitude = np.abs(a) @ np.abs(w).T + np.abs(x).max() * np.abs(w).max()
        np.testing.assert_array_less(np.abs(got - a @ w.T), 3e-6 * magnitude + 1e-30)


@pytest.mark.parametrize("format", ["f32", "int8", "int4"])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_instruction_sets_agree_bitwise(format: str, n: int, k: int) -> None:
    weight, tiles, x = weights(format, n, k), -(-n // 16), activations(7, k)
    results = {isa: product(isa, format, weight, tiles, k, prepare(isa, format, x)) for isa in ISAS}
    for isa in ISAS:
        assert results[isa].tobytes() == results["generic"].tobytes(), isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("k", [33, 576])
def test_rows_do_not_depend_on_their_number(isa: str, format: str, k: int) -> None:
    tiles = 7
    weight = weights(format, 16 * tiles, k)
    act = prepare(isa, format, activations(max(ROWS), k))
    alone = np.concatenate([product(isa, format, weight, tiles, k, row[None]) for row in act])
    for m in ROWS:
        assert product(isa, format, weight, tiles, k, act[:m]).tobytes() == alone[:m].tobytes(), m


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("m", [1, 4, 6, 11])
def test_tiles_may_be_cut_anywhere(isa: str, format: str, m: int) -> None:
    tiles, k = 9, 100
    weight = weights(format, 16 * tiles, k).reshape(tiles, -1)
    act = prepare(isa, format, activations(m, k))
    whole = product(isa, format, weight.reshape(-1), tiles, k, act)
    for first in range(tiles):
        for count in range(1, tiles - first + 1):
            part = np.ascontiguousarray(weight[first : first + count]).reshape(-1)
            got = product(isa, format, part, count, k, act)
            assert np.array_equal(got, whole[:, 16 * first : 16 * (first + count)]), (first, count)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
def test_product_writes_its_own_columns_only(isa: str, format: str) -> None:
    tiles, k, m, stride = 3, 64, 6, 61
    out = np.full((m, stride), 7.5, np.float32)
    act = prepare(isa, format, activations(m, k))
    kernels.product(isa, format, weights(format, 48, k), tiles, k, act, m, out, stride)
    assert (out[:, 48:] == 7.5).all()
    assert np.array_equal(out[:, :48], product(isa, format, weights(format, 48, k), tiles, k, act))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", INTEGER)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_largest_dots_are_exact(isa: str, format: str, sign: float) -> None:
    n, k, top = 16, 64, 15 if format == "int4" else 255
    scale = np.ones((n, 2), np.float16)
    minimum = np.zeros((n, 2), np.float16) if format == "int4" else None
    weight = pack_grid(Grid(format, scale, minimum, np.full((n, k), top, np.uint8)))
    x = np.full((1, k), 127.0 * sign, np.float32)
    want = sign * 127.0 * k * (top if format == "int4" else top - 128)
    assert (product(isa, format, weight, 1, k, prepare(isa, format, x)) == want).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [1, 31, 32, 33, 48, 576])
def test_prepared_rows_are_on_the_grid(isa: str, k: int) -> None:
    x = activations(3, k)
    for row, prepared in zip(x, prepare(isa, "int4", x), strict=True):
        groups = groups_of(prepared, k)
        values = groups["value"].reshape(-1)
        assert np.array_equal(values[k:], np.zeros(len(values) - k))
        got = values.astype(np.float64) * np.repeat(groups["scale"].astype(np.float64), 32)
        assert np.array_equal(got[:k], on_grid("int4", row[None])[0])
        sums = groups["value"].sum(axis=1, dtype=np.int32)
        assert np.array_equal(groups["scaled_sum"], groups["scale"] * sums.astype(np.float32))
        assert np.array_equal(groups["offset_dot"], -128 * sums)


@pytest.mark.parametrize("format", FORMATS)
def test_prepared_rows_are_the_same_bits_everywhere(format: str) -> None:
    x = activations(4, 1000)
    x[1, 5], x[2, 40], x[3, 64:96] = np.nan, np.inf, 1e-39
    want = prepare("generic", format, x)
    for isa in ISAS:
        assert np.array_equal(prepare(isa, format, x), want), isa


@pytest.mark.parametrize("isa", ISAS)
def test_halves_round_to_even(isa: str) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :6] = 127, 0.5, 1.5, 2.5, -0.5, -1.5
    assert groups_of(prepare(isa, "int8", x)[0], 32)["value"][0][:6].tolist() == [
        127, 0, 2, 2, 0, -2,
    ]  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", INTEGER)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-39, 1.1754944e-38, 3e-38])
def test_vanishing_groups_count_as_zeros(isa: str, format: str, value: float) -> None:
    x = np.full((1, 32), value, np.float32)
    group = groups_of(prepare(isa, format, x)[0], 32)[0]
    assert group.tobytes() == bytes(GROUP.itemsize)
    assert (
        product(isa, format, weights(format, 16, 32), 1, 32, prepare(isa, format, x)) == 0
    ).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", INTEGER)
@pytest.mark.parametrize("size", [2e-35, 1e-20, 1e20, 3.4e38])
def test_extreme_scales_keep_their_precision(isa: str, format: str, size: float) -> None:
    x = activations(1, 64)
    x *= np.float32(size) / np.abs(x).max()
    groups = groups_of(prepare(isa, format, x)[0], 64)
    scale = groups["scale"].astype(np.float64)[:, None]
    assert (np.frexp(scale)[0] == 0.5).all()
    largest = np.abs(groups["value"].astype(int)).max(axis=1)
    assert (largest >= 63).all()
    assert (largest <= 127).all()
    error = np.abs(groups["value"] * scale - x.reshape(2, 32).astype(np.float64))
    assert (error <= scale / 2).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 17, 33, 63, 99])
def test_a_bad_activation_poisons_its_row_and_no_other(
    isa: str, format: str, bad: float, at: int
) -> None:
    x = activations(5, 100)
    weight = weights(format, 32, 100)
    clean = product(isa, format, weight, 2, 100, prepare(isa, format, x))
    x[2, at] = bad
    got = product(isa, format, weight, 2, 100, prepare(isa, format, x))
    assert not np.isfinite(got[2]).any()
    keep = [0, 1, 3, 4]
    assert np.array_equal(got[keep], clean[keep])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", INTEGER)
def test_a_bad_weight_scale_poisons_its_channel_and_no_other(isa: str, format: str) -> None:
    n, k = 32, 64
    packed = weights(format, n, k)
    clean = product(isa, format, packed, 2, k, prepare(isa, format, activations(5, k)))
    broken = packed.copy()
    broken[:2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)  # channel 0, group 0
    got = product(isa, format, broken, 2, k, prepare(isa, format, activations(5, k)))
    assert np.isnan(got[:, 0]).all()
    assert np.array_equal(got[:, 1:], clean[:, 1:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_lookup_reads_a_row(isa: str, format: str, n: int, k: int) -> None:
    weight = weights(format, n, k)
    want = unpack(weight, format, n, k)
    for index in {0, n // 2, n - 1}:
        out = np.empty(k, np.float32)
        kernels.lookup(isa, format, weight, index, out)
        assert np.array_equal(out, want[index])
