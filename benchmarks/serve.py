"""Puts the same loads on Subsecond's server and on others, and prints what each answers in time.

Owns: the servers' processes and the rounds. In every round each system is started, warmed up, given
every rate for the same time and the same seeded requests, then 16 streams at once, and ended; the
order changes from round to round. A server counts with the best of its settings and rates in that
round. benchmarks/README.md says how to build `llama-server` and what each figure means.

    python benchmarks/serve.py --out serve.json \\
        --system 'subsecond=subsecond serve smollm2-135m --within 1s --port {port}' \\
        --system 'llama-server, 1 slot=llama-server -m q4_0.gguf -t 2 -np 1 --port {port}'
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from subsecond import _native
from subsecond.bench.load import Limits, Run, load
from subsecond.bench.load_arrivals import Schedule, Shape, burst, poisson
from subsecond.bench.load_client import Target
from subsecond.bench.load_summary import Summary, summarize
from subsecond.errors import InputError, SubsecondError

OURS = "subsecond"
START_S = 120.0  # from a server's start to its first answer
POLL_S = 0.2
END_S = 15.0  # from SIGTERM to SIGKILL
TAIL_CHARACTERS = 600


@dataclass(frozen=True)
class System:
    """A server: its name, `SERVER` or `SERVER, SETTING`, and its command with {port}."""

    name: str
    command: str

    @property
    def server(self) -> str:
        return self.name.partition(",")[0]

    @property
    def body(self) -> dict[str, Any]:
        """Fields of every request: as many tokens as asked for, and of ours no shortened answer."""
        body: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
        return body | {"on_deadline": "full"} if self.server == OURS else body


@dataclass
class Results:
    """What was found so far; a cell is one load on one system in one round."""

    cells: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, system: System, number: int, rate: float | None, summary: Summary) -> None:
        self.cells.append(
            {
                "system": system.name,
                "round": number,
                "rate": rate,  # None: all streams at once
                "summary": msgspec.to_builtins(summary),
            }
        )

    def of(self, name: str, rate: float | None) -> list[dict[str, Any]]:
        return [c for c in self.cells if c["system"] == name and c["rate"] == rate]


class ServerError(RuntimeError):
    """A server that doesn't start or doesn't answer."""


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(system: System) -> Iterator[str]:
    """A started server's URL. Its whole process group is ended with the block."""
    port = free_port()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        words = shlex.split(system.command.format(port=port))
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        except OSError as error:
            raise ServerError(f"cannot start {words[0]}: {error.strerror}") from None
        try:
            yield wait_ready(system, f"http://127.0.0.1:{port}", process)
        except (ServerError, SubsecondError) as error:
            log.seek(0)
            raise ServerError(f"{error}; {log.read()[-TAIL_CHARACTERS:].strip()}") from None
        finally:
            end(process)


def wait_ready(system: System, url: str, process: subprocess.Popen[bytes]) -> str:
    """Waits for the first whole answer: servers list their models before these are loaded."""
    limit_s = time.monotonic() + START_S
    shape = Shape(prompt_words=8, max_tokens=2, body=system.body)
    while True:
        try:
            load(Target.of(url), burst(shape, 1), warmup=1)
            return url
        except SubsecondError as error:
            if process.poll() is not None:
                raise ServerError(f"it ended with status {process.returncode}") from None
            if time.monotonic() > limit_s:
                raise ServerError(f"no answer within {START_S:g} s: {error}") from None
            time.sleep(POLL_S)


def end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        note("  did not end after SIGTERM; killed")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def loads(
    system: System, options: argparse.Namespace, number: int
) -> Iterator[tuple[Any, Schedule]]:
    """(rate, schedule) of every load; the last one is all streams at once, without a deadline. A
    round's loads share no prompt, so that no prefix cache answers one from another.
    """
    seeds = itertools.count(number * (len(options.rates) + 1))
    shape = Shape(
        endpoint=options.endpoint,
        prompt_words=options.prompt_words,
        max_tokens=options.max_tokens,
        deadline_s=options.deadline_ms / 1e3,
        body=system.body,
    )
    for rate in options.rates:
        own = msgspec.structs.replace(shape, seed=next(seeds))
        yield rate, poisson(own, rate, options.seconds)
    if options.streams:
        plain = {name: v for name, v in system.body.items() if name != "on_deadline"}
        if system.server == OURS:  # else the server's own deadline, of --within, would apply
            plain["deadline_ms"] = 1e3 * options.drain
        own = msgspec.structs.replace(
            shape,
            deadline_s=None,
            max_tokens=options.stream_tokens,
            body=plain,
            seed=next(seeds),
        )
        yield None, burst(own, options.streams)


def run_system(system: System, options: argparse.Namespace, number: int, found: Results) -> None:
    """One system's loads of one round: records its cells or its failure."""
    limits = Limits(timeout_s=options.drain, drain_s=options.drain)
    try:
        with running(system) as url:
            for rate, schedule in loads(system, options, number):
                done: Run = load(Target.of(url), schedule, limits=limits)
                summary = summarize(done, _native.host()["cpus"])
                found.add(system, number, rate, summary)
                note(f"  {system.name}: {schedule.what}: {shown(summary)}")
    except (ServerError, SubsecondError) as error:
        note(f"  {system.name} FAILED: {error}")
        found.failures.append({"system": system.name, "round": number, "reason": str(error)})


def shown(summary: Summary) -> str:
    counts = summary.all
    return (
        f"{summary.on_time_per_s:.2f}/s on time, {counts.late} late, {counts.declined} declined, "
        f"{sum(counts.failed.values())} failed, {summary.tokens_per_s:.0f} tok/s, "
        f"generator {summary.share_of_machine:.1%} of the machine"
    )


def best(found: Results, server: str, number: int) -> float:
    """The most answers a second on time of a server in a round."""
    return max(
        (
            cell["summary"]["on_time_per_s"]
            for cell in found.cells
            if cell["system"].partition(",")[0] == server
            and cell["round"] == number
            and cell["rate"] is not None
        ),
        default=0.0,
    )


def table(found: Results, systems: Sequence[System], options: argparse.Namespace) -> list[str]:
    """Medians over the rounds: a row a system, a column a rate."""
    width = max(len(system.name) for system in systems)
    rates = [f"{rate:g}/s" for rate in options.rates]
    head = "".join(f"{rate:>9}" for rate in rates)
    lines = [f"{'answers/s on time':<{width}}{head}{f'{options.streams} streams, tok/s':>22}"]
    for system in systems:
        row = f"{system.name:<{width}}"
        for rate in options.rates:
            row += f"{_median(found.of(system.name, rate), 'on_time_per_s'):>9}"
        row += f"{_median(found.of(system.name, None), 'tokens_per_s'):>22}"
        lines.append(row)
    peers = sorted({system.server for system in systems} - {OURS})
    for peer in peers if any(system.server == OURS for system in systems) else []:
        pairs = [
            (best(found, OURS, number), best(found, peer, number))
            for number in range(1, options.rounds + 1)
        ]
        ratios = [ours / theirs for ours, theirs in pairs if theirs > 0]
        if ratios:
            lines.append(
                f"best of ours over best of {peer}: {statistics.median(ratios):.2f}x "
                f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
            )
        if len(ratios) < len(pairs):
            lines.append(f"{peer}: no answer on time in {len(pairs) - len(ratios)} rounds")
    return lines


def _median(cells: Sequence[dict[str, Any]], name: str) -> str:
    return f"{statistics.median(c['summary'][name] for c in cells):.2f}" if cells else "-"


def draw(found: Results, systems: Sequence[System], options: argparse.Namespace) -> None:
    """Answers on time over what was asked for, a line a system."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for system in systems:
        rates = [rate for rate in options.rates if found.of(system.name, rate)]
        values = [
            statistics.median(c["summary"]["on_time_per_s"] for c in found.of(system.name, rate))
            for rate in rates
        ]
        axes.plot(rates, values, marker="o", ms=3, label=system.name)
    top = max(options.rates)
    axes.plot([0, top], [0, top], color="#7a7a7a", lw=0.8, ls="--", label="all that was asked for")
    axes.set_xlabel("requests/s")
    axes.set_ylabel(f"answers/s within {options.deadline_ms:g} ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    chart.savefig(options.plot, dpi=150)
    pyplot.close(chart)


def system_of(text: str) -> System:
    name, equals, command = text.partition("=")
    if not equals or not name or "{port}" not in command:
        raise argparse.ArgumentTypeError(f"must be NAME=COMMAND with {{port}}, not {text!r:.80}")
    return System(name.strip(), command.strip())


def rates_of(text: str) -> list[float]:
    return sorted(float(word) for word in text.split(","))


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    own = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    own.add_argument("--system", type=system_of, action="append", required=True)
    own.add_argument("--rates", type=rates_of, default=[0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0])
    own.add_argument("--seconds", type=float, default=60.0)
    own.add_argument("--rounds", type=int, default=3)
    own.add_argument("--endpoint", choices=("chat", "completions"), default="completions")
    own.add_argument("--prompt-words", type=int, default=100)
    own.add_argument("--max-tokens", type=int, default=48)
    own.add_argument("--deadline-ms", type=float, default=1000.0)
    own.add_argument("--streams", type=int, default=16)
    own.add_argument("--stream-tokens", type=int, default=128)
    own.add_argument("--drain", type=float, default=60.0)
    own.add_argument("--out", type=Path)
    own.add_argument("--plot", type=Path)
    return own.parse_args(words)


def save(found: Results, options: argparse.Namespace) -> None:
    if options.out is None:
        return
    settings = {
        name: value
        for name, value in vars(options).items()
        if name not in ("out", "plot", "system")
    }
    result = {
        "settings": settings,
        "systems": [system.name for system in options.system],
        "cells": found.cells,
        "failures": found.failures,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    """0; 1 if our own server failed; 2 for wrong use."""
    options = parsed(words)
    found = Results()
    try:
        for number in range(1, options.rounds + 1):
            note(f"round {number} of {options.rounds}")
            order = list(options.system)
            random.Random(number).shuffle(order)
            for system in order:
                run_system(system, options, number, found)
            save(found, options)
    except InputError as error:
        note(f"serve.py: error: {error}")
        return 2
    print("\n".join(table(found, options.system, options)))
    if options.plot is not None:
        draw(found, options.system, options)
    return 1 if any(f["system"].partition(",")[0] == OURS for f in found.failures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
