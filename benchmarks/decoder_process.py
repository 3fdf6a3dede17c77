"""Runs one job of one system in a process of its own, with a time limit, and reads what it reports.

Owns: processes, their limits and their ends. Knows nothing of rounds and ratios.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decoder_config import ADAPTERS, Lengths, System

PEERS = Path(__file__).resolve().parent / "peers"
WORKER = PEERS / "worker.py"
RESULT = "@result "
FIRST = "@first "
TAIL_CHARACTERS = 600  # of standard error, in a failure's reason

Report = dict[str, Any]


class ProcessError(RuntimeError):
    """A system's process ended wrongly, reported nothing or ran out of time."""


def environment() -> dict[str, str]:
    """Ours, with the hub offline: a peer that fetches something would be timed doing it."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def job_of(
    system: System,
    measures: tuple[str, ...],
    *,
    ids: Path,
    threads: int,
    lengths: Lengths,
    offset: int,
) -> dict[str, Any]:
    """The worker's job as JSON (peers/adapters/contract.py)."""
    return {
        "adapter": ADAPTERS[system.name],
        "model": system.model,
        "format": system.format,
        "options": dict(system.options),
        "threads": threads,
        "measures": [measure for measure in measures if measure != "memory"],
        "ids": str(ids),
        "repetitions": lengths.repetitions,
        "prompt": lengths.prompt,
        "new": lengths.new,
        "prefill": lengths.prefill,
        "sequences": lengths.sequences,
        "context": lengths.context,
        "windows": lengths.windows,
        "window": lengths.window,
        "spin_new": lengths.spin_new,
        "offset": offset,
    }


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kills the process and all that it started; it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end_group(process: subprocess.Popen[str]) -> None:
    """Kills, and leaves neither a zombie nor an open pipe behind."""
    kill_group(process)
    if process.stdout:
        process.stdout.close()
    process.wait()


def start(command: list[str], errors: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def tail_of(errors: Any) -> str:
    errors.seek(0)
    return str(errors.read()[-TAIL_CHARACTERS:]).strip()


def run_command(command: list[str], timeout_s: float) -> str:
    """Standard output of a process that ended well. Raises ProcessError with the end of what it
    complained.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            process = start(command, errors)
        except OSError as error:
            raise ProcessError(f"cannot start {command[0]}: {error.strerror}") from None
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"not done after {timeout_s:g} s") from None
        finally:
            end_group(process)
        if process.returncode != 0:
            raise ProcessError(f"exit status {process.returncode}: {tail_of(errors)}")
        return output


def run_measures(system: System, job: Mapping[str, Any], timeout_s: float) -> dict[str, Report]:
    """What the worker reported, by measure. Raises ProcessError if a measure of the job is
    missing.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        output = run_command([system.python, str(WORKER), file.name], timeout_s)
    reports: dict[str, Report] = {}
    for line in output.splitlines():
        if line.startswith(RESULT):
            report = json.loads(line.removeprefix(RESULT))
            reports[report.pop("measure")] = report
    if lost := [measure for measure in job["measures"] if measure not in reports]:
        raise ProcessError(f"ended well but did not report {', '.join(lost)}")
    return reports


def time_cold(system: System, job: Mapping[str, Any], timeout_s: float) -> Report:
    """Seconds from exec to the first token's text, seen from outside."""
    with (
        tempfile.NamedTemporaryFile("w", suffix=".json") as file,
        tempfile.TemporaryFile("w+", errors="replace") as errors,
    ):
        json.dump(job, file)
        file.flush()
        begin = time.perf_counter()
        try:
            process = start([system.python, str(WORKER), file.name, "cold"], errors)
        except OSError as error:
            raise ProcessError(f"cannot start {system.python}: {error.strerror}") from None
        limit = threading.Timer(timeout_s, kill_group, [process])
        limit.start()
        try:
            for line in process.stdout or ():
                if line.startswith(FIRST):
                    seconds = time.perf_counter() - begin
                    return {"values": [seconds], "text": json.loads(line.removeprefix(FIRST))}
        finally:
            limit.cancel()
            end_group(process)
        raise ProcessError(f"no first token (limit {timeout_s:g} s): {tail_of(errors)}")
