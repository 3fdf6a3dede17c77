"""What a program must do: the bytes that it must read and the operations that it must carry out for
a token.

Owns: the counting, and the floors of time that it makes with a machine's limits. Knows nothing of
how a program is executed, so a floor is the same for every executor. A multiplication and an
addition are two operations.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from subsecond.bench.limits import Limits
from subsecond.errors import InputError
from subsecond.formats.artifact import Artifact
from subsecond.formats.layout import FORMATS
from subsecond.formats.stored_program import read_program
from subsecond.program.ops import linear_count
from subsecond.program.program import Op, Program

KV_BYTES: Mapping[str, int] = {"f32": 4, "bf16": 2, "int8": 1}  # of one stored value
_KV_SCALES_BYTES = 12  # int8: three f32, a position and head (csrc/kernels/formats.h)


class Work(msgspec.Struct, frozen=True):
    """A program's cost with its matrices in certain formats.

    `token_ops` and `row_ops` are operations of the matrices that see every token and of those that
    see only the rows whose logits are wanted; `attention_ops` is for one token and one position
    that it looks at, summed over layers. `greedy_bytes` of `weight_bytes` are what a greedy decode
    step of one sequence reads.
    """

    weight_bytes: int
    greedy_bytes: int
    kv_bytes_a_position: int
    token_ops: Mapping[str, int]  # by weight format
    row_ops: Mapping[str, int]
    attention_ops: int
    weights: int  # number of parameters


def work_of(program: Program, formats: Mapping[str, str], kv: str = "bf16") -> Work:
    """Counts a program.

    `formats` maps each matrix's logical name to its stored format (f32, bf16, int8, int4,
    int8_split); `kv` is the cache's format. Sliding windows are counted as full ones: exact up to
    the window's length.
    Raises InputError for a matrix without format.
    """
    token_ops: dict[str, int] = {}
    row_ops: dict[str, int] = {}
    read: dict[str, int] = {}
    seldom: dict[str, int] = {}
    attention_ops = 0
    for op in program.ops:
        if op.kind == "linear":
            counted = row_ops if program.values[op.output].rows == "R" else token_ops
            for name in op.weights[: linear_count(op.weights)]:
                _count_matrix(program, name, formats, counted, read)
                spec, format = program.tensor(name), FORMATS[formats[name]]
                seldom[name] = read[name] - format.greedy_bytes(spec.n, spec.k)
        elif op.kind == "attention":
            attention_ops += 4 * int(op.attributes["heads"]) * int(op.attributes["head_dim"])
        for name in _vectors(program, op):
            read[name] = 4 * program.tensor(name).n
    return Work(
        weight_bytes=sum(read.values()),
        greedy_bytes=sum(read.values()) - sum(seldom.values()),
        kv_bytes_a_position=_kv_bytes(program, kv),
        token_ops=token_ops,
        row_ops=row_ops,
        attention_ops=attention_ops,
        weights=sum(spec.n * max(spec.k, 1) for spec in program.tensors),
    )


def work_of_artifact(artifact: Artifact, kv: str | None = None) -> Work:
    """Counts an opened artifact's program with the formats that its tensors are stored in. kv:
    None is the artifact's own KV cache."""
    program, manifest = read_program(artifact), artifact.manifest
    return work_of(program, {t.name: t.format for t in manifest.tensors}, kv or manifest.kv_default)


def _count_matrix(
    program: Program,
    name: str,
    formats: Mapping[str, str],
    ops: dict[str, int],
    read: dict[str, int],
) -> None:
    if formats.get(name) not in FORMATS:
        raise InputError(
            f"matrix {name!r}: no weight format is given for it; known: {', '.join(FORMATS)}"
        )
    spec, kind = program.tensor(name), formats[name]
    read[name] = FORMATS[kind].matrix_bytes(spec.n, spec.k)
    ops[kind] = ops.get(kind, 0) + 2 * spec.n * spec.k


def _vectors(program: Program, op: Op) -> list[str]:
    return [name for name in op.weights if name and program.tensor(name).kind == "vector"]


def _kv_bytes(program: Program, kv: str) -> int:
    if kv not in KV_BYTES:
        raise InputError(f"kv={kv!r}: not one of {', '.join(KV_BYTES)}")
    total = 0
    for group in program.groups:
        for layer in group.layers:
            scales = _KV_SCALES_BYTES if kv == "int8" else 0
            total += layer.kv_heads * (2 * layer.head_dim * KV_BYTES[kv] + scales)
    return total


def decode_floor_s(work: Work, limits: Limits, context: float) -> float:
    """Least time of one greedy decode step of one sequence that looks at `context` positions."""
    read = work.greedy_bytes + work.kv_bytes_a_position * context
    return max(read / limits.read_bytes_per_s, _compute_s(work, limits, 1, 1, context))


def context_floor_s(work: Work, limits: Limits, positions: int) -> float:
    """Least time that `positions` more positions of context add to a decode step: reading their
    keys and values.
    """
    return work.kv_bytes_a_position * positions / limits.read_bytes_per_s


def prefill_floor_s(work: Work, limits: Limits, tokens: int) -> float:
    """Least time until the first token after a prompt of `tokens` tokens."""
    looked_at = tokens * (tokens + 1) / 2
    compute = _compute_s(work, limits, tokens, 1, looked_at)
    return max(work.weight_bytes / limits.read_bytes_per_s, compute)


def batch_floor_s(work: Work, limits: Limits, sequences: int, prompt: int, new: int) -> float:
    """Least time of `sequences` prompts of `prompt` tokens, each with `new` new tokens, at once."""
    tokens = sequences * (prompt + new - 1)  # the last new token is not computed with
    looked_at = sequences * (prompt + new - 1) * (prompt + new) / 2
    positions_read = sequences * sum(range(prompt + 1, prompt + new))
    read = new * work.weight_bytes + positions_read * work.kv_bytes_a_position
    return max(
        read / limits.read_bytes_per_s,
        _compute_s(work, limits, tokens, sequences * new, looked_at),
    )


def _compute_s(work: Work, limits: Limits, tokens: float, rows: float, looked_at: float) -> float:
    """Seconds of arithmetic at the peak rates; attention at bfloat16's (float32's where the CPU
    lacks it).
    """
    seconds = work.attention_ops * looked_at / (limits.rate("bf16") or limits.rate("f32"))
    for ops, times in ((work.token_ops, tokens), (work.row_ops, rows)):
        for kind, count in ops.items():
            seconds += count * times / limits.rate(kind)
    return seconds
