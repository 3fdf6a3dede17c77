"""The fit of a cost model to measured steps.

Owns: the points of the curve, the least-squares fit. Does not know: which steps are measured, how a
step is run, clocks.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise

from subsecond.engine.cost import MAX_SECONDS, Coefficients, StepShape
from subsecond.errors import InputError

CURVE = (1, 2, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Tokens at which the curve has its points, as far as a step may have so many."""

_MOST_SECONDS = 60.0  # one step; more is no measurement of a machine that promises seconds


def fit(measured: Sequence[tuple[StepShape, float]]) -> Coefficients:
    """The coefficients that fit measured steps best.

    measured: shape and seconds, as often as it was run: the median of a shape's runs counts.
    InputError where nothing can be fitted (no measurement, or times that no step has).

    Least squares of the relative errors under the condition that no coefficient is negative
    (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23: active sets; exact after
    finitely many exchanges). The curve is a sum of ramps between neighbouring points whose heights
    are the unknowns, so that it never falls. With fewer points measured than a curve has, the curve
    has fewer.
    """
    runs: dict[StepShape, list[float]] = {}
    for shape, seconds in measured:
        if not 0 < seconds <= _MOST_SECONDS or shape.tokens < 1:
            raise InputError(
                f"a measured step of {shape.tokens} tokens took {seconds} s; a step has at least "
                f"one token and takes more than 0 s and at most {_MOST_SECONDS:g} s"
            )
        runs.setdefault(shape, []).append(seconds)
    if not runs:
        raise InputError("no measured steps: nothing to fit a cost model to")
    most = max(shape.tokens for shape in runs)
    points = [p for p in CURVE if p <= most]
    if points[-1] < most:
        points.append(most)
    rows, wanted = [], []
    for shape, seconds_of in runs.items():
        seconds = statistics.median(seconds_of)
        row = [*_ramps(shape.tokens, points), shape.positions, shape.stored, shape.rows]
        rows.append([value / seconds for value in row])  # so that errors are relative
        wanted.append(1.0)
    found = nonnegative_least_squares(rows, wanted)
    heights, (position_s, stored_s, row_s) = found[: len(points)], found[len(points) :]
    if heights[0] <= 0:  # the least step costs something, whatever the rest explains
        heights[0] = min(statistics.median(times) for times in runs.values()) / 1000
    curve, total = [], 0.0
    for point, height in zip(points, heights, strict=True):
        total = min(total + height, MAX_SECONDS)
        curve.append((point, total))
    coefficients = Coefficients(tuple(curve), position_s, stored_s, row_s)
    coefficients.check()
    return coefficients


def _points(max_tokens: int) -> list[int]:
    """The curve's points up to a step's limit, and the limit; 512 tokens are enough to see the
    slope.
    """
    top = min(max_tokens, 512)
    return [point for point in CURVE if point < top] + [top]


def _ramps(tokens: int, points: Sequence[int]) -> list[float]:
    """How much of each ramp a step of so many tokens has climbed, 0 to 1; the first is a step."""
    ramps = [1.0]
    for low, high in pairwise(points):
        ramps.append(min(max((tokens - low) / (high - low), 0.0), 1.0))
    return ramps


def nonnegative_least_squares(
    rows: Sequence[Sequence[float]], wanted: Sequence[float]
) -> list[float]:
    """The x >= 0 that makes |rows x - wanted| least.

    Lawson-Hanson on the normal equations of columns scaled to length 1. Of several best x (columns
    that depend on each other) it gives one: a column that adds nothing stays 0.
    """
    size = len(rows[0])
    lengths = [sum(row[j] ** 2 for row in rows) ** 0.5 or 1.0 for j in range(size)]
    scaled = [[row[j] / lengths[j] for j in range(size)] for row in rows]
    gram = [[sum(row[i] * row[j] for row in scaled) for j in range(size)] for i in range(size)]
    target = [sum(row[i] * y for row, y in zip(scaled, wanted, strict=True)) for i in range(size)]
    x = [0.0] * size
    free: list[int] = []
    refused: set[int] = set()
    for _ in range(10 * size):  # Lawson-Hanson ends by itself; rounding might let it turn
        gradient = [target[i] - sum(gram[i][j] * x[j] for j in free) for i in range(size)]
        ready = [i for i in range(size) if i not in free and i not in refused]
        best = max(ready, key=lambda i: gradient[i], default=-1)
        if best < 0 or gradient[best] <= 1e-10:
            break
        solution = _solve(gram, target, [*free, best])
        if solution is None or solution[-1] <= 0:  # depends on the columns that are in already
            refused.add(best)
            continue
        refused.clear()
        free.append(best)
        while min(solution) <= 0:
            step, leaves = min(
                (x[i] / (x[i] - value), i)
                for i, value in zip(free, solution, strict=True)
                if value <= 0
            )
            for i, value in zip(free, solution, strict=True):
                x[i] += step * (value - x[i])
            x[leaves] = 0.0
            free = [i for i in free if i != leaves]
            again = _solve(gram, target, free)
            if again is None or not again:
                break
            solution = again
        else:
            for i, value in zip(free, solution, strict=True):
                x[i] = value
    return [max(value, 0.0) / length for value, length in zip(x, lengths, strict=True)]


def _solve(
    gram: Sequence[Sequence[float]], target: Sequence[float], chosen: Sequence[int]
) -> list[float] | None:
    """The least-squares solution in the chosen columns by Cholesky's method; None if they depend
    on each other.
    """
    size = len(chosen)
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = gram[chosen[i]][chosen[j]] - sum(lower[i][k] * lower[j][k] for k in range(j))
            if i == j:
                if rest <= 1e-9:
                    return None
                lower[i][i] = rest**0.5
            else:
                lower[i][j] = rest / lower[j][j]
    forward: list[float] = []
    for i in range(size):
        rest = target[chosen[i]] - sum(lower[i][k] * forward[k] for k in range(i))
        forward.append(rest / lower[i][i])
    solution = [0.0] * size
    for i in reversed(range(size)):
        rest = forward[i] - sum(lower[k][i] * solution[k] for k in range(i + 1, size))
        solution[i] = rest / lower[i][i]
    return solution
