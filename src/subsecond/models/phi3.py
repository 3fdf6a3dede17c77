"""Phi-3, 3.5 and Phi-4: Llama's parts with fused matrices, partial rotary and LongRoPE.

LongRoPE is exact within the original context, so the program's context is limited to that, with a
warning.
"""

from __future__ import annotations

from subsecond.models.common import one_window, read_basics
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Shapes


def build(config: ConfigReader, shapes: Shapes) -> Built:
    basics = read_basics(
        config,
        positions=4096,
        eps=1e-5,
        partial_keys=("partial_rotary_factor",),
        original=4096,
    )
    config.ignore("original_max_position_embeddings", "interpolate_factor", "full_attn_mod")
    return basics.decoder("phi3", shapes, one_window(config, None), fused=True)
