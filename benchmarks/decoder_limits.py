"""Prints, as one JSON line, this machine's limits now and the floors that they set to an artifact's
measures.

Runs in our own system's virtual environment, as a process of its own, so that its buffers and
threads are gone when the systems are timed.

    python decoder_limits.py ARTIFACT THREADS LENGTHS      LENGTHS: JSON of decoder_config.Lengths
"""

from __future__ import annotations

import json
import os
import sys

import msgspec

from subsecond.bench import cost, limits
from subsecond.formats.artifact import open_artifact


def floors_of(
    work: cost.Work, machine: limits.Limits, lengths: dict[str, int], processors: int
) -> dict[str, float]:
    """Measure -> its floor, in the measure's unit."""
    prompt, new, sequences = lengths["prompt"], lengths["new"], lengths["sequences"]
    floors = {
        "decode": 1 / cost.decode_floor_s(work, machine, prompt + new / 2),
        "prefill": 1e3 * cost.prefill_floor_s(work, machine, lengths["prefill"]),
        "batch": sequences * new / cost.batch_floor_s(work, machine, sequences, prompt, new),
        "context": 1e3 * cost.context_floor_s(work, machine, lengths["context"]),
        "memory": work.weight_bytes / 2**20,
    }
    if processors == machine.threads:
        # The spinner has half of one processor; what it leaves is what all threads together can
        # have.
        floors["spin"] = (machine.threads - 0.5) / machine.threads
    return floors


def main(arguments: list[str]) -> None:
    model, threads, lengths = arguments
    work = cost.work_of_artifact(open_artifact(model, check=False))
    machine = limits.measure(int(threads))
    found = {
        "limits": msgspec.to_builtins(machine),
        "work": msgspec.to_builtins(work),
        "floors": floors_of(work, machine, json.loads(lengths), len(os.sched_getaffinity(0))),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
