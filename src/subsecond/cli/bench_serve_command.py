"""`subsecond bench serve URL`: an open-loop load on a server, timed from the scheduled moments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from subsecond.cli import console
from subsecond.cli.server_options import BenchServe
from subsecond.errors import InputError
from subsecond.formats.progress import TerminalProgress

if TYPE_CHECKING:
    from subsecond.bench.load import Run
    from subsecond.bench.load_arrivals import Schedule, Shape

KEY_VARIABLE = "OPENAI_API_KEY"
DURATION_S = 60.0


def run(options: BenchServe) -> int:
    """Exit code 0; 1 if not one request was answered or declined."""
    from subsecond import _native
    from subsecond.bench import load_client
    from subsecond.bench.load import Limits, load
    from subsecond.bench.load_summary import summarize

    load_client.parser()  # what is missing is said before anything is sent
    if options.plot is not None:
        from subsecond.bench import load_plot

        load_plot.backend()
    limits = Limits(timeout_s=options.timeout, drain_s=options.drain)
    schedule = _schedule(options, _shape(options))
    target = load_client.Target.of(options.url, os.environ.get(KEY_VARIABLE) or None)
    with TerminalProgress() as progress:
        done = load(
            target,
            schedule,
            model=options.model,
            limits=limits,
            warmup=options.warmup,
            progress=progress,
        )
    summary = summarize(done, _native.host()["cpus"])
    if options.samples is not None:
        _write_samples(done, Path(options.samples))
    if options.plot is not None:
        load_plot.draw(done, Path(options.plot))
    if options.json:
        console.write_json(msgspec.to_builtins(summary))
    else:
        console.write(summary.text() + "\n")
    return 0 if summary.all.answered + summary.all.declined else 1


def _shape(options: BenchServe) -> Shape:
    from subsecond.bench.load_arrivals import Shape

    body: dict[str, Any] = {}
    for name, value in options.body or ():
        if name in body:
            raise InputError(f"--body {name} is given twice; leave one out")
        body[name] = value
    text = None if options.prompt_file is None else console.read_file(options.prompt_file)
    return Shape(
        endpoint=options.endpoint,  # type: ignore[arg-type]
        prompt_words=options.prompt_words,
        max_tokens=options.max_tokens,
        deadline_s=None if options.deadline_ms is None else options.deadline_ms / 1e3,
        stream=not options.no_stream,
        body=body,
        text=text,
        seed=options.seed,
    )


def _schedule(options: BenchServe, shape: Shape) -> Schedule:
    from subsecond.bench.load_arrivals import poisson, read_trace

    if (options.rate is None) == (options.trace is None):
        raise InputError("give either --rate (requests a second) or --trace (a file)")
    if options.trace is not None:
        for name in ("duration", "requests"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name} belongs to --rate; a trace has its own moments")
        return read_trace(Path(options.trace), shape)
    return poisson(
        shape,
        options.rate or 0.0,
        DURATION_S if options.duration is None else options.duration,
        options.requests or 0,
    )


def _write_samples(done: Run, path: Path) -> None:
    encoder = msgspec.json.Encoder()
    try:
        path.write_bytes(encoder.encode_lines(done.outcomes))
    except OSError as error:
        raise InputError(f"can't write {str(path)!r:.200}: {error.strerror}") from None
