"""The errors of texts that have no token to go on with.

Owns: their words. Does not know: how they were found.
"""

from __future__ import annotations

from subsecond.engine.request import SequenceState
from subsecond.errors import RequestError, RuntimeFailure, SubsecondError


def none_allowed(sequence: SequenceState) -> SubsecondError:
    """Why a text had no token to go on with."""
    if sequence.constraint is None:
        message = "logit_bias and min_tokens together forbid every token"
        return RequestError(message, "logit_bias")
    return sequence.constraint.error or RequestError(
        "the constraint, logit_bias and min_tokens together forbid every token", "constraint"
    )


def not_finite(position: int) -> RuntimeFailure:
    """The model computed no numbers. NaN weights are refused when a model is converted, so a value
    became too large.
    """
    return RuntimeFailure(
        f"the model's logits after token {position} (counted from 0) are NaN or infinite: a value "
        "overflowed; try kv='f32' or weights='f32', and check the checkpoint"
    )
