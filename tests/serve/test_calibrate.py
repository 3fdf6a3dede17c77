"""Measuring through a stand-in for the engine, whose steps take what a cost model says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from promises import cost_model

from subsecond.engine.cost import CostModel, StepShape, shape_of
from subsecond.engine.messages import (
    ErrorInfo,
    Event,
    LoadOptions,
    ModelInfo,
    SamplingFields,
    StepStats,
    Usage,
)
from subsecond.errors import EngineUnavailable
from subsecond.serve import calibrate


class Machine:
    """Runs each request by itself, at once. faults: the number of the request that fails."""

    def __init__(self, cost: CostModel, recorder: calibrate.Recorder, faults: int = -1) -> None:
        self.cost, self.recorder, self.faults = cost, recorder, faults
        self.asked: list[tuple[int, int, int]] = []
        self.prompts: set[tuple[int, ...]] = set()
        self.warmed = 0

    def warm(self, _: str, pages: int) -> None:
        assert not self.asked
        self.warmed += pages

    async def submit(self, _: str, prompt: list[int], fields: SamplingFields) -> Any:
        self.asked.append((len(prompt), fields.max_tokens, fields.n))
        assert tuple(prompt[:32]) not in self.prompts or len(prompt) < 32
        self.prompts.add(tuple(prompt[:32]))
        if len(self.asked) == self.faults:
            return _Stream([Event(0, 0, error=ErrorInfo("RuntimeFailure", "broken"))])
        self._step([(len(prompt), 0, fields.n)])
        for number in range(1, fields.max_tokens):
            self._step([(1, len(prompt) + number - 1, 1)] * fields.n)
        return _Stream([Event(0, 0, [1], "length", usage=Usage(1, 1))])

    def _step(self, parts: list[tuple[int, int, int]]) -> None:
        shape = shape_of(parts)
        self.recorder.take(stats(shape, self.cost.predict(shape)))


class _Stream:
    def __init__(self, events: list[Event]) -> None:
        self._events = events

    async def __aenter__(self) -> _Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Event]:
        for event in self._events:
            await asyncio.sleep(0)
            yield event


def stats(shape: StepShape | None, elapsed_s: float, steps: int = 1) -> StepStats:
    return StepStats(shape, elapsed_s, steps, 1, 0, 1, 1, 0)


def info(**sizes: int) -> ModelInfo:
    given = {"context": 2048, "vocab_size": 49152, "max_tokens": 512, "max_sequences": 16}
    return ModelInfo(**{**given, "max_rows": 64, "pages_total": 99, **sizes}, executor="fake")


SHAPES = ([(1, 300, 1)], [(1, 100, 1)] * 8, [(100, 0, 1)], [(20, 64, 0), *[(1, 99, 1)] * 4])


@pytest.mark.parametrize("sizes", [{}, {"max_sequences": 1}, {"context": 128, "max_tokens": 32}])
def test_the_costs_that_the_machine_has_are_found(sizes: dict[str, int]) -> None:
    true, recorder, own = cost_model(), calibrate.Recorder(), info(**sizes)
    machine: Any = Machine(true, recorder)
    found = asyncio.run(calibrate.measure(machine, "m", own, recorder))
    assert machine.warmed == calibrate.WARM_PAGES
    for length, new, n in machine.asked:
        assert length + new <= own.context and n <= own.max_sequences
    for parts in SHAPES:
        shape = shape_of(parts)
        if shape.tokens <= own.max_tokens and not sizes:
            assert found.seconds(shape) == pytest.approx(true.seconds(shape), rel=0.1)
    assert found.scale == 1.0


@pytest.mark.parametrize(("speed", "scale"), [(1.0, 0.9), (1.1, 0.9), (0.9, 0.9), (2.0, 1.8)])
def test_another_speed_is_seen_and_noise_is_not(speed: float, scale: float) -> None:
    """Remembered at a scale of 0.9; the machine takes `speed` times as long as then."""
    recorder = calibrate.Recorder()
    machine: Any = Machine(cost_model(scale=0.9 * speed), recorder)
    kept = cost_model(scale=0.9, margin=1.4)
    found = asyncio.run(calibrate.refresh(machine, "m", info(), recorder, kept))
    assert found.coefficients == kept.coefficients
    assert found.scale == pytest.approx(scale, rel=0.02)
    assert not machine.warmed


def test_a_model_that_fails_cannot_be_measured() -> None:
    recorder = calibrate.Recorder()
    machine: Any = Machine(cost_model(), recorder, faults=4)
    with pytest.raises(EngineUnavailable, match="can't be measured: broken"):
        asyncio.run(calibrate.measure(machine, "m", info(), recorder))


def test_only_single_steps_are_recorded() -> None:
    recorder = calibrate.Recorder()
    for own in (stats(None, 0.1), stats(StepShape(1, 1, 1, 1), 0.1, 4), stats(None, 0.0, 0)):
        recorder.take(own)
    assert recorder.steps == []


def test_what_is_remembered_comes_back_for_the_same_machine_alone(tmp_path: Path) -> None:
    artifact = tmp_path / "m"
    artifact.mkdir()
    assert not calibrate.was_measured(artifact)
    calibrate.remember(artifact, "abc", cost_model(scale=1.5))
    assert calibrate.was_measured(artifact)
    found = calibrate.recall(artifact, "abc", 64)
    assert found is not None and found.scale == 1.5 and len(found.table) == 65
    assert calibrate.recall(artifact, "abd", 64) is None
    assert not list(artifact.iterdir())
    (tmp_path / ".m.costs-abc.json").write_bytes(b"[1")
    assert calibrate.recall(artifact, "abc", 64) is None


def test_the_machine_is_known_by_what_decides_its_speed() -> None:
    options = LoadOptions()
    keys = {
        calibrate.machine_key(info(), options),
        calibrate.machine_key(info(max_sequences=8), options),
        calibrate.machine_key(info(), LoadOptions(threads=1)),
    }
    assert len(keys) == 3
    assert calibrate.machine_key(info(), options) in keys
