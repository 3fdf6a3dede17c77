"""Which systems the decoder benchmark runs, and how long: the TOML file and the command line as
checked values.

Owns: parsing and refusing. Knows nothing of processes, measures' meaning or results.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What is measured together in one process; memory is read at the end of decode.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "speed": ("decode", "memory", "prefill"),
    "batch": ("batch",),
    "cold": ("cold",),
    "spin": ("spin",),
    "context": ("context",),
    "perplexity": ("perplexity",),
}
MEASURES = tuple(measure for group in GROUPS.values() for measure in group)
ONCE = ("perplexity",)  # the same in every round
OURS_ONLY = ("context",)  # compared with the machine's limit, not with peers
PEERS_ONCE = ("spin",)  # peers are too slow in it for every round

ADAPTERS: Mapping[str, str] = {
    "subsecond": "subsecond",
    "llama.cpp": "llamacpp",
    "openvino-genai": "openvino_genai",
    "onnxruntime-genai": "onnxruntime_genai",
    "transformers": "transformers",
}
OURS = "subsecond"


class ConfigError(ValueError):
    """The benchmark's configuration is wrong; the message names the key and the fix."""


@dataclass(frozen=True)
class System:
    """One system in one configuration: its interpreter, its model and its weights' format."""

    name: str
    python: str
    model: str
    format: str
    options: Mapping[str, Any] = field(default_factory=dict)
    measures: tuple[str, ...] = MEASURES
    reference: bool = (
        False  # gives the perplexity that ours is held against; takes part in nothing else
    )

    @property
    def label(self) -> str:
        return f"{self.name} {self.format}"

    @property
    def ours(self) -> bool:
        return self.name == OURS

    def missing(self) -> str:
        """Why the system cannot be run at all, or the empty text."""
        if not os.access(self.python, os.X_OK):
            return f"no interpreter at {self.python}"
        if not Path(self.model).exists():
            return f"no model at {self.model}"
        return ""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the measures, in tokens, and how often one process repeats a measure."""

    prompt: int = 128
    new: int = 128
    prefill: int = 512
    sequences: int = 16
    context: int = 4096
    windows: int = 16
    window: int = 512
    spin_new: int = 64
    repetitions: int = 2


def expanded(text: str, key: str) -> str:
    """`text` with $NAME and ${NAME} replaced from the environment. A name that is not set is an
    error.
    """
    for match in re.finditer(r"\$\{?(\w+)\}?", text):
        if match[1] not in os.environ:
            raise ConfigError(f"{key}: the environment variable {match[1]} is not set")
    return os.path.expandvars(text)


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: {key} must be a text, not {value!r}")
    return expanded(value, f"{where}: {key}")


def _system(entry: Mapping[str, Any], where: str) -> System:
    known = {"name", "python", "model", "format", "options", "measures", "reference", "shapes"}
    if unknown := sorted(set(entry) - known):
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    name = _text(entry, "name", where)
    if name not in ADAPTERS:
        raise ConfigError(f"{where}: name {name!r} is not one of {', '.join(ADAPTERS)}")
    measures = tuple(entry.get("measures", MEASURES))
    if wrong := [measure for measure in measures if measure not in MEASURES]:
        raise ConfigError(f"{where}: measure {wrong[0]!r} is not one of {', '.join(MEASURES)}")
    return System(
        name=name,
        python=_text(entry, "python", where),
        model=_text(entry, "model", where),
        format=_text(entry, "format", where),
        options=dict(entry.get("options", {})),
        measures=measures,
        reference=bool(entry.get("reference", False)),
    )


def read_systems(path: Path, shape: str) -> list[System]:
    """The [[system]] entries of a TOML file that take part in `shape`, which replaces {shape} in
    their models.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if unknown := sorted(set(data) - {"system"}):
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; known: system")
    systems = []
    for number, entry in enumerate(data.get("system", []), 1):
        model = entry.get("model")
        named = {**entry, "model": model.replace("{shape}", shape)} if model else entry
        system = _system(named, f"{path}: system {number}")
        if shape in entry.get("shapes", [shape]):
            systems.append(system)
    return systems


def parse_peer(text: str) -> System:
    """NAME=PYTHON:MODEL:FORMAT, as --peer takes it."""
    match = re.fullmatch(r"([^=]+)=([^:]+):([^:]+):([^:]+)", text)
    if not match:
        raise ConfigError(f"--peer {text!r}: must be NAME=PYTHON:MODEL:FORMAT")
    entry = dict(zip(("name", "python", "model", "format"), match.groups(), strict=True))
    return _system(entry, f"--peer {text!r}")


def check_systems(systems: list[System]) -> None:
    """Exactly one of ours, at most one reference, no label twice. Raises ConfigError."""
    ours = [system for system in systems if system.ours]
    if len(ours) != 1:
        raise ConfigError(f"{len(ours)} systems are named {OURS}; exactly one must be")
    if sum(system.reference for system in systems) > 1:
        raise ConfigError("more than one system is the reference; keep one")
    labels = [system.label for system in systems if not system.reference]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"system {label!r} is given twice; give one another format label")
