"""Rotary position embeddings: inverse frequencies from a configuration.

They are rounded to float32 step by step, as the float32 frameworks do that models were made with.

Owns: reading rope_parameters (today's spelling) and rope_theta + rope_scaling (the older one), and
the scaling methods that are fixed numbers: default, linear, llama3, yarn (arXiv:2309.00071) and
longrope's short factors. Methods whose frequencies depend on the length of the running sequence are
refused by name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from subsecond.errors import ModelError, UnsupportedError
from subsecond.models.config import ConfigReader


@dataclass(frozen=True, slots=True)
class Rope:
    """`inv_freq` has rotary / 2 values; `factor` multiplies cos and sin.

    `positions` is the context that it is made for: the configuration's, a shorter one where only
    that is exact, or a longer one where it was stretched.
    """

    inv_freq: tuple[float, ...]
    positions: int
    factor: float = 1.0
    warnings: tuple[str, ...] = ()

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
    theta = one_of(config, parameters, theta_keys, "rope_theta", 10000.0)
    share = partial
    if partial_keys:
        share = one_of(config, parameters, partial_keys, "partial_rotary_factor", partial)
    else:
        config.only("partial_rotary_factor", 1.0, 1)
        if parameters is not None:
            parameters.only("partial_rotary_factor", 1.0, 1)
    base = Base(theta, rotary_of(share, head_dim), max_positions)
    return scaled(config, parameters, base, original)


def one_of(
    config: ConfigReader,
    parameters: ConfigReader | None,
    keys: tuple[str, ...],
    inner: str,
    default: float,
) -> float:
    """The number under any of several names, or under `inner` of the scaling object.

    Raises ModelError where they contradict each other.
    """
    given = {key: config.number(key, low=1e-6) for key in keys if config.has(key)}
    if parameters is not None and parameters.has(inner):
        given[parameters.name(inner)] = parameters.number(inner, low=1e-6)
    return _agreed(given, default)


def _agreed(given: Mapping[str, float], default: float) -> float:
    if len(set(given.values())) > 1:
        values = ", ".join(f"{key} {value:g}" for key, value in given.items())
        raise ModelError(f"config keys contradict each other: {values}; remove the wrong one")
    return next(iter(given.values()), default)


def scaling(config: ConfigReader) -> ConfigReader | None:
    """The scaling object under its new or older name. Raises ModelError where both are given and
    differ."""
    if not (config.has("rope_parameters") and config.has("rope_scaling")):
        return config.nested("rope_parameters") or config.nested("rope_scaling")
    if not config.equal("rope_parameters", "rope_scaling"):
        raise ModelError(
            "config has both rope_parameters and rope_scaling, and they differ; remove one of them"
        )
    config.ignore("rope_scaling")
    return config.nested("rope_parameters")


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
        return Rope(tuple(frequencies(base.theta, base.rotary)), base.max_positions)
    base = replace(base, theta=parameters.number("rope_theta", base.theta, low=1e-6))
    kind = _kind(parameters)
    if original is not None and kind in ("su", "yarn") and parameters.has("short_factor"):
        kind = "longrope"  # its names in older configurations of Phi-3
    for key in ("full_attention", "sliding_attention"):  # ropes by layer: the family has one
        parameters.only(key)
    parameters.only("mrope_section")
    if kind not in ("longrope", "yarn"):
        parameters.only("attention_factor", 1.0, 1)
    plain = frequencies(base.theta, base.rotary)
    if kind == "default":
        parameters.only("factor", 1.0, 1)
        return Rope(tuple(plain), base.max_positions)
    if kind == "linear":
        factor = parameters.number("factor", low=1e-6)
        return Rope(tuple(f32(x / factor) for x in plain), base.max_positions)
    if kind == "llama3":
        inv_freq = _llama3(config, parameters, plain, base.max_positions)
        return Rope(tuple(inv_freq), base.max_positions)
    if kind == "yarn":
        return _yarn(config, parameters, base)
    if kind == "longrope" and original is not None:
        return _longrope(config, parameters, base, original)
    known = "default, linear, llama3, yarn" + (", longrope" if original is not None else "")
    raise UnsupportedError(
        f"config key {parameters.name('rope_type')} = {kind!r} is not supported by this family, "
        f"only {known}"
    )


def _original(config: ConfigReader, parameters: ConfigReader, default: int) -> int:
    """The context before scaling, from the scaling object or from the configuration itself."""
    key = "original_max_position_embeddings"
    readers = [reader for reader in (parameters, config) if reader.has(key)]
    given = {reader.name(key): reader.integer(key, low=2) for reader in readers}
    return int(_agreed(given, default))


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


def _llama3(
    config: ConfigReader, parameters: ConfigReader, plain: list[float], max_positions: int
) -> list[float]:
    """Llama 3.1's scaling: long wavelengths are stretched, short ones kept, a ramp between."""
    factor = parameters.number("factor", low=1e-6)
    low = parameters.number("low_freq_factor", low=1e-6)
    high = parameters.number("high_freq_factor", low=1e-6)
    original = _original(config, parameters, max_positions)
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


def _yarn(config: ConfigReader, parameters: ConfigReader, base: Base) -> Rope:
    """YaRN (arXiv:2309.00071): slow frequencies are divided by the factor, fast ones kept, a ramp
    between; cos and sin are multiplied by a temperature.

    The context is the original one times the factor, or the configuration's where that is longer.
    """
    original = _original(config, parameters, base.max_positions)
    ratio = base.max_positions / original
    scale = parameters.number("factor", ratio, low=1.0, high=1e4)
    low = _yarn_dimension(parameters.number("beta_fast", 32.0, low=1e-6), original, base)
    high = _yarn_dimension(parameters.number("beta_slow", 1.0, low=1e-6), original, base)
    if parameters.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, base.rotary - 1)
    if high < low:
        raise ModelError(
            f"yarn rope: {parameters.name('beta_fast')}, beta_slow and the original context "
            f"{original} leave no range of frequencies; correct them"
        )
    width = high - low or 0.001
    inv_freq = []
    for index in range(base.rotary // 2):
        power = f32(base.theta ** f32(2 * index / base.rotary))
        keep = f32(1 - min(max(f32(f32(index - low) / f32(width)), 0.0), 1.0))
        slow = f32(f32(1.0 / f32(f32(scale) * power)) * f32(1 - keep))
        inv_freq.append(f32(slow + f32(f32(1.0 / power) * keep)))
    return Rope(
        tuple(inv_freq),
        max(base.max_positions, min(int(original * scale), 1 << 30)),
        parameters.number("attention_factor", _yarn_temperature(parameters, scale), low=1e-6),
    )


def _yarn_dimension(turns: float, original: int, base: Base) -> float:
    """The (fractional) index of the frequency that makes so many turns within `original`."""
    if base.theta <= 1.0:
        raise ModelError(f"yarn rope: rope_theta {base.theta} must be above 1")
    return base.rotary * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base.theta))


def _yarn_temperature(parameters: ConfigReader, scale: float) -> float:
    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(scale) + 1.0 if scale > 1 else 1.0

    above = parameters.number("mscale", 0.0)
    below = parameters.number("mscale_all_dim", 0.0)
    # Zero is "not given" here, as in the configurations that these keys come from.
    return temperature(above) / temperature(below) if above and below else temperature(1.0)


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
    original = _original(config, parameters, original)
    short = parameters.numbers("short_factor", base.rotary // 2)
    parameters.numbers("long_factor", base.rotary // 2)
    ratio = base.max_positions / original
    if parameters.has("factor"):
        ratio = parameters.number("factor", low=1e-6)
    default = 1.0 if ratio <= 1.0 else math.sqrt(1 + math.log(ratio) / math.log(original))
    factor = parameters.number("attention_factor", default, low=1e-6)
    powers = [f32(base.theta ** f32(2 * i / base.rotary)) for i in range(base.rotary // 2)]
    inv_freq = tuple(f32(1.0 / f32(f32(s) * p)) for s, p in zip(short, powers, strict=True))
    if base.max_positions <= original:
        return Rope(inv_freq, base.max_positions, factor)
    warning = (
        f"the context is limited to {original} of {base.max_positions} positions: beyond its "
        "original context, LongRoPE changes the keys of earlier tokens"
    )
    return Rope(inv_freq, original, factor, (warning,))
