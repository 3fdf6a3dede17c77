"""Options are defined once: the dataclass and the parser agree."""

from __future__ import annotations

import dataclasses

import pytest

from subsecond.cli import options
from subsecond.config import ModelOptions
from subsecond.engine.sampling import DEFAULT_MAX_TOKENS, SamplingParams


@pytest.mark.parametrize("name", options.COMMANDS)
def test_every_field_is_a_flag_with_help(name: str) -> None:
    kind = options.chosen(name)
    assert name in options.overview().format_help()
    for entry in dataclasses.fields(kind):
        assert entry.metadata["help"], entry.name


def test_defaults_come_from_the_dataclass() -> None:
    name, parsed = options.parse(["generate", "hi"])
    assert name == "generate"
    assert vars(parsed) == vars(options.Generate(prompt="hi"))
    assert options.model_given(parsed) == {"model": parsed.model}
    assert options.sampling_given(parsed) == {}


def test_help_says_the_default_that_is_used() -> None:
    (entry,) = [e for e in dataclasses.fields(options.chosen("generate")) if e.name == "max_tokens"]
    assert f"default: {DEFAULT_MAX_TOKENS}," in entry.metadata["help"]


def test_flags_become_parameters() -> None:
    line = (
        "generate hi -m M --kv int8 --threads 2 --top-k 5 --stop a --stop b --ignore-eos --seed 0"
    )
    _, parsed = options.parse(line.split())
    assert options.model_given(parsed) == {"model": "M", "kv": "int8", "threads": 2}
    sampling = {"top_k": 5, "stop": ["a", "b"], "ignore_eos": True, "seed": 0}
    assert options.sampling_given(parsed) == sampling
    assert SamplingParams(**sampling).stops == ("a", "b")
    assert ModelOptions(**options.model_given(parsed)).kv == "int8"


def test_the_command_line_stays_small() -> None:
    names: set[str] = set()
    for command in options.COMMANDS:
        own = {entry.name for entry in dataclasses.fields(options.chosen(command))}
        assert len(own) <= 30, command
        names |= own
    assert len(names) <= 76
