"""The measures that a worker takes inside a system's process, with an adapter whose times are
known.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import worker
from adapters.contract import Generation, Job, take_options

STEP_S = 0.01


class Known:
    """Takes 1 ms a prompt token and 10 ms a step, or more where the context is long."""

    def __init__(self, short_by: int = 0) -> None:
        self.short_by = short_by

    def version(self) -> str:
        return "known 1"

    def load(self, job: Job) -> None:
        pass

    def generate(self, ids: list[int], count: int) -> Generation:
        first_s = len(ids) / 1e3
        step_s = STEP_S + len(ids) * 1e-6
        return Generation(first_s, first_s + (count - 1) * step_s, [7] * (count - self.short_by))

    def generate_batch(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        return [[7] * (count - self.short_by) for _ in prompts]

    def negative_log_likelihood(self, ids: list[int]) -> float:
        return (len(ids) - 1) * math.log(50)

    def first_text(self, job: Job, text: str) -> str:
        return " the"


def job_of(*measures: str, **more: Any) -> Job:
    values: dict[str, Any] = {
        "adapter": "known",
        "model": "m",
        "format": "f",
        "options": {},
        "threads": 2,
        "measures": list(measures),
        "ids": "",
        "repetitions": 2,
        "prompt": 100,
        "new": 11,
        "prefill": 500,
        "sequences": 4,
        "context": 1000,
        "windows": 3,
        "window": 20,
        "spin_new": 5,
        "offset": 0,
    }
    return Job(**{**values, **more})


def reports_of(
    capsys: pytest.CaptureFixture[str], job: Job, adapter: Known | None = None
) -> dict[str, dict[str, Any]]:
    worker.run(adapter or Known(), job, list(range(5000)))
    lines = capsys.readouterr().out.splitlines()
    reports = [json.loads(line.removeprefix(worker.RESULT)) for line in lines]
    return {report.pop("measure"): report for report in reports}


def test_decode_counts_the_steps_between_first_and_last_token(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reports = reports_of(capsys, job_of("decode", "prefill"))
    assert reports["decode"]["values"] == pytest.approx([1 / (STEP_S + 1e-4)] * 2)
    assert reports["prefill"]["values"] == pytest.approx([500.0] * 2)  # milliseconds
    assert reports["memory"]["values"][0] > 1
    assert reports["load"]["version"] == "known 1"


def test_context_is_the_difference_of_two_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert reports_of(capsys, job_of("context"))["context"]["values"] == pytest.approx([1.0, 1.0])


def test_perplexity_of_even_odds_is_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    report = reports_of(capsys, job_of("perplexity"))["perplexity"]
    assert report["values"] == pytest.approx([50.0])
    assert report["predictions"] == 3 * 19


def test_a_batch_reports_new_tokens_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    assert reports_of(capsys, job_of("batch"))["batch"]["values"][0] > 0


@pytest.mark.parametrize("measure", ["decode", "batch", "context"])
def test_a_system_that_stops_early_is_no_result(measure: str) -> None:
    with pytest.raises(RuntimeError, match=r"instead of 11|not 11"):
        worker.run(Known(short_by=1), job_of(measure), list(range(5000)))


def test_the_spinning_process_is_gone_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    report = reports_of(capsys, job_of("spin"))["spin"]
    assert report["values"] == pytest.approx([1.0])


def test_prompts_differ_between_calls_and_rounds() -> None:
    prompts = worker.Prompts(list(range(5000)), 0)
    taken = [prompts.take(100) for _ in range(5)] + [
        worker.Prompts(list(range(5000)), 40).take(100)
    ]
    assert len({tuple(prompt) for prompt in taken}) == 6
    assert all(len(prompt) == 100 for prompt in taken)


def test_a_job_knows_how_many_positions_it_needs() -> None:
    assert job_of("decode").positions() == 111
    assert job_of("decode", "prefill").positions() == 502
    assert job_of("context").positions() == 1111
    assert job_of("perplexity").positions() == 111


def test_unknown_options_of_an_adapter_are_refused() -> None:
    assert take_options(job_of("decode", options={"kv": "int8"}), kv=None) == {"kv": "int8"}
    with pytest.raises(ValueError, match="unknown options \\['speed'\\]"):
        take_options(job_of("decode", options={"speed": 1}), kv=None)
