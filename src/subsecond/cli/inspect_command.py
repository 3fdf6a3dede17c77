"""`subsecond inspect`: a model's program and sizes, and the speed that this machine allows."""

from __future__ import annotations

from typing import Any

from subsecond.cli import console
from subsecond.cli.options import Inspect
from subsecond.cli.stored import kept_grids, kept_line, matrix_formats
from subsecond.config import ModelOptions
from subsecond.formats import artifact
from subsecond.formats.locate import locate
from subsecond.formats.progress import TerminalProgress
from subsecond.formats.stored_program import read_program


def run(options: Inspect) -> int:
    """Exit code 0."""
    from subsecond.bench import cost, limits
    from subsecond.runtime import native

    checked = ModelOptions(
        model=options.model, weights=options.weights, kv=options.kv, threads=options.threads
    )
    with TerminalProgress() as progress:
        path = locate(checked.model, checked.weights, progress=progress)  # type: ignore[arg-type]
    opened = artifact.open_artifact(path)
    program = read_program(opened)
    kv = checked.kv or opened.manifest.kv_default
    work = cost.work_of_artifact(opened, kv)
    machine = limits.measure(checked.threads or int(native.host()["cpus"]))
    result = {
        "model": checked.model,
        "path": str(path),
        "family": program.family,
        "weights": opened.manifest.weights,
        "warnings": opened.manifest.warnings,
        "matrices": matrix_formats(opened),
        "matrices_kept": kept_grids(opened, program),
        "parameters": work.weights,
        "vocab_size": program.vocab_size,
        "context": program.max_positions,
        "file_bytes": opened.manifest.files[artifact.WEIGHTS].size,
        "bytes_per_token": work.greedy_bytes,
        "bytes_per_token_sampled": work.weight_bytes,
        "kv_format": kv,
        "kv_bytes_per_token": work.kv_bytes_a_position,
        "threads": machine.threads,
        "read_bytes_per_s": machine.read_bytes_per_s,
        "limit_tokens_per_s": 1 / cost.decode_floor_s(work, machine, 0),
        "limit_tokens_per_s_full_context": 1
        / cost.decode_floor_s(work, machine, program.max_positions),
        "program": program.text(),
    }
    if options.json:
        console.write_json(result)
    else:
        _show(result, kept_line(opened, program), whole=options.program)
    return 0


def _show(result: dict[str, Any], kept: str | None, *, whole: bool) -> None:
    """For people: sizes, limits, then the program (its beginning, unless all of it is asked
    for).
    """
    program: list[str] = result["program"].splitlines()
    ops = [line for line in program if line.startswith("%")]
    shown = program if whole else [line for line in program if not line.startswith("tensor")]
    lines = [
        f"{result['model']}: {result['family']}, {result['weights']}, at {result['path']}",
        f"parameters      {result['parameters'] / 1e6:,.1f} M, in "
        f"{result['file_bytes'] / 1e6:,.1f} MB",
        "matrices        "
        + ", ".join(f"{count} {format}" for format, count in result["matrices"].items())
        + (f" ({kept})" if kept else ""),
        f"bytes a token   {result['bytes_per_token'] / 1e6:,.1f} MB of weights are read"
        f" (greedy; {result['bytes_per_token_sampled'] / 1e6:,.1f} MB with sampling)",
        f"KV cache        {result['kv_bytes_per_token'] / 1e3:,.1f} kB a token "
        f"({result['kv_format']}), "
        f"context {result['context']:,}",
        f"this machine    reads {result['read_bytes_per_s'] / 1e9:.1f} GB/s with "
        f"{result['threads']} threads",
        f"speed limit     {result['limit_tokens_per_s']:,.0f} tokens/s, "
        f"{result['limit_tokens_per_s_full_context']:,.0f} at full context (one sequence)",
        *(f"warning         {warning}" for warning in result["warnings"]),
        f"program         {len(ops)} ops" + ("" if whole else "; --program prints all"),
        *(shown if whole else shown[:SHOWN_LINES]),
    ]
    if not whole and len(shown) > SHOWN_LINES:
        lines.append(f"... {len(shown) - SHOWN_LINES} more lines")
    console.write("\n".join(lines) + "\n")


SHOWN_LINES = 16
