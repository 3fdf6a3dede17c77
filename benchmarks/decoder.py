"""Runs Subsecond and its peers side by side on one model and prints how they compare, with the
machine's limits beside.

Owns: the rounds. In every round each system runs each group of measures once, in a process of its
own, in an order that changes from round to round; a figure is the median over rounds of ours over
the best peer of that round. A system that fails is reported and left out of the rest of that group.
benchmarks/README.md says how to install the peers, how to make their files and what each figure
means.

    python benchmarks/decoder.py --config peers.toml --ids ids.json --out results.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import decoder_config as config
from decoder_config import GROUPS, ConfigError, Lengths, System
from decoder_floors import Machine, measure_machine
from decoder_process import ProcessError, job_of, run_measures, time_cold
from decoder_report import Floor, Sample, as_json, contenders, rows_of, system_tables, table

DEFAULT_SHAPE = "smollm2"
SPEED_ONLY = ("decode", "memory", "prefill", "batch")  # what random weights can tell
LIMITS = "the machine's limits"  # stands in the list of failures like a system
SLACK = 0.25  # a format this close to its library's best stays for the later rounds


@dataclass
class Run:
    """One model's benchmark: its settings, and what has been found so far."""

    shape: str
    systems: list[System]
    measures: tuple[str, ...]
    rounds: int
    ids: Path
    threads: int
    lengths: Lengths
    timeout_s: float
    all_formats: bool
    samples: list[Sample] = field(default_factory=list)
    floors: list[Floor] = field(default_factory=list)
    machine: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    details: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ours(self) -> System:
        return next(system for system in self.systems if system.ours)

    def fail(self, label: str, group: str, number: int, reason: str) -> None:
        note(f"  {label}: {group} FAILED, left out of it from here on: {reason}")
        failure = {"system": label, "group": group, "round": number, "reason": shortened(reason)}
        self.failures.append(failure)

    def failed(self, label: str, group: str) -> bool:
        return any(f["system"] == label and f["group"] in (group, "all") for f in self.failures)


def shortened(reason: str) -> str:
    """A reason without the folders of the files that it names."""
    return re.sub(r"/(?:[\w.+-]+/)+", "", reason)


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def wanted_of(run: Run, system: System, group: str) -> tuple[str, ...]:
    """The measures of a group that this system takes part in."""
    if group in config.OURS_ONLY and not system.ours:
        return ()
    if system.reference:
        return ("perplexity",) if group == "perplexity" and "perplexity" in run.measures else ()
    return tuple(m for m in GROUPS[group] if m in run.measures and m in system.measures)


def run_group(run: Run, system: System, group: str, number: int) -> None:
    """One system's measures of one group in one round: records its samples or its failure."""
    measures = wanted_of(run, system, group)
    needed = (
        ("decode", *measures) if "memory" in measures and "decode" not in measures else measures
    )
    job = job_of(
        system,
        needed,
        ids=run.ids,
        threads=run.threads,
        lengths=run.lengths,
        offset=number * 40,
    )
    begin = time.perf_counter()
    try:
        if group == "cold":
            if number == 1:
                time_cold(system, job, run.timeout_s)  # brings the weights into the page cache
            reports = {"cold": time_cold(system, job, run.timeout_s)}
        else:
            reports = run_measures(system, job, run.timeout_s)
    except ProcessError as error:
        run.fail(system.label, group, number, str(error))
        return
    if "load" in reports:
        run.versions[system.label] = reports["load"]["version"]
    shown = []
    for measure in measures:
        value = statistics.median(reports[measure]["values"])
        run.details.append(
            {"round": number, "system": system.label, "measure": measure, **reports[measure]}
        )
        if system.reference:
            run.floors.append(Floor(number, measure, value))
        else:
            run.samples.append(Sample(number, system.label, measure, value))
        shown.append(f"{measure} {value:.4g}")
    note(f"  {system.label}: {', '.join(shown)}  [{time.perf_counter() - begin:.1f} s]")


def machine_now(run: Run, group: str, number: int) -> Machine | None:
    """The machine's limits at this moment, or None and one failure recorded."""
    if run.failed(LIMITS, group):
        return None
    try:
        return measure_machine(run.ours, run.threads, run.lengths)
    except ProcessError as error:
        run.fail(LIMITS, "all", number, str(error))
        return None


def add_floors(run: Run, group: str, number: int, machine: Machine) -> None:
    run.machine.append({"round": number, "group": group, **machine.limits})
    for measure in GROUPS[group]:
        if measure in machine.floors and measure in run.measures:
            run.floors.append(Floor(number, measure, machine.floors[measure]))


def entrants(run: Run, group: str, number: int) -> list[System]:
    """Who takes part in a group in a round, in that round's order."""
    order = [s for s in run.systems if wanted_of(run, s, group) and not run.failed(s.label, group)]
    if number > 1 and group in config.PEERS_ONCE:
        order = [system for system in order if system.ours]
    random.Random(number).shuffle(order)
    if number > 1 and not run.all_formats:
        kept = contenders(run.samples, [m for m in GROUPS[group] if m in run.measures], SLACK)
        order = [system for system in order if system.label in kept]
    return order


def run_rounds(run: Run, save: Callable[[], None]) -> None:
    """All rounds; `save` is called after each."""
    for system in run.systems:
        if reason := system.missing():
            run.fail(system.label, "all", 0, reason)
    for number in range(1, run.rounds + 1):
        for group in GROUPS:
            if group in config.ONCE and number > 1:
                continue
            order = entrants(run, group, number)
            if not order:
                continue
            note(f"{run.shape}, round {number} of {run.rounds}, {group}")
            before = machine_now(run, group, number)
            for system in order:
                run_group(run, system, group, number)
            after = machine_now(run, group, number)
            if before and after:
                add_floors(run, group, number, before.mean(after))
        save()


def described(system: System) -> dict[str, Any]:
    """A system without its folders, which say nothing to others."""
    return {
        "name": system.name,
        "format": system.format,
        "model": Path(system.model).name,
        "options": dict(system.options),
        "reference": system.reference,
    }


def result_of(run: Run) -> dict[str, Any]:
    return {
        "shape": run.shape,
        "systems": [described(system) for system in run.systems],
        "versions": run.versions,
        "lengths": asdict(run.lengths),
        "threads": run.threads,
        "rounds": run.rounds,
        "summary": as_json(rows_of(run.samples, run.floors, run.ours.label)),
        "samples": [asdict(sample) for sample in run.samples],
        "floors": [asdict(floor) for floor in run.floors],
        "machine_limits": run.machine,
        "failures": run.failures,
        "details": run.details,
    }


def machine_of() -> dict[str, Any]:
    """What a reader of the figures needs to know of the machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def text_of(run: Run) -> str:
    parts = [f"## {run.shape}: {run.rounds} rounds, {run.threads} threads"]
    parts.append(table(rows_of(run.samples, run.floors, run.ours.label)))
    parts.append(system_tables(run.samples))
    if run.failures:
        lines = [
            f"- {f['system']}, {f['group']}, round {f['round']}: {f['reason']}"
            for f in run.failures
        ]
        parts.append("Failed and left out:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="TOML file of [[system]] entries")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PYTHON:MODEL:FORMAT",
        help="a system beside those of --config; ours is named subsecond",
    )
    parser.add_argument("--ids", type=Path, required=True, help="JSON made by peers/prepare.py ids")
    parser.add_argument(
        "--measure", default=",".join(config.MEASURES), help="comma-separated; default: all"
    )
    parser.add_argument(
        "--shapes",
        default=DEFAULT_SHAPE,
        help=f"models, as {{shape}} in --config; default {DEFAULT_SHAPE}",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--repetitions", type=int, default=2, help="of decode and prefill in one process"
    )
    parser.add_argument(
        "--timeout", type=float, default=240.0, help="seconds that one process may take"
    )
    parser.add_argument(
        "--all-formats",
        action="store_true",
        help="keep every format in every round, not only a library's best ones",
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 repetition")
    parser.add_argument("--out", type=Path, help="JSON file, written after every round")
    parser.add_argument("--plot", type=Path, help="PNG file (needs matplotlib)")
    return parser.parse_args(arguments)


def runs_of(options: argparse.Namespace) -> list[Run]:
    """One Run a shape. Raises ConfigError."""
    measures = tuple(options.measure.split(","))
    if wrong := [measure for measure in measures if measure not in config.MEASURES]:
        raise ConfigError(f"--measure {wrong[0]!r}: not one of {', '.join(config.MEASURES)}")
    if options.rounds < 1 or options.threads < 1 or options.repetitions < 1:
        raise ConfigError("--rounds, --threads and --repetitions must be at least 1")
    if not options.ids.is_file():
        raise ConfigError(f"--ids {options.ids}: no such file; make it with peers/prepare.py ids")
    quick = options.quick
    runs = []
    for shape in options.shapes.split(","):
        systems = config.read_systems(options.config, shape) if options.config else []
        systems += [config.parse_peer(text) for text in options.peer]
        config.check_systems(systems)
        kept = measures if shape == DEFAULT_SHAPE else tuple(m for m in measures if m in SPEED_ONLY)
        lengths = replace(Lengths(), repetitions=1 if quick else options.repetitions)
        runs.append(
            Run(
                shape,
                systems,
                kept,
                2 if quick else options.rounds,
                options.ids,
                options.threads,
                lengths,
                options.timeout,
                options.all_formats,
            )
        )
    return runs


def end(number: int, _: Any) -> None:
    """Ends by an exception, so that the process that is being timed is ended too."""
    raise SystemExit(128 + number)


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    signal.signal(signal.SIGTERM, end)
    try:
        runs = runs_of(options)
    except ConfigError as error:
        note(f"error: {error}")
        return 2
    head = {"machine": machine_of(), "began": time.strftime("%Y-%m-%dT%H:%M:%S%z")}

    def save() -> None:
        if options.out:
            options.out.write_text(
                json.dumps({**head, "models": [result_of(run) for run in runs]}, indent=1)
            )

    for run in runs:
        run_rounds(run, save)
        print(text_of(run) + "\n", flush=True)
    if options.plot:
        from decoder_plot import draw

        draw([(run.shape, run.samples, run.floors, run.ours.label) for run in runs], options.plot)
    ours_failed = [f for run in runs for f in run.failures if f["system"] == run.ours.label]
    return 1 if ours_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
