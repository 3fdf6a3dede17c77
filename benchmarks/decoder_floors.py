"""The machine's limits and the model's work, as the floor of each measure.

Owns: asking our own package in a process of its own (decoder_limits.py) and turning its answer into
the measures' units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from decoder_config import Lengths, System
from decoder_process import run_command

SCRIPT = Path(__file__).resolve().parent / "decoder_limits.py"
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Machine:
    """Rates measured at one moment, and the floors that they set, by measure in its unit."""

    limits: Mapping[str, float]
    floors: Mapping[str, float]

    def mean(self, other: Machine) -> Machine:
        """The middle of two moments."""

        def middle(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
            return {key: (a[key] + b[key]) / 2 for key in a if key in b}

        return Machine(middle(self.limits, other.limits), middle(self.floors, other.floors))


def measure_machine(ours: System, threads: int, lengths: Lengths) -> Machine:
    """This moment's limits and floors. Raises ProcessError."""
    command = [ours.python, str(SCRIPT), ours.model, str(threads), json.dumps(asdict(lengths))]
    found = json.loads(run_command(command, TIMEOUT_S))
    limits = {key: value for key, value in found["limits"].items() if value is not None}
    return Machine(limits, found["floors"])
