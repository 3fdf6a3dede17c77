"""How long a step takes: a model of its seconds, corrected by every step that is measured.

Owns: the shape of a step as the model sees it, the prediction, its correction and its margin, the
JSON that keeps it. Does not know: clocks, engines, where it is kept, how it was fitted
(`calibration`). `bench.cost` counts a program's bytes and operations, which is another matter.

The model is linear in four quantities of a step, with coefficients that are never negative:

    seconds = curve(tokens) + a * positions + b * stored + r * rows

`curve` is piecewise linear and never falls: few tokens cost what the weights take to be read, many
what their arithmetic takes. `positions` counts a token and a position that it looks at (arithmetic
of attention), `stored` a sequence and a position that it holds (keys and values are read once a
step for all of a sequence's tokens; in decode this is the dearer by far).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from subsecond.errors import InputError

MAX_POINTS = 64
MAX_TOKENS = 1 << 16
MAX_SECONDS = 3600.0
LEAST_SCALE, MOST_SCALE = 0.25, 8.0
MOST_MARGIN = 4.0
MARGIN = 1.15  # before residuals are known: what the machines that this was made on came to
SPAN_S = 0.25  # of steps whose sum is compared with its prediction: less than most deadlines
_JSON_BYTES = 1 << 16
_FORMAT = 1


class StepShape(msgspec.Struct, frozen=True):
    """What a step computes: all that its time is predicted from.

    tokens      computed, of all sequences
    rows        of logits
    sequences   that have tokens in it
    positions   summed over its tokens: the KV positions that the token looks at
    stored      summed over its sequences: the KV positions that the sequence holds after the step.
                For a step that only decodes, this is `positions`
    """

    tokens: int
    rows: int
    sequences: int
    positions: int
    stored: int = 0


def shape_of(parts: Sequence[tuple[int, int, int]]) -> StepShape:
    """The shape of a step of `parts`, one a sequence: tokens that it computes, positions that were
    stored before, rows of logits.
    """
    tokens = rows = positions = stored = 0
    for count, context, chosen in parts:
        tokens += count
        rows += chosen
        positions += count * context + count * (count + 1) // 2
        stored += context + count
    return StepShape(tokens, rows, len(parts), positions, stored)


class Coefficients(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fitted numbers. curve: (tokens, seconds), tokens rising from 1, seconds never falling.
    The others are seconds for one position, one stored position, one row.
    """

    curve: tuple[tuple[int, float], ...]
    position_s: float
    stored_s: float
    row_s: float

    def check(self) -> None:
        """InputError naming the key whose value can't be."""
        if not 1 <= len(self.curve) <= MAX_POINTS:
            raise InputError(f"curve has {len(self.curve)} points, not 1 to {MAX_POINTS}")
        if self.curve[0][0] != 1:
            raise InputError(f"curve begins at {self.curve[0][0]} tokens, not at 1")
        before, least = 0, 0.0
        for tokens, seconds in self.curve:
            if not before < tokens <= MAX_TOKENS:
                raise InputError(
                    f"curve: {tokens} tokens after {before}; they must rise, to {MAX_TOKENS} at "
                    "most"
                )
            # The comparison is false for NaN.
            if not (least <= seconds <= MAX_SECONDS and seconds > 0):
                raise InputError(
                    f"curve: {seconds} s for {tokens} tokens; seconds must be above 0, never fall, "
                    f"and be at most {MAX_SECONDS:g}"
                )
            before, least = tokens, seconds
        for key in ("position_s", "stored_s", "row_s"):
            value = getattr(self, key)
            if not 0 <= value <= MAX_SECONDS:
                raise InputError(f"{key} is {value}, not from 0 to {MAX_SECONDS:g}")


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON: what a later start may begin with."""

    format: int
    coefficients: Coefficients
    scale: float
    margin: float


class CostModel:
    """Predicts the seconds of a step.

    coefficients: as fitted. max_tokens: most tokens of a step that is ever asked for; a table holds
    the curve up to there.
    quantile: of the relative residuals that the margin covers, 0.5 to 1.
    window: residuals that are remembered. span_s: consecutive steps of so many expected seconds
    make one residual.

    `predict` is the expectation, `bound` what promises are made from: the expectation times
    `margin`. The residual that the margin is a quantile of is that of a *sum* of consecutive
    steps, since a promise spans dozens of them: single steps vary more than any promise can.
    """

    def __init__(
        self,
        coefficients: Coefficients,
        *,
        max_tokens: int = 512,
        quantile: float = 0.99,
        window: int = 256,
        span_s: float = SPAN_S,
        scale: float = 1.0,
        margin: float = MARGIN,
    ) -> None:
        coefficients.check()
        _within("max_tokens", max_tokens, 1, MAX_TOKENS)
        _within("quantile", quantile, 0.5, 1.0)
        _within("window", window, 1, MAX_TOKENS)
        _within("span_s", span_s, 0.001, MAX_SECONDS)
        _within("scale", scale, LEAST_SCALE, MOST_SCALE)
        _within("margin", margin, 1.0, MOST_MARGIN)
        self.coefficients = coefficients
        self.table = _table(coefficients.curve, max_tokens)  # seconds, by tokens; [0] is 0
        self.quantile = quantile
        self.scale = scale  # recent seconds over those of the coefficients
        self.margin = margin
        self.factor = scale * margin  # what bounds are multiplied by
        self._span_s = span_s
        self._ratios: deque[float] = deque(maxlen=window)
        self._actual = self._expected = 0.0
        self._prior = margin

    def seconds(self, shape: StepShape) -> float:
        """The coefficients' own prediction, uncorrected."""
        c = self.coefficients
        return (
            self._curve(shape.tokens)
            + c.position_s * shape.positions
            + c.stored_s * shape.stored
            + c.row_s * shape.rows
        )

    def predict(self, shape: StepShape) -> float:
        """Expected seconds of a step."""
        return self.scale * self.seconds(shape)

    def bound(self, shape: StepShape) -> float:
        """Seconds that a step takes at most, as far as promises go."""
        return self.factor * self.seconds(shape)

    def observe(self, shape: StepShape, seconds: float) -> None:
        """Learns from a step that took `seconds`.

        The expectation follows by an exponential average over some 64 steps, in which a single step
        counts as at most twice its prediction: a stall of the machine is not a slower machine. The
        margin sees it whole.
        """
        expected = self.seconds(shape)
        if not 0 < seconds <= MAX_SECONDS or expected <= 0:
            return
        ratio = min(seconds, 2 * self.scale * expected) / expected
        scale = self.scale + (ratio - self.scale) / 64
        self.scale = min(max(scale, LEAST_SCALE), MOST_SCALE)
        self._actual += seconds
        self._expected += self.scale * expected
        if self._expected >= self._span_s:
            self._ratios.append(self._actual / self._expected)
            self._actual = self._expected = 0.0
            self.margin = self._learnt()
        self.factor = self.scale * self.margin

    def _learnt(self) -> float:
        """The quantile of the residuals so far. Before the window could show it, the margin that
        the model began with stands in for what hasn't been seen.
        """
        ratios = sorted(self._ratios)
        rank = math.ceil(self.quantile * len(ratios)) - 1
        margin = ratios[max(rank, 0)]
        if len(ratios) * (1 - self.quantile) < 1 and len(ratios) < (self._ratios.maxlen or 0):
            margin = max(margin, self._prior)
        return min(max(margin, 1.0), MOST_MARGIN)

    def _curve(self, tokens: int) -> float:
        table = self.table
        if tokens < len(table):
            return table[tokens]
        slope = table[-1] - table[-2]
        return table[-1] + slope * (tokens - len(table) + 1)

    def to_json(self) -> bytes:
        """The model as JSON: its coefficients, scale and margin; not the single residuals."""
        kept = _Kept(_FORMAT, self.coefficients, self.scale, self.margin)
        return msgspec.json.encode(kept)

    @classmethod
    def from_json(
        cls,
        data: bytes,
        *,
        max_tokens: int = 512,
        quantile: float = 0.99,
        window: int = 256,
        span_s: float = SPAN_S,
    ) -> CostModel:
        """A model from `to_json`'s bytes, which may come from anywhere. InputError for what isn't
        one.
        """
        if len(data) > _JSON_BYTES:
            raise InputError(
                f"the costs of steps are {len(data)} bytes of JSON, more than {_JSON_BYTES}; "
                "delete them to have them measured again"
            )
        try:
            kept = msgspec.json.decode(data, type=_Kept)
            if kept.format != _FORMAT:
                raise InputError(f"format is {kept.format}, not {_FORMAT}")
            return cls(
                kept.coefficients,
                max_tokens=max_tokens,
                quantile=quantile,
                window=window,
                span_s=span_s,
                scale=kept.scale,
                margin=kept.margin,
            )
        except (msgspec.DecodeError, RecursionError, InputError) as error:
            raise InputError(
                f"the remembered costs of steps can't be used: {error}; delete them to have them "
                "measured again"
            ) from None


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is {value}, not from {low:g} to {high:g}")


def _table(curve: Sequence[tuple[int, float]], max_tokens: int) -> list[float]:
    """Seconds of 0 to `max_tokens` tokens, the last slope going on behind the curve."""
    table = [0.0]
    for (low, start), (high, end) in pairwise(curve):
        slope = (end - start) / (high - low)
        table += [start + slope * step for step in range(high - low)]
    last, seconds = curve[-1]
    slope = 0.0
    if len(curve) > 1:
        before, start = curve[-2]
        slope = (seconds - start) / (last - before)
    else:  # one point says nothing about more tokens than that: each costs as much again
        slope = seconds
    table += [seconds + slope * step for step in range(max(max_tokens - last, 1) + 1)]
    return table[: max(max_tokens, 2) + 1]
