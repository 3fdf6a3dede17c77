"""An engine process whose models are hashes: `python fake_process.py FD`.

The path of a model is a JSON object: step_s (how long a step sleeps), load_s (loading), error and
fails_if_there (loading fails), and FakeRunner's sizes. Prompts that begin with FAIL or HANG plant a
fault in the step that reads them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from fake_runner import FakeRunner

from subsecond.engine.engine import Engine
from subsecond.engine.messages import LoadOptions
from subsecond.engine.process import EngineProcess
from subsecond.errors import ModelError

FAIL = [90, 91, 92]
HANG = [93, 94, 95]
COMMAND = (sys.executable, __file__)


class PlantedRunner(FakeRunner):
    """A FakeRunner that takes its time, and fails or hangs where a prompt says so."""

    def __init__(self, step_s: float, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.step_s = step_s

    def run(self, tokens: int, sequences: int, rows: int, max_steps: int) -> int:
        time.sleep(self.step_s)
        for index in range(sequences):
            start = self.plan.sequence_start[index]
            head = list(self.plan.tokens[start : start + 3])
            if self.plan.position[index] == 0 and head == FAIL:
                raise RuntimeError("planted failure")
            if self.plan.position[index] == 0 and head == HANG:
                time.sleep(3600)
        return super().run(tokens, sequences, rows, max_steps)


def load(path: str, options: LoadOptions) -> tuple[Engine, str]:
    given = json.loads(path)
    time.sleep(given.pop("load_s", 0.0))
    if "fails_if_there" in given and Path(given.pop("fails_if_there")).exists():
        raise ModelError("the file is there")
    if "error" in given:
        raise ModelError(given["error"])
    runner = PlantedRunner(given.pop("step_s", 0.0), **given)
    return Engine(runner, context=512, steps_per_call=options.steps_per_call), "fake"


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        process = EngineProcess(connection, load, leave=os._exit)
        signal.signal(signal.SIGTERM, lambda *_: process.drain())
        code = process.run()
    os._exit(code)
