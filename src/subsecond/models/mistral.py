"""Mistral: Llama's parts without biases; all layers slide where the config gives a window."""

from __future__ import annotations

from subsecond.models.common import one_window, read_basics
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Shapes


def build(config: ConfigReader, shapes: Shapes) -> Built:
    basics = read_basics(config, positions=4096 * 32)
    return basics.decoder("mistral", shapes, one_window(config, 4096))
