"""Rotary position embeddings: inverse frequencies from a configuration.

They are rounded to float32 step by step, as the float32 frameworks do that models were made with.

Owns: reading rope_parameters (today's spelling) and rope_theta + rope_scaling (the older one), and
the scaling methods that are fixed numbers: default, linear, llama3 and longrope's short factors.
Methods whose frequencies depend on the length of the running sequence are refused by name.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace

from subsecond.errors import ModelError, UnsupportedError
from subsecond.models.config import ConfigReader


@dataclass(frozen=True, slots=True)
class Rope:
    """`inv_freq` has rotary / 2 values; `factor` multiplies cos and sin.

    `positions`, where given, is the longest context for which this is exact.
    """

    inv_freq: tuple[float, ...]
    factor: float = 1.0
    positions: int | None = None

    @property
    def rotary(self) -> int:
        return 2 * len(self.inv_freq)


@dataclass(frozen=True, slots=True)
class Base:
    """What scaling starts from: rotary frequencies of base theta, and the context in positions."""

    theta: float
    rotary: int
    max_positions: int


def f32(x: float) -> float:
    """x rounded to float32."""
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def frequencies(theta: float, rotary: int) -> list[float]:
    """1 / theta^(2i / rotary), every step rounded to float32."""
    return [f32(1.0 / f32(theta ** f32(2 * i / rotary))) for i in range(rotary // 2)]


def rotary_of(factor: float, head_dim: int) -> int:
    """The number of rotated values of a head. Raises ModelError where it is odd or does not fit."""
    rotary = int(head_dim * factor)
    if rotary % 2 or not 2 <= rotary <= head_dim:
        raise ModelError(
            f"partial rotary factor {factor} of head_dim {head_dim} gives {rotary} rotary values"
        )
    return rotary


def read_rope(
    config: ConfigReader,
    head_dim: int,
    max_positions: int,
    *,
    theta_keys: tuple[str, ...] = ("rope_theta",),
    partial_keys: tuple[str, ...] = (),
    partial: float = 1.0,
    original: int | None = None,
) -> Rope:
    """The rope of a model that has one kind.

    `theta_keys` and `partial_keys` are the family's names for the base and for the share of a head
    that is rotated (none: whole heads, another share is refused); `partial` is the default share.
    `original` is LongRoPE's default original context.
    """
    parameters = scaling(config)
    theta = _one_of(config, theta_keys, 10000.0)
    share = partial
    if partial_keys:
        share = _one_of(config, partial_keys, partial)
        if parameters is not None:
            share = parameters.number("partial_rotary_factor", share, high=1.0)
    else:
        config.only("partial_rotary_factor", 1.0, 1)
        if parameters is not None:
            parameters.only("partial_rotary_factor", 1.0, 1)
    base = Base(theta, rotary_of(share, head_dim), max_positions)
    return scaled(config, parameters, base, original)


def _one_of(config: ConfigReader, keys: tuple[str, ...], default: float) -> float:
    """The number under any of several names. Raises ModelError where they contradict each other."""
    given = {key: config.number(key, low=1e-6) for key in keys if config.has(key)}
    if len(set(given.values())) > 1:
        raise ModelError(f"config keys contradict each other: {given}")
    return next(iter(given.values()), default)


def scaling(config: ConfigReader) -> ConfigReader | None:
    """The scaling object under its new or older name. Raises ModelError where both are given."""
    if config.has("rope_parameters") and config.has("rope_scaling"):
        raise ModelError("config has both rope_parameters and rope_scaling; remove one of them")
    older = config.nested("rope_scaling")
    return config.nested("rope_parameters") or older


def scaled(
    config: ConfigReader,
    parameters: ConfigReader | None,
    base: Base,
    original: int | None = None,
) -> Rope:
    """The rope that `parameters` (one scaling object, or None) describes.

    `original` is the family's default original context of LongRoPE, None where it has no LongRoPE.
    """
    if parameters is None:
        return Rope(tuple(frequencies(base.theta, base.rotary)))
    theta = parameters.number("rope_theta", base.theta, low=1e-6)
    kind = _kind(parameters)
    base = replace(base, theta=theta)
    plain = frequencies(theta, base.rotary)
    for key in ("full_attention", "sliding_attention"):  # ropes by layer: the family has one
        parameters.only(key)
    if kind not in ("longrope", "su"):
        parameters.only("attention_factor", 1.0, 1)
    if kind == "default":
        parameters.only("factor", 1.0, 1)
        return Rope(tuple(plain))
    if kind == "linear":
        factor = parameters.number("factor", low=1e-6)
        return Rope(tuple(f32(x / factor) for x in plain))
    if kind == "llama3":
        return Rope(tuple(_llama3(parameters, plain, base.max_positions)))
    if kind in ("longrope", "su") and original is not None:
        return _longrope(config, parameters, base, original)
    known = "default, linear, llama3" + (", longrope" if original is not None else "")
    raise UnsupportedError(f"rope type {kind!r} is not supported by this family, only {known}")


def _kind(parameters: ConfigReader) -> str:
    """The scaling's type under its new or older name. Raises ModelError for a contradiction."""
    older = parameters.word("type", "")
    kind = parameters.word("rope_type", older or "default")
    if older and older != kind and {older, kind} != {"su", "longrope"}:
        raise ModelError(f"config: rope_type {kind!r} contradicts type {older!r}; remove one")
    if not older and not parameters.has("rope_type") and parameters.has("factor"):
        raise ModelError(
            "config: the rope scaling has a factor but no rope_type; add one, such as 'linear'"
        )
    return kind


def _llama3(parameters: ConfigReader, plain: list[float], max_positions: int) -> list[float]:
    """Llama 3.1's scaling: long wavelengths are stretched, short ones kept, a ramp between."""
    factor = parameters.number("factor", low=1e-6)
    low = parameters.number("low_freq_factor", low=1e-6)
    high = parameters.number("high_freq_factor", low=1e-6)
    original = parameters.integer("original_max_position_embeddings", max_positions)
    if high <= low:
        raise ModelError(
            f"llama3 rope: high_freq_factor {high} must be above low_freq_factor {low}"
        )
    result = []
    for x in plain:
        wavelength = 2 * math.pi / x
        if wavelength < original / high:
            result.append(x)
        elif wavelength > original / low:
            result.append(f32(x / factor))
        else:
            smooth = (original / wavelength - low) / (high - low)
            result.append(f32((1 - smooth) * x / factor + smooth * x))
    return result


def _longrope(
    config: ConfigReader,
    parameters: ConfigReader,
    base: Base,
    original: int,
) -> Rope:
    """LongRoPE (arXiv:2402.13753) with its short factors.

    The long factors apply to all positions of a sequence once it is longer than the original
    context, so keys that are cached already would change: only the original context can be exact.
    """
    key = "original_max_position_embeddings"
    inner = parameters.integer(key, original, low=2)
    original = config.integer(key, inner, low=2)
    short = parameters.numbers("short_factor", base.rotary // 2)
    parameters.numbers("long_factor", base.rotary // 2)
    ratio = base.max_positions / original
    if parameters.has("factor"):
        ratio = parameters.number("factor", low=1e-6)
    default = 1.0 if ratio <= 1.0 else math.sqrt(1 + math.log(ratio) / math.log(original))
    factor = parameters.number("attention_factor", default, low=1e-6)
    powers = [f32(base.theta ** f32(2 * i / base.rotary)) for i in range(base.rotary // 2)]
    inv_freq = tuple(f32(1.0 / f32(f32(s) * p)) for s, p in zip(short, powers, strict=True))
    return Rope(inv_freq, factor, original)
