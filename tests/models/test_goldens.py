"""Both executors against logits recorded from transformers, and the programs' text."""

from __future__ import annotations

import functools
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pytest
import tiny

from subsecond import models
from subsecond.program import rewrites
from subsecond.program.interpret import Interpreter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "goldens"))
import cases
import record

F32 = npt.NDArray[np.float32]


class Executor(Protocol):
    def logits(self, tokens: list[int], chunk: int = 0) -> F32: ...


@functools.cache
def goldens() -> dict[str, F32]:
    with np.load(cases.FILE) as file:
        return {name: file[name] for name in file.files}


def built(checkpoint: cases.Checkpoint) -> tuple[models.Built, dict[str, F32]]:
    config = tiny.config(checkpoint.family, **checkpoint.overrides)
    tensors = tiny.tensors(checkpoint.family, checkpoint.seed, config)
    result = models.build(config, {name: array.shape for name, array in tensors.items()})
    return result, {name: recipe.apply(tensors) for name, recipe in result.recipes.items()}


def compare(checkpoint: cases.Checkpoint, executor: Executor, chunk: int = 0) -> None:
    for length in cases.LENGTHS:
        logits = executor.logits(cases.prompt(checkpoint, length), chunk)
        assert logits.shape == (length, tiny.VOCAB)
        expected = goldens()[f"{checkpoint.name}/{length}"]
        chosen = logits[np.ix_(cases.rows(length), cases.columns(checkpoint))]
        allowed = cases.TOLERANCE * max(1.0, float(goldens()[f"{checkpoint.name}/{length}/std"]))
        assert np.abs(chosen - expected).max() <= allowed


@pytest.mark.parametrize("checkpoint", cases.CHECKPOINTS, ids=lambda c: c.name)
def test_fused_program_agrees_with_transformers(checkpoint: cases.Checkpoint) -> None:
    model, weights = built(checkpoint)
    compare(checkpoint, Interpreter(rewrites.fuse(model.program), weights))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_plain_program_in_chunks_agrees_with_transformers(family: str) -> None:
    checkpoint = cases.Checkpoint(f"{family}-0", family, 0)
    model, weights = built(checkpoint)
    compare(checkpoint, Interpreter(model.program, weights), chunk=37)


@pytest.mark.skipif(find_spec("subsecond._native") is None, reason="subsecond._native is not built")
@pytest.mark.parametrize("checkpoint", cases.CHECKPOINTS, ids=lambda c: c.name)
def test_native_executor_agrees_with_transformers(checkpoint: cases.Checkpoint) -> None:
    """On every instruction set of this machine, with 2 threads; on the best one in chunks too."""
    from native_model import NativeModel

    from subsecond.runtime import native

    model, weights = built(checkpoint)
    fused = rewrites.fuse(model.program)
    for isa in native.host()["isas"]:
        executor = NativeModel(fused, weights, isa=isa, threads=2)
        compare(checkpoint, executor)
        if isa == native.host()["best"]:
            compare(checkpoint, executor, chunk=37)


def test_a_wrong_weight_is_noticed() -> None:
    """The comparison has teeth: one scaled row of one matrix is seen in every recorded prompt."""
    checkpoint = cases.Checkpoint("llama-0", "llama", 0)
    model, weights = built(checkpoint)
    weights["model.layers.1.mlp.down_proj.weight"][5] *= 1.5
    with pytest.raises(AssertionError):
        compare(checkpoint, Interpreter(model.program, weights))


@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma2", "gemma3"])
def test_window_of_one_less_is_noticed(family: str) -> None:
    """Off-by-one windows differ from transformers by more than the tolerance."""
    checkpoint = cases.Checkpoint(f"{family}-0", family, 0)
    model, weights = built(checkpoint)
    window = max(group.window for group in model.program.groups)
    assert window
    shorter = cases.Checkpoint(checkpoint.name, family, 0, {"sliding_window": window - 1})
    changed, _ = built(shorter)
    with pytest.raises(AssertionError):
        compare(checkpoint, Interpreter(changed.program, weights))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_program_text_is_as_recorded(family: str) -> None:
    """A program that changes is a decision: record it anew and read the difference."""
    assert record.program_text(family) == (cases.PROGRAMS / f"{family}.txt").read_text()
