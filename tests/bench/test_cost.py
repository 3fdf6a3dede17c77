"""Counted work and floors, against sums done by hand."""

from __future__ import annotations

import pytest

from subsecond.bench import cost
from subsecond.bench.decode import Lengths, prompt_of
from subsecond.bench.limits import Limits
from subsecond.errors import InputError
from subsecond.program.program import CacheGroup, CacheLayer, Op, Program, TensorSpec, Value

MACHINE = Limits(
    threads=2, read_bytes_per_s=1e9, int8_ops_per_s=1e9, bf16_ops_per_s=5e8, f32_ops_per_s=1e8
)
PLAIN = {"norm": "none", "eps": 0.0, "gate": "none", "residual": False}


def matrix(name: str, n: int, k: int, role: str) -> TensorSpec:
    return TensorSpec(name, "matrix", n, k, role)  # type: ignore[arg-type]


@pytest.fixture
def program() -> Program:
    """Embedding 64 x 32, fused q|k|v (2 heads, 1 KV head of 16), a projection, tied logits."""
    attention = {
        "group": 0,
        "layer": 0,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 16,
        "scale": 0.25,
        "window": 0,
        "softcap": 0.0,
        "rotary": 0,
        "interleaved": False,
        "factor": 1.0,
        "eps": 0.0,
    }
    normed = {**PLAIN, "norm": "rms", "eps": 1e-6}
    return Program(
        family="tiny",
        vocab_size=64,
        max_positions=128,
        tensors=(
            matrix("embed", 64, 32, "embedding"),
            matrix("q", 32, 32, "linear"),
            matrix("k", 16, 32, "linear"),
            matrix("v", 16, 32, "linear"),
            matrix("o", 32, 32, "linear"),
            TensorSpec("norm", "vector", 32, 0, "vector"),
        ),
        groups=(CacheGroup("main", "full", 0, (CacheLayer(1, 16),)),),
        values=(
            Value(32, "T"),
            Value(64, "T"),
            Value(32, "T"),
            Value(32, "T"),
            Value(32, "R"),
            Value(64, "R"),
        ),
        ops=(
            Op("embed", (), 0, ("embed",), {"ids": "tokens", "scale": 1.0}),
            Op("linear", (0,), 1, ("q", "k", "v", "", "", "", "norm", ""), normed),
            Op("attention", (1,), 2, ("", "", ""), attention),
            Op("linear", (2,), 3, ("o", "", "", ""), PLAIN),
            Op("gather", (3,), 4, (), {}),
            Op("linear", (4,), 5, ("embed", "", "", ""), PLAIN),
        ),
        output=5,
    )


FORMATS = {"embed": "int8", "q": "int4", "k": "int4", "v": "int4", "o": "bf16"}


def test_work_counts_every_matrix_once_in_its_format(program: Program) -> None:
    work = cost.work_of(program, FORMATS)
    qkv = (2 + 1 + 1) * 320  # 16 channels x 32 in one int4 block
    assert work.weight_bytes == 4 * 544 + qkv + 2 * 16 * 64 + 4 * 32
    assert work.token_ops == {"int4": 2 * 64 * 32, "bf16": 2 * 32 * 32}
    assert work.row_ops == {"int8": 2 * 64 * 32}
    assert work.attention_ops == 4 * 2 * 16
    assert work.weights == 64 * 32 + 64 * 32 + 32 * 32 + 32
    assert work.greedy_bytes == work.weight_bytes


def test_a_greedy_step_leaves_out_the_lower_part_of_the_output_matrix(program: Program) -> None:
    whole, split = (
        cost.work_of(program, {**FORMATS, "embed": kind}) for kind in ("int8", "int8_split")
    )
    assert split.weight_bytes == whole.weight_bytes + 4 * 64  # the radii
    assert split.greedy_bytes == split.weight_bytes - 4 * 128
    slow_memory = Limits(2, 1.0, 1e9, 5e8, 1e8)
    assert cost.decode_floor_s(split, slow_memory, 10) == pytest.approx(split.greedy_bytes + 640)


@pytest.mark.parametrize(("kv", "size"), [("bf16", 64), ("f32", 128), ("int8", 44)])
def test_kv_bytes_follow_the_cache_format(program: Program, kv: str, size: int) -> None:
    assert cost.work_of(program, FORMATS, kv).kv_bytes_a_position == size


def test_a_matrix_without_format_is_an_error(program: Program) -> None:
    with pytest.raises(InputError, match="matrix 'o'"):
        cost.work_of(program, {**FORMATS, "o": "int3"})
    with pytest.raises(InputError, match="kv='fp8'"):
        cost.work_of(program, FORMATS, "fp8")


def test_floors_are_bytes_over_bandwidth_or_operations_over_rate(program: Program) -> None:
    work = cost.work_of(program, FORMATS)
    assert cost.context_floor_s(work, MACHINE, 1000) == pytest.approx(64e3 / 1e9)
    arithmetic = 4096 / 1e9 + 2048 / 5e8 + 4096 / 1e9 + 128 * 10 / 5e8
    memory = (work.weight_bytes + 64 * 10) / 1e9
    assert cost.decode_floor_s(work, MACHINE, 10) == pytest.approx(max(arithmetic, memory))
    slow_memory = Limits(2, 1.0, 1e9, 5e8, 1e8)
    assert cost.decode_floor_s(work, slow_memory, 10) == pytest.approx(work.weight_bytes + 640)
    prefill = 100 * (4096 / 1e9 + 2048 / 5e8) + 4096 / 1e9 + 128 * 5050 / 5e8
    assert cost.prefill_floor_s(work, MACHINE, 100) == pytest.approx(prefill)


def test_a_batch_of_one_is_a_prefill_and_its_decode_steps(program: Program) -> None:
    work = cost.work_of(program, FORMATS)
    parts = cost.prefill_floor_s(work, MACHINE, 20) + sum(
        cost.decode_floor_s(work, MACHINE, position) for position in range(21, 30)
    )
    assert cost.batch_floor_s(work, MACHINE, 1, 20, 10) == pytest.approx(parts)


def test_a_cpu_without_an_instruction_is_held_to_float32s_rate() -> None:
    machine = Limits(1, 1e9, None, None, 1e8)
    assert machine.rate("int4") == machine.rate("bf16") == 1e8
    assert "int8" not in machine.lines()[0]


def test_prompts_differ_and_avoid_the_control_tokens() -> None:
    first, second = (prompt_of(49_152, 128, number) for number in (0, 1))
    assert len(first) == 128
    assert first != second
    assert all(256 <= token < 49_152 for token in first + second)
    assert all(0 <= token < 100 for token in prompt_of(100, 32, 3))


@pytest.mark.parametrize(
    ("lengths", "complaint"),
    [
        (Lengths(sequences=0), "sequences is 0"),
        (Lengths(new=1), "new is 1"),
        (Lengths(prefill=5000), "prefill needs 5001 positions, the context has 2048"),
        (Lengths(prompt=2000, new=100), "prompt \\+ new needs 2100"),
    ],
)
def test_impossible_lengths_are_refused_by_name(lengths: Lengths, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        lengths.check(2048)


def test_this_machine_reads_and_multiplies_at_all() -> None:
    from subsecond import _native

    assert _native.limits.read_bandwidth(1, 1 << 20, 0.01) > 1e6
    for rate in (_native.limits.int8_rate, _native.limits.bf16_rate, _native.limits.f32_rate):
        found = rate(2, 0.01)
        assert found is None or found > 1e6
    for bad in ((0, 1 << 20, 0.01), (1, 0, 0.01), (1, 1 << 20, 0.0), (1, 1 << 20, float("nan"))):
        with pytest.raises(ValueError, match="must be"):
            _native.limits.read_bandwidth(*bad)
