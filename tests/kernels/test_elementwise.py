"""Norms, activations and rope of every instruction set against NumPy in float64.

Owns: the accuracy, the bitwise agreement of everything that needs no exp, and the ends: NaN,
infinity, lengths that fill no whole vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from subsecond import _native

kernels = _native.kernels
Array = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]

ISAS = kernels.isas()
SIZES = [1, 2, 15, 16, 17, 31, 48, 100, 577]
KINDS = ["silu", "gelu_tanh", "gelu", "relu", "tanh"]


def values(n: int, seed: int = 0, spread: float = 3.0) -> Array:
    return (np.random.default_rng(seed + n).standard_normal(n) * spread).astype(np.float32)


def exact(kind: str, x: Array) -> Exact:
    z = x.astype(np.float64)
    match kind:
        case "silu":
            return z / (1 + np.exp(-z))
        case "gelu_tanh":
            # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u)), which does not cancel.
            return z / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        case "gelu":
            return 0.5 * z * np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)))(z)
        case "relu":
            return np.maximum(z, 0)
        case _:
            return np.tanh(z)


def run(call: Callable[[Array], None], n: int) -> Array:
    """What a kernel writes into n floats; the floats behind them must stay as they were."""
    memory = np.full(n + 16, 7.5, np.float32)
    call(memory[:n])
    assert (memory[n:] == 7.5).all()
    return memory[:n].copy()


def activation(isa: str, kind: str, x: Array) -> Array:
    return run(lambda y: kernels.activation(isa, kind, x, y), len(x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_accurate(isa: str, kind: str) -> None:
    x = np.concatenate(
        [np.linspace(-20, 20, 40001), np.logspace(-30, 0, 500), -np.logspace(-30, 0, 500)]
    ).astype(np.float32)
    got, want = activation(isa, kind, x), exact(kind, x)
    # gelu is 0.5 x (1 + erf): where 1 + erf cancels, the error is relative to x, not to the result.
    unit = np.abs(x) if kind == "gelu" else np.abs(want)
    # An exponent that is itself rounded costs as many epsilons of the result.
    t = np.abs(x).astype(np.float64)
    exponent = {"silu": t, "gelu_tanh": 1.6 * t + 0.072 * t**3}.get(kind, 0 * t)
    error = np.abs(got - want)
    bound = unit * (3e-7 + 2e-7 * exponent) + 1e-37
    assert (error <= bound).all(), float((error / bound).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_activations_at_the_ends(isa: str, kind: str) -> None:
    x = np.array([np.nan, np.inf, 3e38, -3e38, -200, 0.0, 200], np.float32)
    got = activation(isa, kind, x)
    assert np.isnan(got[0])
    top = 1 if kind == "tanh" else np.inf
    assert got[1] == top
    assert got[2] == (1 if kind == "tanh" else x[2])
    assert got[3] == (-1 if kind == "tanh" else 0)
    assert got[4] == (-1 if kind == "tanh" else 0)
    assert got[5] == 0
    assert got[6] == (1 if kind == "tanh" else 200)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_gated_is_activation_times_up(isa: str, kind: str, n: int) -> None:
    gate, up = values(n), values(n, 1)
    got = run(lambda y: kernels.gated(isa, kind, gate, up, y), n)
    assert np.array_equal(got, activation(isa, kind, gate) * up)
    # Where a value lies in the vector does not matter.
    whole = activation(isa, kind, gate)
    assert all(activation(isa, kind, gate[i : i + 1])[0] == whole[i] for i in range(n))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_rms_norm(isa: str, n: int) -> None:
    x, w = values(n), values(n, 1)
    z = x.astype(np.float64)
    unit = z / np.sqrt((z * z).mean() + 1e-5)
    for weight, want in ((w, unit * w), (None, unit)):
        got = run(lambda y, weight=weight: kernels.rms_norm(isa, x, weight, 1e-5, y), n)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        same = run(lambda y, weight=weight: kernels.rms_norm("generic", x, weight, 1e-5, y), n)
        assert got.tobytes() == same.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_layer_norm(isa: str, n: int, shift: float) -> None:
    x, w, b = values(n) + np.float32(shift), values(n, 1), values(n, 2)
    z = x.astype(np.float64)
    unit = (z - z.mean()) / np.sqrt(z.var() + 1e-5)
    slack = 1e-5 if shift == 0 else 2e-3  # the mean itself is rounded to float32
    for weight, bias in ((w, b), (w, None), (None, b), (None, None)):
        want = unit * (1 if weight is None else weight) + (0 if bias is None else bias)

        def call(
            y: Array, isa: str = isa, weight: Array | None = weight, bias: Array | None = bias
        ) -> None:
            kernels.layer_norm(isa, x, weight, bias, 1e-5, y)

        got = run(call, n)
        np.testing.assert_allclose(got, want, rtol=slack, atol=slack * 4)
        assert got.tobytes() == run(lambda y: call(y, "generic"), n).tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_norms_in_place(isa: str) -> None:
    x, w = values(100), values(100, 1)
    y = x.copy()
    kernels.rms_norm(isa, y, w, 1e-6, y)
    assert np.array_equal(y, run(lambda out: kernels.rms_norm(isa, x, w, 1e-6, out), 100))
    y = x.copy()
    kernels.layer_norm(isa, y, w, w, 1e-6, y)
    assert np.array_equal(y, run(lambda out: kernels.layer_norm(isa, x, w, w, 1e-6, out), 100))


@pytest.mark.parametrize("isa", ISAS)
def test_norms_of_nothing_and_of_nan(isa: str) -> None:
    zeros = np.zeros(40, np.float32)
    assert (run(lambda y: kernels.rms_norm(isa, zeros, None, 1e-6, y), 40) == 0).all()
    broken = values(40)
    broken[21] = np.nan
    assert np.isnan(run(lambda y: kernels.rms_norm(isa, broken, None, 1e-6, y), 40)).all()
    assert np.isnan(run(lambda y: kernels.layer_norm(isa, broken, None, None, 1e-6, y), 40)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_add_scale_softcap(isa: str, n: int) -> None:
    a, b = values(n), values(n, 1)
    assert np.array_equal(run(lambda y: kernels.add(isa, a, b, y), n), a + b)
    assert np.array_equal(run(lambda y: kernels.scale(isa, a, 0.3, y), n), a * np.float32(0.3))
    x = a * np.float32(20)
    want = 30 * np.tanh(x.astype(np.float64) / 30)
    got = run(lambda y: kernels.softcap(isa, x, 30.0, y), n)
    np.testing.assert_allclose(got, want, rtol=6e-7)
    assert (np.abs(got) <= 30).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [2, 16, 18, 32, 48, 64, 128])
def test_rope(isa: str, interleaved: bool, rotary: int) -> None:
    x, angle = values(rotary + 10), values(rotary // 2, 3)
    cosine, sine = np.cos(angle), np.sin(angle)
    got = x.copy()
    kernels.rope(isa, got, cosine, sine, interleaved)
    pairs = np.arange(rotary // 2)
    first = 2 * pairs if interleaved else pairs
    second = first + 1 if interleaved else pairs + rotary // 2
    z = x.astype(np.float64)
    want = z.copy()
    want[first] = z[first] * cosine - z[second] * sine
    want[second] = z[second] * cosine + z[first] * sine
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    assert np.array_equal(got[rotary:], x[rotary:])
    plain = x.copy()
    kernels.rope("generic", plain, cosine, sine, interleaved)
    assert got.tobytes() == plain.tobytes()
