"""Costs of steps for tests that promise without a machine."""

from __future__ import annotations

from subsecond.engine.cost import Coefficients, CostModel
from subsecond.engine.policy import StepLimits

LIMITS = StepLimits(tokens=512, sequences=64, rows=64)


def cost_model(*, margin: float = 1.0, scale: float = 1.0) -> CostModel:
    """About the default model on two cores: 3.4 ms a decode step, 0.4 ms a token more."""
    points = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    curve = tuple((tokens, 0.0033 + 0.0004 * (tokens - 1)) for tokens in points)
    coefficients = Coefficients(curve, 7e-8, 1.0e-6, 5e-5)
    return CostModel(coefficients, max_tokens=512, margin=margin, scale=scale)
