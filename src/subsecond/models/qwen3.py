"""Qwen3 (dense): Llama's parts with norms on the heads of q and k; upper layers may slide."""

from __future__ import annotations

from subsecond.models.common import qwen_windows, read_basics
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Shapes


def build(config: ConfigReader, shapes: Shapes) -> Built:
    basics = read_basics(config, positions=32768, head_dim=128)
    bias = config.flag("attention_bias", False)
    return basics.decoder(
        "qwen3", shapes, qwen_windows(config), qk_norm=True, qkv_bias=bias, out_bias=bias
    )
