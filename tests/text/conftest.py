"""Small tokenizers that the tests of this folder share."""

from __future__ import annotations

import pytest
from gguf_metadata import byte_level_metadata, sentencepiece_metadata

from subsecond.text import gguf_tokenizer
from subsecond.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer(gguf_tokenizer.build(byte_level_metadata("smollm")))


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    return Tokenizer(gguf_tokenizer.build(sentencepiece_metadata()))
