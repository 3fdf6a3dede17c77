"""Llama: Llama 1 to 3.3, SmolLM and every checkpoint of architecture LlamaForCausalLM."""

from __future__ import annotations

from subsecond.models.common import no_window, read_basics
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Shapes


def build(config: ConfigReader, shapes: Shapes) -> Built:
    basics = read_basics(config, positions=2048)
    config.only("rope_interleaved", False)
    bias = config.flag("attention_bias", False)
    return basics.decoder(
        "llama",
        shapes,
        no_window(config, basics.rope.positions),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
    )
