"""Options are defined once: the dataclass and the parser agree."""

from __future__ import annotations

import dataclasses

import pytest

from subsecond.cli import options
from subsecond.config import ModelOptions
from subsecond.engine.request import SamplingParams


@pytest.mark.parametrize("name", options.COMMANDS)
def test_every_field_is_a_flag_with_help(name: str) -> None:
    kind = options.chosen(name)
    text = options.parser().format_help()
    assert name in text
    for entry in dataclasses.fields(kind):
        assert entry.metadata["help"], entry.name


def test_defaults_come_from_the_dataclass() -> None:
    parsed = options.read(options.parser().parse_args(["generate", "hi"]))
    assert vars(parsed) == vars(options.Generate(prompt="hi"))
    assert options.model_given(parsed) == {"model": parsed.model}
    assert options.sampling_given(parsed) == {}


def test_flags_become_parameters() -> None:
    line = (
        "generate hi -m M --kv int8 --threads 2 --top-k 5 --stop a --stop b --ignore-eos --seed 0"
    )
    parsed = options.read(options.parser().parse_args(line.split()))
    assert options.model_given(parsed) == {"model": "M", "kv": "int8", "threads": 2}
    sampling = {"top_k": 5, "stop": ["a", "b"], "ignore_eos": True, "seed": 0}
    assert options.sampling_given(parsed) == sampling
    assert SamplingParams(**sampling).stops == ("a", "b")
    assert ModelOptions(**options.model_given(parsed)).kv == "int8"


def test_the_command_line_stays_small() -> None:
    names = {
        entry.name
        for command in options.COMMANDS
        for entry in dataclasses.fields(options.chosen(command))
    }
    assert len(names) <= 35
