"""Qwen2 and Qwen2.5: Llama's parts with biases on q, k and v, and optional sliding upper layers."""

from __future__ import annotations

from subsecond.models.common import qwen_windows, read_basics
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Shapes


def build(config: ConfigReader, shapes: Shapes) -> Built:
    basics = read_basics(config, positions=32768)
    config.only("use_mrope", False)
    config.ignore("attention_bias")  # q, k and v always have one, the output never
    return basics.decoder("qwen2", shapes, qwen_windows(config), qkv_bias=True)
