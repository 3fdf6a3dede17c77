"""A sequence's logits are bitwise the same alone, in any batch, with any chunking, page placement
and threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from native_driver import F32, ISAS, Driver, Packed, Text, pack

from subsecond.program.builder import Builder
from subsecond.program.program import Program
from subsecond.program.rewrites import fuse

VOCAB, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP = 90, 96, 4, 2, 24, 120


def model(window: int) -> Program:
    """Two layers of a small decoder with ragged widths; the second one sees `window` positions."""
    b = Builder("bits", VOCAB, 512)
    table = b.matrix("embedding", VOCAB, WIDTH, "embedding")
    inv_freq = b.vector("inv_freq", HEAD_DIM // 2)
    x = b.embed(table)
    for layer in range(2):
        name = f"layer.{layer}."
        h = b.norm(x, "rms", 1e-5, weight=b.vector(name + "norm", WIDTH))
        sizes = (("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM))
        q, k, v = (b.linear(h, b.matrix(name + part, n, WIDTH)) for part, n in sizes)
        q, k = (
            b.rope(part, inv_freq, heads=heads, head_dim=HEAD_DIM, rotary=HEAD_DIM)
            for part, heads in ((q, HEADS), (k, KV_HEADS))
        )
        mixed = b.attention(
            b.concat(q, k, v),
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            scale=HEAD_DIM**-0.5,
            window=window if layer else 0,
        )
        x = b.add(b.linear(mixed, b.matrix(name + "o", WIDTH, HEADS * HEAD_DIM)), x)
        h = b.norm(x, "rms", 1e-5, weight=b.vector(name + "mlp_norm", WIDTH))
        gate, up = (b.linear(h, b.matrix(name + part, MLP, WIDTH)) for part in ("gate", "up"))
        x = b.add(b.linear(b.gated(gate, up, "silu"), b.matrix(name + "down", WIDTH, MLP)), x)
    x = b.norm(b.gather(x), "rms", 1e-5, weight=b.vector("norm", WIDTH))
    return fuse(b.build(b.linear(x, table)))


@dataclass(frozen=True)
class Subject:
    """A packed model, what runs it, and the prompt whose logits must not change."""

    program: Program
    packed: Packed
    isa: str
    kv: str
    prompt: list[int]

    def driver(self, threads: int = 2, seed: int = 0) -> Driver:
        return Driver(
            self.program, self.packed, isa=self.isa, kv=self.kv, threads=threads, seed=seed
        )

    def alone(self) -> F32:
        driver = self.driver(threads=1)
        return driver.step([(driver.sequence(), self.prompt)], "all")


def _formats(program: Program, form: str) -> dict[str, str]:
    mixed = {"embedding": "int8_split", "layer.1.v": "bf16"} if form == "int4" else {}
    return {
        spec.name: mixed.get(spec.name, form) for spec in program.tensors if spec.kind == "matrix"
    }


CASES = [(form, isa, kv) for form, kv in (("int4", "bf16"), ("f32", "f32")) for isa in ISAS]
CASES += [("int8", ISAS[-1], "int8"), ("bf16", ISAS[-1], "bf16")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    form, isa, kv = request.param
    program = model(window=70)
    rng = np.random.default_rng(3)
    weights = {
        spec.name: (
            np.abs(rng.standard_normal(spec.shape)) * 0.3 + 0.1
            if spec.kind == "vector"
            else rng.standard_normal(spec.shape) / np.sqrt(spec.k)
        ).astype(np.float32)
        for spec in program.tensors
    }
    path = tmp_path_factory.mktemp("bits") / "weights.bin"
    packed = pack(path, program, weights, _formats(program, form))
    return Subject(program, packed, isa, kv, rng.integers(0, VOCAB, 290).tolist())


def _chunks(driver: Driver, prompt: Sequence[int], sizes: Iterator[int]) -> F32:
    sequence, parts, done = driver.sequence(), [], 0
    while done < len(prompt):
        size = min(next(sizes), len(prompt) - done)
        parts.append(driver.step([(sequence, prompt[done : done + size])], "all"))
        done += size
    return np.concatenate(parts)


def _equal(a: F32, b: F32) -> bool:
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_pages(subject: Subject, threads: int) -> None:
    driver = subject.driver(threads, seed=threads + 10)
    assert _equal(driver.step([(driver.sequence(), subject.prompt)], "all"), subject.alone())


@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (64,), (17, 1, 2, 129)], ids=str)
def test_chunks(subject: Subject, sizes: tuple[int, ...]) -> None:
    def cycle() -> Iterator[int]:
        while True:
            yield from sizes

    assert _equal(_chunks(subject.driver(), subject.prompt, cycle()), subject.alone())


def test_places_in_a_batch(subject: Subject) -> None:
    """The prompt amid neighbours, all in chunks of changing sizes, down to one token each."""
    driver, rng = subject.driver(3, seed=5), np.random.default_rng(6)
    ours, before, after = (driver.sequence() for _ in range(3))
    parts, done = [], 0
    for size in (1, 100, 1, 1, 33, 1, 2, 150, 1):
        work: list[tuple[Text, list[int]]] = [
            (before, rng.integers(0, VOCAB, int(rng.integers(1, 20)) if size > 1 else 1).tolist()),
            (ours, subject.prompt[done : done + size]),
            (after, rng.integers(0, VOCAB, 1).tolist()),
        ]
        first = len(work[0][1])
        parts.append(driver.step(work, "all")[first : first + size])
        done += size
    assert done == len(subject.prompt)
    assert _equal(np.concatenate(parts), subject.alone())


@pytest.mark.parametrize(
    "plant",
    [
        lambda x: np.nextafter(x, np.float32(np.inf), dtype=np.float32),
        lambda x: -x,
    ],
)
def test_the_comparison_has_teeth(subject: Subject, plant: Callable[[F32], F32]) -> None:
    logits = subject.alone()
    changed = logits.copy()
    changed[-1, 7] = plant(changed[-1, 7])
    assert not _equal(logits, changed)


def test_another_page_is_noticed(subject: Subject) -> None:
    """A wrong page of one early block changes the logits: the pages are read."""
    driver = subject.driver()
    sequence, other = driver.sequence(), driver.sequence()
    driver.step([(other, subject.prompt[::-1])])
    driver.step([(sequence, subject.prompt[:-1])])
    sequence.pages[1] = other.pages[1]
    assert not _equal(driver.step([(sequence, subject.prompt[-1:])]), subject.alone()[-1:])
