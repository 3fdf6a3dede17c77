"""Attention over stored KV blocks, against NumPy, for every KV format and instruction set.

Owns: values (head sizes, windows, soft capping), independence of a row from its neighbours, slots
that nobody wrote, and the merge. Tolerances: what rounding queries and probabilities to the
format's grid costs, no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from subsecond import _native

attention = _native.attention
Array = npt.NDArray[np.float32]
View = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]  # the slots lo..hi-1 of each row

BLOCK = 64
ISAS = _native.kernels.isas()
FORMATS = ["f32", "bf16", "int8"]
HEAD_DIMS = [2, 18, 64, 80, 96, 128, 256]


def padded(head_dim: int) -> int:
    return -(-head_dim // 16) * 16


def bf16(x: Array) -> Array:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


def int8(x: Array) -> Array:
    """Each row rounded to 127 steps of its largest magnitude."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    rounded: Array = (np.rint(x / np.where(scale == 0, 1, scale)) * scale).astype(np.float32)
    return rounded


STORED = {"f32": lambda x: x, "bf16": bf16, "int8": int8}


def asked(isa: str, kv: str, q: Array) -> Array:
    """What a prepared query holds."""
    return int8(q) if kv == "int8" and isa != "generic" else q


def tolerance(isa: str, kv: str) -> float:
    """Relative to the largest value: what the kernel rounds (the reference rounds K and V)."""
    if kv == "int8":
        return 8e-3  # probabilities in 8 bits; a code of K or V may fall on the other side of a tie
    return 1e-2 if kv == "bf16" and isa == "avx512" else 3e-6


@dataclass
class Partial:
    """One block's result for some rows: m, l [rows], acc [rows, padded head_dim]."""

    m: Array
    l: Array  # noqa: E741
    acc: Array

    def same_bits(self, other: Partial, rows: slice = slice(None)) -> bool:
        mine = (self.m[rows], self.l[rows], self.acc[rows])
        return all(
            a.tobytes() == b.tobytes()
            for a, b in zip(mine, (other.m, other.l, other.acc), strict=True)
        )


def fill(
    isa: str, kv: str, k: Array, v: Array, first: int = 0, *, poison: int = 0
) -> npt.NDArray[np.uint8]:
    """A block whose slots first.. hold the rows of k and v; every other byte is `poison`."""
    block = np.full(attention.block_bytes(kv, k.shape[1]), poison, np.uint8)
    for slot in range(len(k)):
        attention.store(isa, kv, k[slot], v[slot], first + slot, block)
    return block


def attend(
    isa: str,
    kv: str,
    q: Array,
    block: npt.NDArray[np.uint8],
    view: View,
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> Partial:
    rows, head_dim = q.shape
    query = np.empty(rows * attention.query_bytes(isa, kv, head_dim), np.uint8)
    attention.query_prepare(isa, kv, np.ascontiguousarray(q), rows, scale, query)
    out = Partial(
        *(np.full(shape, np.nan, np.float32) for shape in (rows, rows, (rows, padded(head_dim))))
    )
    attention.attend(isa, kv, query, block, head_dim, *view, softcap, out.m, out.l, out.acc)
    return out


def reference(
    q: Array, k: Array, v: Array, seen: slice, *, scale: float, softcap: float = 0.0
) -> tuple[float, float, npt.NDArray[np.float64]]:
    s = (k[seen].astype(np.float64) @ q.astype(np.float64)) * scale
    if softcap:
        s = softcap * np.tanh(s / softcap)
    p = np.exp(s - s.max())
    return float(s.max()), float(p.sum()), p @ v[seen].astype(np.float64)


def ranges(*pairs: tuple[int, int]) -> View:
    lo, hi = zip(*pairs, strict=True)
    return np.array(lo, np.int32), np.array(hi, np.int32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("softcap", [0.0, 20.0])
def test_values(isa: str, kv: str, head_dim: int, softcap: float) -> None:
    rng = np.random.default_rng(head_dim)
    q, k, v = (rng.standard_normal((n, head_dim), np.float32) for n in (9, BLOCK, BLOCK))
    pairs = [(0, 64), (0, 1), (63, 64), (5, 6), (0, 33), (17, 64), (3, 50), (16, 48), (31, 33)]
    scale = 1.5 * head_dim**-0.5
    block = fill(isa, kv, k, v)
    got = attend(isa, kv, q, block, ranges(*pairs), scale=scale, softcap=softcap)
    q, stored_k, stored_v = asked(isa, kv, q), STORED[kv](k), STORED[kv](v)
    limit = tolerance(isa, kv)
    for r, (lo, hi) in enumerate(pairs):
        seen = slice(lo, hi)
        m, total, acc = reference(q[r], stored_k, stored_v, seen, scale=scale, softcap=softcap)
        shift = np.exp(float(got.m[r]) - m)  # a score's error moves m, l and acc together
        if kv != "int8":  # where m is near the largest score, not that
            assert abs(got.m[r] - m) <= limit * max(1.0, abs(m)) * 2
        assert abs(got.l[r] * shift - total) <= limit * total
        error = np.abs(got.acc[r, :head_dim] * shift / total - acc / total)
        assert error.max() <= limit * np.abs(v).max()
        assert not got.acc[r, head_dim:].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("head_dim", [64, 80, 256])
def test_a_row_has_the_same_bits_in_any_tile(isa: str, kv: str, head_dim: int) -> None:
    rng = np.random.default_rng(7)
    q, k, v = (3 * rng.standard_normal((n, head_dim), np.float32) for n in (25, BLOCK, BLOCK))
    block = fill(isa, kv, k, v)
    lo = rng.integers(0, 64, len(q)).astype(np.int32)
    hi = np.array([rng.integers(a, 65) for a in lo], np.int32)
    lo[::6], hi[::6] = 0, 64

    def tile(rows: slice) -> Partial:
        return attend(isa, kv, q[rows], block, (lo[rows], hi[rows]), scale=0.1)

    alone = [tile(slice(r, r + 1)) for r in range(len(q))]
    for first in (0, 1, 2, 5):
        for rows in (2, 3, 4, 5, 6, 7, 9, 11, 13, 20):
            together = tile(slice(first, first + rows))
            for r in range(rows):
                assert together.same_bits(alone[first + r], slice(r, r + 1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("poison", [0x00, 0x7F, 0xFF])  # all 0xff: NaN, or a NaN scale
def test_unseen_slots_are_never_used(isa: str, kv: str, poison: int) -> None:
    rng = np.random.default_rng(3)
    for first, count in ((0, 1), (0, 5), (0, 64), (7, 1), (13, 30), (33, 31), (62, 2)):
        q, k, v = (rng.standard_normal((n, 64), np.float32) for n in (7, count, count))
        lo = np.full(7, first, np.int32)
        hi = np.array([first + rng.integers(0, count + 1) for _ in range(7)], np.int32)
        lo[1] = hi[1]  # a row that sees nothing
        hi[2] = first + count
        clean = attend(isa, kv, q, fill(isa, kv, k, v, first), (lo, hi), scale=0.125)
        poisoned = fill(isa, kv, k, v, first, poison=poison)
        dirty = attend(isa, kv, q, poisoned, (lo, hi), scale=0.125)
        assert np.isfinite(clean.acc).all() and np.isfinite(clean.l).all()
        assert dirty.same_bits(clean)
        assert clean.m[1] == -np.inf and clean.l[1] == 0 and not clean.acc[1].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", FORMATS)
def test_nothing_in_view(isa: str, kv: str) -> None:
    block = np.full(attention.block_bytes(kv, 32), 0xFF, np.uint8)
    q = np.ones((8, 32), np.float32)
    none = attend(isa, kv, q, block, ranges(*[(r, r) for r in range(8)]))
    assert (none.m == -np.inf).all() and not none.l.any() and not none.acc.any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_values_stay_visible(isa: str, kv: str, where: str, bad: float) -> None:
    rng = np.random.default_rng(5)
    arrays = {
        name: rng.standard_normal((n, 64), np.float32)
        for name, n in (("q", 1), ("k", 64), ("v", 64))
    }
    arrays["q"][0, 3] = 1  # a key of +inf must not become a score of -inf, which weighs nothing
    arrays[where][0, 3] = bad
    got = attend(isa, kv, arrays["q"], fill(isa, kv, arrays["k"], arrays["v"]), ranges((0, 64)))
    assert not np.isfinite(got.acc / got.l[:, None]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", FORMATS)
def test_large_scores_do_not_overflow(isa: str, kv: str) -> None:
    rng = np.random.default_rng(6)
    q, k, v = (30 * rng.standard_normal((n, 64), np.float32) for n in (3, BLOCK, BLOCK))
    got = attend(isa, kv, q, fill(isa, kv, k, v), ranges((0, 64), (0, 64), (10, 20)))
    assert np.isfinite(got.acc).all() and (got.l >= 0.99).all() and (got.m > 1000).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", FORMATS)
def test_merging_blocks_gives_attention_over_all(isa: str, kv: str) -> None:
    rng = np.random.default_rng(8)
    blocks, head_dim, rows = 5, 80, 4
    q = rng.standard_normal((rows, head_dim), np.float32)
    k, v = (rng.standard_normal((blocks * BLOCK, head_dim), np.float32) for _ in range(2))
    seen = 4 * BLOCK + 9
    whole = Partial(
        np.full(rows, -np.inf, np.float32),
        np.zeros(rows, np.float32),
        np.zeros((rows, head_dim), np.float32),
    )
    for b in range(blocks):
        part = slice(b * BLOCK, (b + 1) * BLOCK)
        hi = np.full(rows, min(max(seen - b * BLOCK, 0), BLOCK), np.int32)
        block = fill(isa, kv, k[part], v[part])
        one = attend(isa, kv, q, block, (np.zeros(rows, np.int32), hi), scale=0.2)
        attention.merge(isa, whole.m, whole.l, whole.acc, one.m, one.l, one.acc)
    for r in range(rows):
        stored = (STORED[kv](k), STORED[kv](v))
        _, total, acc = reference(asked(isa, kv, q)[r], *stored, slice(0, seen), scale=0.2)
        error = np.abs(whole.acc[r] / whole.l[r] - acc / total).max()
        assert error <= tolerance(isa, kv) * np.abs(v).max()


@pytest.mark.parametrize("isa", ISAS)
def test_merge_with_nothing_changes_no_bit(isa: str) -> None:
    rng = np.random.default_rng(9)
    m, total, acc = rng.random(1, np.float32), rng.random(1, np.float32), rng.random(48, np.float32)
    nothing = (np.full(1, -np.inf, np.float32), np.zeros(1, np.float32), np.zeros(48, np.float32))
    left = (m.copy(), total.copy(), acc.copy())
    attention.merge(isa, *left, *nothing)
    right = tuple(x.copy() for x in nothing)
    attention.merge(isa, *right, m, total, acc)
    for got in (left, right):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(got, (m, total, acc), strict=True))
    both = tuple(x.copy() for x in nothing)
    attention.merge(isa, *both, *nothing)
    assert both[0][0] == -np.inf and both[1][0] == 0 and not both[2].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 15, 16, 1000, 1024, 4099, 49152])
def test_argmax_and_exp_sum(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x = (4 * rng.standard_normal(n)).astype(np.float32)
    assert attention.argmax(isa, x) == (x.max(), x.argmax())
    expected = np.exp((x.astype(np.float64) - x.max()) / 0.7).sum()
    got = attention.exp_sum(isa, x, float(x.max()), 1 / 0.7)
    assert got == pytest.approx(expected, rel=1e-5)
    same = attention.exp_sum("generic", x, float(x.max()), 1 / 0.7)
    assert got == same  # not approximately: draws rely on it
    x[n // 2] = x[n - 1] = x.max() + 1  # the first of two
    assert attention.argmax(isa, x) == (x.max(), n // 2)
    x[n // 3] = np.nan
    value, index = attention.argmax(isa, x)
    assert np.isnan(value) and index == -1
    x[:] = -np.inf
    assert attention.argmax(isa, x) == (-np.inf, 0)
