"""Negative log-likelihood from logits, for the adapters whose systems hand out logits as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def negative_log_likelihood(logits: Any, ids: list[int]) -> float:
    """Sum over ids[1:] of -ln p, from logits [len(ids), vocabulary], in float64."""
    rows = np.asarray(logits[: len(ids) - 1], dtype=np.float64)
    highest = rows.max(axis=1)
    log_sum = np.log(np.exp(rows - highest[:, None]).sum(axis=1)) + highest
    return float((log_sum - rows[np.arange(len(ids) - 1), ids[1:]]).sum())
