"""The interpreter: batches, chunks, caches, and what it refuses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import tiny

from subsecond import models
from subsecond.errors import ModelError
from subsecond.program import rewrites
from subsecond.program.interpret import Interpreter, SequenceCache
from subsecond.program.program import Program

Weights = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def model() -> tuple[Program, Weights]:
    config = tiny.config("mistral")
    tensors = tiny.tensors("mistral", 0, config)
    built = models.build(config, {name: array.shape for name, array in tensors.items()})
    weights = {name: recipe.apply(tensors) for name, recipe in built.recipes.items()}
    return rewrites.fuse(built.program), weights


def test_a_batch_gives_each_sequence_its_own_logits(model: tuple[Program, Weights]) -> None:
    """Sequences of different lengths and progress in one step, as the scheduler forms them."""
    interpreter = Interpreter(*model)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, tiny.VOCAB, n).tolist() for n in (70, 1, 9)]
    caches = [SequenceCache() for _ in prompts]
    interpreter.step([(caches[0], prompts[0][:64])])
    logits = interpreter.step(
        [(caches[1], prompts[1]), (caches[0], prompts[0][64:]), (caches[2], prompts[2])]
    )
    for row, index in enumerate((1, 0, 2)):
        alone = interpreter.logits(prompts[index])[-1]
        assert np.abs(logits[row] - alone).max() < 1e-5
    assert [cache.length for cache in caches] == [70, 1, 9]


def test_rows_are_the_ones_asked_for(model: tuple[Program, Weights]) -> None:
    interpreter = Interpreter(*model)
    ids = list(range(40))
    every = interpreter.step([(SequenceCache(), ids)], "all")
    some = interpreter.step([(SequenceCache(), ids)], [3, 17])
    assert every.shape == (40, tiny.VOCAB)
    assert np.abs(some - every[[3, 17]]).max() < 1e-5


@pytest.mark.parametrize(("kv", "largest"), [("bf16", 0.05), ("int8", 0.2)])
def test_rounded_kv_changes_little_but_something(
    model: tuple[Program, Weights], kv: str, largest: float
) -> None:
    ids = list(range(100))
    exact = Interpreter(*model).logits(ids)
    rounded = Interpreter(*model, kv=kv).logits(ids, 16)
    difference = np.abs(exact - rounded).max()
    assert 0 < difference < largest


def test_integer_activations_change_little_but_something(model: tuple[Program, Weights]) -> None:
    program, weights = model
    formats = {spec.name: "int8" for spec in program.tensors if spec.kind == "matrix"}
    ids = list(range(50))
    difference = Interpreter(program, weights).logits(ids) - Interpreter(
        program, weights, formats
    ).logits(ids)
    assert 0 < np.abs(difference).std() < 0.05


def test_contradictions_are_refused(model: tuple[Program, Weights]) -> None:
    program, weights = model
    name = "model.norm.weight"
    with pytest.raises(ModelError, match="missing"):
        Interpreter(program, {k: v for k, v in weights.items() if k != name})
    with pytest.raises(ModelError, match="unexpected"):
        Interpreter(program, {**weights, "more": weights[name]})
    with pytest.raises(ModelError, match="shape"):
        Interpreter(program, {**weights, name: weights[name][:-1]})
    with pytest.raises(ModelError, match="int3"):
        Interpreter(program, weights, {name: "int3"})
    with pytest.raises(ModelError, match="kv"):
        Interpreter(program, weights, kv="fp8")
    interpreter = Interpreter(program, weights)
    with pytest.raises(ModelError, match="token ids"):
        interpreter.logits([tiny.VOCAB])
    with pytest.raises(ModelError, match="max_positions"):
        interpreter.logits([1] * 513)
    twice = SequenceCache()
    with pytest.raises(ModelError, match="once"):
        interpreter.step([(twice, [1]), (twice, [2])])
    with pytest.raises(ModelError, match="at least one token"):
        interpreter.step([(SequenceCache(), [])])
