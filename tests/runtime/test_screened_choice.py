"""Greedy choices from bounds are the choices that all logits give, and logits can still be read.

Owns: a model of one embedding and one output matrix, whose logits are made to measure: clear,
close, tied, all alike, broken. The bounds themselves are tests/kernels/test_linear_split.py's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_driver import F32, ISAS, Driver, Packed, pack

from subsecond import _native
from subsecond.program.builder import Builder
from subsecond.program.program import Program
from subsecond.program.rewrites import fuse

VOCAB, WIDTH = 1000, 64  # the last tile is ragged


def model() -> Program:
    b = Builder("screen", VOCAB, 512)
    x = b.embed(b.matrix("embedding", VOCAB, WIDTH, "embedding"))
    x = b.norm(b.gather(x), "rms", 1e-5, weight=b.vector("norm", WIDTH))
    return fuse(b.build(b.linear(x, b.matrix("output", VOCAB, WIDTH))))


def packed(path: Path, output: F32, form: str, embedding: F32 | None = None) -> Packed:
    rng = np.random.default_rng(5)
    if embedding is None:
        embedding = rng.standard_normal((VOCAB, WIDTH)).astype(np.float32)
    weights = {"embedding": embedding, "norm": np.ones(WIDTH, np.float32), "output": output}
    return pack(path / f"{form}.bin", model(), weights, {"output": form})


def outputs(kind: str) -> F32:
    """Output matrices; "clear": token t is followed by one that only few others come near."""
    rng = np.random.default_rng(9)
    w = rng.standard_normal((VOCAB, WIDTH))
    if kind == "clear":
        w[rng.permutation(VOCAB)[:40]] *= 6
    elif kind == "tied":  # pairs of rows that are equal, some of them in other tiles
        w[::7] *= 5
        w[7:] = np.where((np.arange(7, VOCAB) % 21 == 0)[:, None], w[:-7], w[7:])
    elif kind == "last":
        w[-3:] *= 8
    elif kind == "alike":
        w[:] = w[0]
    elif kind == "zero":
        w[:] = 0
    return w.astype(np.float32)


def choices(driver: Driver, tokens: list[int]) -> tuple[list[int], list[int]]:
    """What greedy samplers choose after each token, and how they finish."""
    found, finished = [], []
    for start in range(0, len(tokens), 2):
        work = [(driver.sequence(64), [token]) for token in tokens[start : start + 2]]
        total = driver.fill(work)
        samplers = [_native.Sampler() for _ in work]
        for row, sampler in enumerate(samplers):
            driver.plan.set_sampler(row, sampler)
        driver.model.run(driver.plan, total, len(work), len(work))
        found += list(driver.plan.sampled[: len(work)])
        finished += list(driver.plan.finish[: len(work)])
        out = np.empty((len(work), VOCAB), np.float32)
        bad = driver.model.logits(out)  # all of them, whatever the choice has read
        for row in range(len(work)):
            driver.plan.set_sampler(row, None)
        want = [int(row.argmax()) for row in out] if bad < 0 else [-1] * len(work)
        assert found[-len(work) :] == want
        for sequence, _ in work:
            driver._free += sequence.pages
    return found, finished


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["clear", "random", "tied", "last", "alike", "zero"])
@pytest.mark.parametrize("threads", [1, 2])
def test_choices_are_int8_s(tmp_path: Path, isa: str, kind: str, threads: int) -> None:
    tokens = np.random.default_rng(1).integers(0, VOCAB, 41).tolist()
    results = []
    for form in ("int8", "int8_split"):
        files = packed(tmp_path, outputs(kind), form)
        driver = Driver(model(), files, isa=isa, threads=threads, apart=False)
        results.append(choices(driver, tokens))
    assert results[0] == results[1]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_rows_finish_as_broken(tmp_path: Path, isa: str, bad: float) -> None:
    embedding = np.random.default_rng(5).standard_normal((VOCAB, WIDTH)).astype(np.float32)
    embedding[7, 3] = bad
    for form in ("int8", "int8_split"):
        files = packed(tmp_path, outputs("clear"), form, embedding)
        driver = Driver(model(), files, isa=isa)
        total = driver.fill([(driver.sequence(64), [7])])
        driver.plan.set_sampler(0, sampler := _native.Sampler())
        driver.model.run(driver.plan, total, 1, 1)
        assert (list(driver.plan.sampled[:1]), list(driver.plan.finish[:1])) == ([-1], [3])
        assert sampler is not None


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5, "seed": 1},
        {"logprobs": 0},
        {"logit_bias": [(5, 1.0)]},
        {"presence_penalty": 0.5},
        {"min_tokens": 1, "stop_ids": [5]},
    ],
)
def test_other_samplers_see_all_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    driver = Driver(model(), packed(tmp_path, outputs("clear"), "int8_split"), isa=ISAS[-1])
    total = driver.fill([(driver.sequence(64), [3]), (driver.sequence(64), [4])])
    samplers = [_native.Sampler(), _native.Sampler(**options)]
    for row, sampler in enumerate(samplers):
        driver.plan.set_sampler(row, sampler)
    driver.model.run(driver.plan, total, 2, 2)
    assert not driver.model.screened


def test_logits_that_lie_too_close_are_all_computed(tmp_path: Path) -> None:
    driver = Driver(model(), packed(tmp_path, outputs("alike"), "int8_split"), isa=ISAS[-1])
    total = driver.fill([(driver.sequence(64), [3])])
    driver.plan.set_sampler(0, sampler := _native.Sampler())
    driver.model.run(driver.plan, total, 1, 1)
    assert not driver.model.screened
    assert (sampler, driver.plan.sampled[0]) == (sampler, 0)


def test_logits_are_int8_s_after_a_choice(tmp_path: Path) -> None:
    """Bitwise, also where a sampler has not asked for them."""
    found = []
    for form in ("int8", "int8_split"):
        driver = Driver(model(), packed(tmp_path, outputs("clear"), form), isa=ISAS[-1])
        total = driver.fill([(driver.sequence(64), [3]), (driver.sequence(64), [4])])
        samplers = [_native.Sampler(), _native.Sampler()]
        for row, sampler in enumerate(samplers):
            driver.plan.set_sampler(row, sampler)
        steps = driver.model.run(driver.plan, total, 2, 2, 8)
        out = np.empty((2, VOCAB), np.float32)
        assert driver.model.screened == (form == "int8_split")
        assert driver.model.logits(out) == -1
        assert not driver.model.screened
        found.append((steps, list(driver.plan.sampled[:16]), out.tobytes()))
    assert found[0] == found[1]
