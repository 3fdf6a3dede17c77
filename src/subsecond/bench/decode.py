"""How fast one model runs here, beside what this machine allows: what `subsecond bench` prints.

Owns: the three measures and their forms for people and for scripts. Uses the public interface only,
so that it times what users get. Greedy, end of text ignored, a prompt of token ids that differs
from run to run. Does not import NumPy.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import msgspec

from subsecond import _native
from subsecond.bench import cost, limits
from subsecond.config import ModelOptions
from subsecond.engine.sampling import SamplingParams
from subsecond.errors import InputError
from subsecond.formats.artifact import open_artifact
from subsecond.formats.locate import locate
from subsecond.formats.progress import Progress
from subsecond.tasks.generate import LLM

FIRST_ID = 256  # prompts avoid the lowest ids, where control tokens are
APART = 8191  # a prime: where prompts begin, in tokens
STRIDE = 7919  # a prime: consecutive ids of a prompt lie far apart in the embedding table


class Lengths(msgspec.Struct, frozen=True):
    """Lengths of the measures, in tokens, and how often each is repeated (after one run that
    doesn't count).
    """

    prompt: int = 128
    new: int = 128
    prefill: int = 512
    sequences: int = 16
    repetitions: int = 3

    def check(self, context: int) -> None:
        """Raises InputError naming a length that is below 1 or doesn't fit the model's context."""
        for name in self.__struct_fields__:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.new < 2:
            raise InputError(
                f"new is {self.new}; it must be at least 2 to time the steps between tokens"
            )
        for name, wanted in (
            ("prompt + new", self.prompt + self.new),
            ("prefill", self.prefill + 1),
        ):
            if wanted > context:
                raise InputError(
                    f"{name} needs {wanted} positions, the context has {context}; ask for fewer"
                )


class Figure(msgspec.Struct, frozen=True):
    """One measure over its repetitions, and the machine's limit for it in the same unit.

    `reached` is the share of the limit, at best 1, whichever way the measure goes.
    """

    name: str
    unit: str
    median: float
    least: float
    greatest: float
    limit: float
    reached: float


class Result(msgspec.Struct, frozen=True):
    """What `bench` found, in plain values (msgspec.to_builtins makes JSON of it)."""

    model: str
    threads: int
    lengths: Lengths
    load_s: float
    figures: tuple[Figure, ...]
    limits: limits.Limits
    work: cost.Work
    peak_memory_bytes: int

    def text(self) -> str:
        """The result for people."""
        return "\n".join(_lines(self))


def prompt_of(vocab_size: int, length: int, number: int) -> list[int]:
    """Token ids of the `number`th prompt: spread over the vocabulary, the same in every run. No
    other begins alike, so that the prefix cache computes nothing less.
    """
    span = max(vocab_size - FIRST_ID, 1)
    low = FIRST_ID if vocab_size > FIRST_ID else 0
    return [low + (number * APART + i) * STRIDE % span for i in range(length)]


class _Bench:
    """One loaded model and the number of the next prompt."""

    def __init__(self, llm: LLM, lengths: Lengths) -> None:
        self.llm = llm
        self.lengths = lengths
        self.number = 0

    def prompts(self, count: int, length: int) -> list[list[int]]:
        first, self.number = self.number, self.number + count
        return [prompt_of(self.llm.vocab_size, length, first + i) for i in range(count)]

    def decode(self) -> float:
        """Tokens a second between the first and the last new token of one sequence."""
        timing = self.llm.generate(self.prompts(1, self.lengths.prompt), _greedy(self.lengths.new))[
            0
        ].timing
        return (self.lengths.new - 1) / timing.decode_s

    def prefill(self) -> float:
        """Milliseconds until the first token after one long prompt."""
        timing = self.llm.generate(self.prompts(1, self.lengths.prefill), _greedy(1))[0].timing
        return 1e3 * (timing.queue_s + timing.prefill_s)

    def batch(self) -> float:
        """New tokens a second of all sequences together, their prompts' time included."""
        prompts = self.prompts(self.lengths.sequences, self.lengths.prompt)
        begin = time.perf_counter()
        self.llm.generate(prompts, _greedy(self.lengths.new))
        return self.lengths.sequences * self.lengths.new / (time.perf_counter() - begin)


def _greedy(count: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)


def _values(run: Callable[[], float], repetitions: int) -> list[float]:
    """A measure's values, least first, after one run that doesn't count."""
    run()
    return sorted(run() for _ in range(repetitions))


def _figure(name: str, unit: str, values: list[float], limit: float) -> Figure:
    median = statistics.median(values)
    reached = limit / median if unit == "ms" else median / limit
    return Figure(name, unit, median, values[0], values[-1], limit, reached)


def _figures(
    values: tuple[list[float], list[float], list[float]],
    lengths: Lengths,
    work: cost.Work,
    machine: limits.Limits,
) -> tuple[Figure, ...]:
    prompt, new, sequences = lengths.prompt, lengths.new, lengths.sequences
    shape = f"{prompt} tokens in, {new} out"
    decode_s = cost.decode_floor_s(work, machine, prompt + new / 2)
    prefill_s = cost.prefill_floor_s(work, machine, lengths.prefill)
    batch_s = cost.batch_floor_s(work, machine, sequences, prompt, new)
    decode, prefill, batch = values
    return (
        _figure(f"one sequence, {shape}", "tok/s", decode, 1 / decode_s),
        _figure(f"prompt of {lengths.prefill} tokens", "ms", prefill, 1e3 * prefill_s),
        _figure(f"{sequences} sequences, {shape}", "tok/s", batch, sequences * new / batch_s),
    )


def bench(options: ModelOptions, lengths: Lengths, progress: Progress | None = None) -> Result:
    """Loads a model as `options` say, measures it, then measures the machine.

    In this order because the machine's measurement needs a buffer larger than many a model, which
    would be taken for the model's peak memory. Raises what LLM raises, and InputError for
    impossible lengths.
    """
    path = locate(options.model, options.weights, progress=progress)  # type: ignore[arg-type]
    opened = open_artifact(path, check=False)
    threads = options.threads or _native.host()["cpus"]
    begin = time.perf_counter()
    with LLM(
        path,
        kv=options.kv,
        threads=threads,
        isa=options.isa,
        max_tokens_per_step=options.max_tokens_per_step,
        max_sequences=max(options.max_sequences, lengths.sequences),
        context=options.context,
        prefix_cache=0,  # the peak of memory is one text's
        speculation=False,  # random prompts make some models repeat themselves
    ) as llm:
        load_s = time.perf_counter() - begin
        lengths.check(llm.context)
        run, count = _Bench(llm, lengths), lengths.repetitions
        decode = _values(run.decode, count)
        peak = _peak_memory_bytes()
        values = (decode, _values(run.prefill, count), _values(run.batch, count))
    machine = limits.measure(threads)
    kv = options.kv or opened.manifest.kv_default
    work = cost.work_of_artifact(opened, kv)
    return Result(
        model=options.model,
        threads=threads,
        lengths=lengths,
        load_s=load_s,
        figures=_figures(values, lengths, work, machine),
        limits=machine,
        work=work,
        peak_memory_bytes=peak,
    )


def _peak_memory_bytes() -> int:
    """Most resident memory of this process so far, mapped weights included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _lines(result: Result) -> list[str]:
    work = result.work
    lines = [
        f"{result.model}: {work.weights / 1e6:.1f} M weights, "
        f"{work.greedy_bytes / 1e6:.1f} MB read a token, "
        f"{work.kv_bytes_a_position / 1e3:.1f} kB a position of context",
        f"{result.threads} threads, loaded in {result.load_s * 1e3:.0f} ms, "
        f"peak memory {result.peak_memory_bytes / 1e6:.0f} MB when one sequence had been decoded",
        *result.limits.lines(),
    ]
    width = max(len(figure.name) for figure in result.figures)
    for f in result.figures:
        spread = f"({f.least:.0f} to {f.greatest:.0f})"
        lines.append(
            f"  {f.name:<{width}}  {f.median:7.1f} {f.unit:<5} {spread:<16}"
            f"  limit {f.limit:7.1f}: {f.reached:4.0%} of it"
        )
    return lines
