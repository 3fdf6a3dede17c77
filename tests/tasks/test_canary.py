"""The trial of a fresh artifact: the KV cache that it gets by default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from subsecond import LLM
from subsecond.formats.artifact import open_artifact
from subsecond.formats.compare import divergence
from subsecond.formats.convert import convert
from subsecond.tasks.canary import suitable_kv, tried


@pytest.mark.parametrize(
    ("weights", "kv"), [("int4", "int8"), ("int8", "int8"), ("bf16", "bf16"), ("f32", "f32")]
)
def test_the_default_cache_is_the_one_that_conversion_chose(
    tmp_path: Path, weights: str, kv: str
) -> None:
    source = tiny.write("llama", tmp_path / "checkpoint", tokenizer=True)
    made = convert(source, tmp_path / "artifact", weights, trial=tried).path
    assert open_artifact(made).manifest.kv == (kv if weights.startswith("int") else "")
    for asked, given in ((None, kv), ("bf16", "bf16")):
        with LLM(made, kv=asked) as llm:
            assert llm.executor.endswith(f"kv {given}")


def test_an_artifact_that_was_not_tried_gets_bf16(tmp_path: Path) -> None:
    source = tiny.write("llama", tmp_path / "checkpoint", tokenizer=True)
    made = convert(source, tmp_path / "artifact", "int4").path
    with LLM(made) as llm:
        assert llm.executor.endswith("kv bf16")


def test_keys_with_a_huge_dimension_keep_bf16(tmp_path: Path) -> None:
    """One scale a head and token leaves the other dimensions of such keys no digits."""
    source = tmp_path / "checkpoint"
    tiny.write("qwen2", source, tokenizer=True)
    c = tiny.config("qwen2")
    arrays = tiny.tensors("qwen2", 0, c)
    for name, array in arrays.items():
        if name.endswith("k_proj.bias"):
            array[:: c["hidden_size"] // c["num_attention_heads"]] = 40.0
    ordinary = convert(source, tmp_path / "ordinary", "int8").path
    tiny.write_safetensors(source / "model.safetensors", arrays)
    biased = convert(source, tmp_path / "biased", "int8", trial=tried).path
    assert suitable_kv(ordinary) == "int8"
    assert open_artifact(biased).manifest.kv == "bf16"


def test_divergence_is_of_distributions() -> None:
    p, q = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25])
    rows = [memoryview(x.astype(np.float32) + 3) for x in (p, p)]
    others = [memoryview(x.astype(np.float32) - 7) for x in (p, q)]
    assert divergence(rows, rows) == 0
    assert divergence(rows, others) == pytest.approx(0.25 * np.log(2) / 2, rel=1e-5)
