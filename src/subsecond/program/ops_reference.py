"""NumPy references of the ops: what each op means.

Owns: one function an op, the grids that activations are rounded to, and the step that they read
(token ids, positions, sequences, KV store). Knows nothing of programs. Written to be read, not to
be fast; sums are NumPy's, so executors agree within the tolerance of the op table, not bitwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from subsecond.program.ops import Attributes, linear_count

F32 = npt.NDArray[np.float32]
_erf = np.vectorize(math.erf, otypes=[np.float64])
GROUP = 32  # K-group of the integer formats, csrc/kernels/formats.h


@dataclass(frozen=True, slots=True)
class Weight:
    """Values as f32 (what a quantized matrix stands for), and the format they are stored in."""

    values: F32
    format: str = "f32"


@dataclass(slots=True)
class SequenceCache:
    """One sequence: (group, layer) -> keys and values, each [positions, kv_heads, head_dim]."""

    length: int = 0
    layers: dict[tuple[int, int], tuple[F32, F32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What one call of an executor computes: sequence i owns the tokens start[i]:start[i + 1]."""

    tokens: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    start: tuple[int, ...]
    rows: npt.NDArray[np.int64]
    caches: tuple[SequenceCache, ...]
    kv: str = "f32"


Reference = Callable[[Sequence[F32], Sequence[Weight | None], Attributes, Step], F32]


def round_bf16(x: F32) -> F32:
    """x rounded to bfloat16, to nearest and ties to even; finite values only."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return np.asarray((rounded & np.uint32(0xFFFF0000)).view(np.float32), np.float32)


def round_int8(x: F32, group: int, *, power_of_two: bool) -> F32:
    """x on the s8 grid of each group of `group` along the last axis: scale absmax / 127, or the
    least power of two from there on; ties to even.
    """
    width = x.shape[-1]
    pad = -width % group
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)])
    groups = padded.reshape(*x.shape[:-1], -1, group).astype(np.float32)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    scale = largest / np.float32(127)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    if power_of_two:
        mantissa, exponent = np.frexp(scale)
        scale = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
        inverse = np.where(largest > 0, 1 / scale, np.float32(0))
    quantized = np.rint(groups * inverse) * scale
    return np.asarray(quantized.reshape(padded.shape)[..., :width], np.float32)


def prepared(x: F32, weight_format: str) -> F32:
    """Activations as products with that format see them (LinearKernel, csrc/kernels/ops.h)."""
    if weight_format == "f32":
        return x
    return round_bf16(x) if weight_format == "bf16" else round_int8(x, GROUP, power_of_two=True)


def _values(weight: Weight | None) -> F32:
    if weight is None:
        raise ValueError("a required weight is missing")
    return weight.values


def embed(
    inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step
) -> F32:
    ids = step.tokens if a["ids"] == "tokens" else step.positions
    return np.asarray(_values(weights[0])[ids] * np.float32(a["scale"]), np.float32)


def _normalize(x: F32, weight: Weight | None, bias: Weight | None, kind: str, eps: float) -> F32:
    wide = x.astype(np.float64)
    if kind == "layer":
        wide = wide - wide.mean(axis=-1, keepdims=True)
    wide = wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + eps)
    if weight is not None:
        wide = wide * weight.values
    if bias is not None:
        wide = wide + bias.values
    return np.asarray(wide, np.float32)


def norm(inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step) -> F32:
    x = inputs[0]
    grouped = x.reshape(x.shape[0], int(a["groups"]), -1)
    result = _normalize(grouped, weights[0], weights[1], str(a["kind"]), float(a["eps"]))
    return result.reshape(x.shape)


def linear(
    inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step
) -> F32:
    x = inputs[0]
    count = linear_count(weights)
    if a["norm"] != "none":
        x = _normalize(x, weights[-2], weights[-1], str(a["norm"]), float(a["eps"]))
    parts = []
    for matrix, bias in zip(weights[:count], weights[count : 2 * count], strict=True):
        if matrix is None:
            raise ValueError("linear: a matrix is missing")
        part = prepared(x, matrix.format) @ matrix.values.T
        parts.append(part if bias is None else part + bias.values)
    if a["gate"] != "none":
        result = activate(str(a["gate"]), parts[0]) * parts[1]
    else:
        result = np.concatenate(parts, axis=1)
    return result + inputs[1] if a["residual"] else result


def _rotate(x: F32, inv_freq: F32, a: Attributes, positions: npt.NDArray[np.int64]) -> F32:
    """x [T, heads, head_dim]; the angle is an f32 product, as in every framework."""
    rotary = int(a["rotary"])
    angle = positions.astype(np.float32)[:, None] * inv_freq[None, :]
    factor = np.float32(a["factor"])
    cosine, sine = (np.cos(angle) * factor)[:, None, :], (np.sin(angle) * factor)[:, None, :]
    result = x.copy()
    if a["interleaved"]:
        first, second = slice(0, rotary, 2), slice(1, rotary, 2)
    else:
        first, second = slice(0, rotary // 2), slice(rotary // 2, rotary)
    result[..., first] = x[..., first] * cosine - x[..., second] * sine
    result[..., second] = x[..., second] * cosine + x[..., first] * sine
    return result


def rope(inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step) -> F32:
    x = inputs[0]
    heads = x.reshape(x.shape[0], int(a["heads"]), int(a["head_dim"]))
    return _rotate(heads, _values(weights[0]), a, step.positions).reshape(x.shape)


def attention(
    inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step
) -> F32:
    heads, kv_heads, head_dim = int(a["heads"]), int(a["kv_heads"]), int(a["head_dim"])
    packed = inputs[0].reshape(inputs[0].shape[0], heads + 2 * kv_heads, head_dim)
    q, k, v = packed[:, :heads], packed[:, heads : heads + kv_heads], packed[:, heads + kv_heads :]
    if weights[0] is not None:
        q = _normalize(q, weights[0], None, "rms", float(a["eps"]))
        k = _normalize(k, weights[1], None, "rms", float(a["eps"]))
    if a["rotary"]:
        q = _rotate(q, _values(weights[2]), a, step.positions)
        k = _rotate(k, _values(weights[2]), a, step.positions)
    q = q * np.float32(a["scale"])
    if step.kv == "bf16":
        k, v = round_bf16(k), round_bf16(v)
    elif step.kv == "int8":
        k = round_int8(k, head_dim, power_of_two=False)
        v = round_int8(v, head_dim, power_of_two=False)
    place = (int(a["group"]), int(a["layer"]))
    result = np.empty_like(q)
    for index, cache in enumerate(step.caches):
        tokens = slice(step.start[index], step.start[index + 1])
        keys, values = k[tokens], v[tokens]
        if place in cache.layers:
            keys = np.concatenate([cache.layers[place][0], keys])
            values = np.concatenate([cache.layers[place][1], values])
        cache.layers[place] = (keys, values)
        result[tokens] = _attend(q[tokens], keys, values, step.positions[tokens], a)
    return result.reshape(result.shape[0], heads * head_dim)


def _attend(q: F32, keys: F32, values: F32, positions: npt.NDArray[np.int64], a: Attributes) -> F32:
    """q [t, heads, d] at `positions` over keys, values [p, kv_heads, d] at 0..p; query heads share
    KV heads in turn.
    """
    share = q.shape[1] // keys.shape[1]
    grouped = q.reshape(q.shape[0], keys.shape[1], share, q.shape[2])
    scores = np.einsum("tgsd,pgd->gstp", grouped, keys, optimize=True)
    if cap := float(a["softcap"]):
        scores = np.tanh(scores / np.float32(cap)) * np.float32(cap)
    distance = positions[:, None] - np.arange(keys.shape[0])[None, :]
    seen = distance >= 0
    if window := int(a["window"]):
        seen &= distance < window
    scores = np.where(seen, scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores = scores / scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("gstp,pgd->tgsd", scores.astype(np.float32), values, optimize=True)
    return np.asarray(mixed.reshape(q.shape), np.float32)


def activate(kind: str, x: F32) -> F32:
    """The activation `kind` of x; gelu is the exact one, gelu_tanh its usual approximation."""
    if kind == "silu":
        return np.asarray(x / (1.0 + np.exp(-np.clip(x, -80.0, None))), np.float32)
    if kind == "gelu":
        return np.asarray(0.5 * x * (1.0 + _erf(x / np.sqrt(2.0))), np.float32)
    if kind == "gelu_tanh":
        inner = np.float32(np.sqrt(2.0 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.asarray(0.5 * x * (1.0 + np.tanh(inner)), np.float32)
    return np.maximum(x, np.float32(0)) if kind == "relu" else np.tanh(x)


def activation(
    inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step
) -> F32:
    return activate(str(a["kind"]), inputs[0])


def gated(
    inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step
) -> F32:
    return activate(str(a["kind"]), inputs[0]) * inputs[1]


def add(inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step) -> F32:
    return inputs[0] + inputs[1]


def scale(
    inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step
) -> F32:
    return inputs[0] * np.float32(a["factor"])


def softcap(
    inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step
) -> F32:
    cap = np.float32(a["cap"])
    return np.asarray(np.tanh(inputs[0] / cap) * cap, np.float32)


def slice_(
    inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step
) -> F32:
    start = int(a["start"])
    return inputs[0][:, start : start + int(a["size"])]


def concat(
    inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step
) -> F32:
    return np.concatenate(inputs, axis=1)


def gather(
    inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step
) -> F32:
    return inputs[0][step.rows]


def pool(inputs: Sequence[F32], weights: Sequence[Weight | None], a: Attributes, step: Step) -> F32:
    x, kind = inputs[0], a["kind"]
    result = []
    for begin, end in zip(step.start, step.start[1:], strict=False):
        tokens = x[begin:end]
        result.append(
            tokens[0] if kind == "cls" else tokens[-1] if kind == "last" else tokens.mean(axis=0)
        )
    return np.stack(result)


REFERENCES: Mapping[str, Reference] = {
    "embed": embed,
    "norm": norm,
    "linear": linear,
    "rope": rope,
    "attention": attention,
    "activation": activation,
    "gated": gated,
    "add": add,
    "scale": scale,
    "softcap": softcap,
    "slice": slice_,
    "concat": concat,
    "gather": gather,
    "pool": pool,
}
