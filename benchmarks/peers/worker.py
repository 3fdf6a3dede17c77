"""One system under test in its own process: carries out one job of decoder.py and reports lines of
JSON.

Owns: how each measure is taken inside the process. Knows no other system, no rounds, no ratios.
Runs in the system's own virtual environment with nothing but the adapter's library; every line that
it reports begins with RESULT, because libraries print too.

    python worker.py JOB.json [cold]

`cold` does nothing but print FIRST as soon as the first token's text is there; decoder.py holds the
watch.
"""

# ruff: noqa: PTH123 -- importing pathlib would be part of every cold start
import importlib
import json
import os
import sys
import time
from typing import Any

from adapters.contract import Adapter, Job

RESULT = "@result "
FIRST = "@first "
COLD_WORDS = 100


def report(measure: str, **fields: Any) -> None:
    print(RESULT + json.dumps({"measure": measure, **fields}), flush=True)


def peak_mib() -> float:
    """Peak resident memory of this process since its exec, MiB (VmHWM: mapped pages that were
    touched count).
    """
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


class Prompts:
    """Windows of the fixed text, another one at every call of a job and in every round."""

    def __init__(self, ids: list[int], offset: int) -> None:
        self.ids = ids
        self.next = offset

    def take(self, length: int) -> list[int]:
        start = self.next * 509 % (len(self.ids) - length)
        self.next += 1
        return self.ids[start : start + length]


def decode_speed(adapter: Adapter, prompt: list[int], new: int) -> tuple[float, list[int]]:
    """Tokens a second between the first and the last new token."""
    generation = adapter.generate(prompt, new)
    if len(generation.tokens) != new:
        raise RuntimeError(f"{len(generation.tokens)} new tokens instead of {new}")
    return (new - 1) / (generation.last_s - generation.first_s), generation.tokens


def measure_decode(adapter: Adapter, job: Job, prompts: Prompts) -> None:
    adapter.generate(prompts.take(job.prompt), 16)
    values: list[float] = []
    first: list[int] = []
    for _ in range(job.repetitions):
        speed, tokens = decode_speed(adapter, prompts.take(job.prompt), job.new)
        values.append(speed)
        first = first or tokens[:8]
    report("decode", values=values, first_tokens=first)
    report("memory", values=[peak_mib()])


def measure_prefill(adapter: Adapter, job: Job, prompts: Prompts) -> None:
    adapter.generate(prompts.take(job.prefill), 2)
    values = [
        adapter.generate(prompts.take(job.prefill), 2).first_s * 1e3 for _ in range(job.repetitions)
    ]
    report("prefill", values=values)


def measure_batch(adapter: Adapter, job: Job, prompts: Prompts) -> None:
    adapter.generate_batch([prompts.take(job.prompt) for _ in range(job.sequences)], 8)
    batch = [prompts.take(job.prompt) for _ in range(job.sequences)]
    start = time.perf_counter()
    outputs = adapter.generate_batch(batch, job.new)
    seconds = time.perf_counter() - start
    lengths = sorted({len(output) for output in outputs})
    if lengths != [job.new] or len(outputs) != job.sequences:
        raise RuntimeError(f"{len(outputs)} outputs of lengths {lengths}, not {job.new}")
    report("batch", values=[job.sequences * job.new / seconds])


def measure_context(adapter: Adapter, job: Job, prompts: Prompts) -> None:
    """Milliseconds that `context` more tokens add to a decode step: the difference of two mean
    steps.
    """
    adapter.generate(prompts.take(job.prompt), 16)
    steps_ms = []
    for _ in range(job.repetitions):
        short, _ = decode_speed(adapter, prompts.take(job.prompt), job.new)
        long, _ = decode_speed(adapter, prompts.take(job.prompt + job.context), job.new)
        steps_ms.append((1e3 / short, 1e3 / long))
    report("context", values=[long - short for short, long in steps_ms], steps_ms=steps_ms)


def measure_spin(adapter: Adapter, job: Job, prompts: Prompts) -> None:
    """Decode speed with another process spinning on one of our cores, over the free speed just
    before.
    """
    import subprocess

    adapter.generate(prompts.take(job.prompt), 16)
    free, _ = decode_speed(adapter, prompts.take(job.prompt), job.new)
    spinner = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        os.sched_setaffinity(spinner.pid, {min(os.sched_getaffinity(0))})
        time.sleep(0.2)
        beside, _ = decode_speed(adapter, prompts.take(job.prompt), job.spin_new)
    finally:
        spinner.kill()
        spinner.wait()
    report("spin", values=[beside / free], free=free, beside=beside)


def measure_perplexity(adapter: Adapter, job: Job, ids: list[int]) -> None:
    """exp of the mean negative log-likelihood over windows without overlap, no token put before."""
    import math

    total = 0.0
    for window in range(job.windows):
        total += adapter.negative_log_likelihood(
            ids[window * job.window : (window + 1) * job.window]
        )
    predictions = job.windows * (job.window - 1)
    report("perplexity", values=[math.exp(total / predictions)], predictions=predictions)


MEASURES = {
    "decode": measure_decode,
    "prefill": measure_prefill,
    "batch": measure_batch,
    "context": measure_context,
    "spin": measure_spin,
}


def run(adapter: Adapter, job: Job, ids: list[int]) -> None:
    start = time.perf_counter()
    adapter.load(job)
    report("load", values=[time.perf_counter() - start], version=adapter.version())
    prompts = Prompts(ids, job.offset)
    for measure in job.measures:
        if measure == "perplexity":
            measure_perplexity(adapter, job, ids)
        else:
            MEASURES[measure](adapter, job, prompts)


def main(arguments: list[str]) -> None:
    with open(arguments[0], encoding="utf-8") as file:
        job = Job(**json.load(file))
    adapter: Adapter = importlib.import_module(f"adapters.{job.adapter}").Adapter()
    with open(job.ids, encoding="utf-8") as file:
        data = json.load(file)
    if arguments[1:] == ["cold"]:
        text = adapter.first_text(job, " ".join(data["text"].split(" ")[:COLD_WORDS]))
        print(FIRST + json.dumps(text), flush=True)
    else:
        run(adapter, job, data["ids"])
    # Some systems' threads hang in their destructors at exit, which is none of what is measured.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
