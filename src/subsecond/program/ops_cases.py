"""Small parameterizations of every op, and each as a program that an executor can run.

Owns: the input generators of the op table. Executor parity tests are generated from them: a case
becomes a program whose inputs are embedded rows and whose logits are the op's result. Knows
nothing of any executor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from subsecond.program.builder import Builder
from subsecond.program.ops import ACTIVATIONS, OPS, AttributeValue
from subsecond.program.ops_reference import F32
from subsecond.program.program import Program, TensorSpec

POSITIONS = 256
# The tensors of the op under test are weight.0, weight.1, ...; its inputs are rows of input.0, ...
WEIGHT = "weight"


@dataclass(frozen=True, slots=True)
class Case:
    """One parameterization: widths of the inputs, shapes of the weight places, attributes."""

    op: str
    inputs: tuple[int, ...] = ()
    weights: tuple[tuple[int, ...] | None, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)

    def program(self) -> Program:
        """Token ids -> the op's gathered result. Raises ModelError for pool (rows of sequences)."""
        a = self.attributes
        shapes = [(width, "T") for width in self.inputs]
        width, _ = OPS[self.op].output(shapes, self.weights, a)
        b = Builder(f"case {self.op}", width, POSITIONS)
        for index, columns in enumerate(self.inputs):
            b.embed(b.matrix(f"input.{index}", width, columns, "embedding"))
        names = tuple(self._declare(b, index) for index in range(len(self.weights)))
        if self.op == "attention":
            b.cache_layer(int(a["window"]), int(a["kv_heads"]), int(a["head_dim"]))
        x = b.emit(self.op, tuple(range(len(self.inputs))), names, **a)
        return b.build(x if self.op in ("gather", "pool") else b.gather(x))

    def random(self, rng: np.random.Generator) -> dict[str, F32]:
        """Values for the tensors of `program()`: matrices of variance 1 / k, rows of variance 1."""
        result = {}
        for spec in self.program().tensors:
            noise = rng.standard_normal(spec.shape).astype(np.float32)
            if spec.kind == "vector":
                values = np.abs(noise) * 0.2 + 0.1 if self._is_frequency(spec) else noise * 0.3 + 1
            else:
                values = noise if spec.role == "embedding" else noise / np.sqrt(spec.k)
            result[spec.name] = values.astype(np.float32)
        return result

    def _declare(self, b: Builder, index: int) -> str:
        shape = self.weights[index]
        if shape is None:
            return ""
        name = f"{WEIGHT}.{index}"
        if len(shape) == 1:
            return b.vector(name, shape[0])
        return b.matrix(name, shape[0], shape[1], "embedding" if self.op == "embed" else "linear")

    def _is_frequency(self, spec: TensorSpec) -> bool:
        place = {"rope": 0, "attention": 2}.get(self.op)
        return place is not None and spec.name == f"{WEIGHT}.{place}"


def _embed(rng: np.random.Generator) -> Iterator[Case]:
    for ids, n, k, scale in (
        ("tokens", 96, 40, 1.0),
        ("tokens", 64, 33, 2.5),
        ("positions", POSITIONS, 48, 1.0),
    ):
        yield Case("embed", (), ((max(n, k), k),), {"ids": ids, "scale": scale})


def _norm(rng: np.random.Generator) -> Iterator[Case]:
    for kind, groups, weight, bias in (
        ("rms", 1, True, False),
        ("rms", 4, True, False),
        ("rms", 1, False, False),
        ("layer", 1, True, True),
        ("layer", 1, True, False),
        ("layer", 2, False, False),
    ):
        size = (72 // groups,)
        weights = (size if weight else None, size if bias else None)
        yield Case("norm", (72,), weights, {"kind": kind, "eps": 1e-5, "groups": groups})


def _linear(rng: np.random.Generator) -> Iterator[Case]:
    for k, sizes, biases, norm, gate, residual in (
        (64, (48,), (False,), "none", "none", False),
        (40, (33,), (True,), "none", "none", True),
        (96, (64, 32, 16), (True, False, True), "rms", "none", False),
        (64, (64,), (False,), "layer", "none", True),
        (72, (50, 50), (False, False), "rms", "silu", False),
        (128, (32, 32), (True, True), "none", "gelu_tanh", True),
        (33, (49, 21), (False, False), "layer", "none", False),
        (64, (40, 40), (False, False), "none", "gelu", False),
    ):
        out = sizes[0] if gate != "none" else sum(sizes)
        matrices = tuple((n, k) for n in sizes)
        vectors = tuple((n,) if bias else None for n, bias in zip(sizes, biases, strict=True))
        norms = ((k,) if norm != "none" else None, (k,) if norm == "layer" else None)
        attributes: dict[str, AttributeValue] = {
            "norm": norm,
            "eps": 1e-6,
            "gate": gate,
            "residual": residual,
        }
        yield Case(
            "linear", (k, out) if residual else (k,), (*matrices, *vectors, *norms), attributes
        )


def _rope(rng: np.random.Generator) -> Iterator[Case]:
    for heads, head_dim, rotary, interleaved, factor in (
        (3, 16, 16, False, 1.0),
        (2, 24, 12, False, 1.2),
        (2, 16, 8, True, 1.0),
        (1, 64, 64, True, 1.0),
    ):
        attributes: dict[str, AttributeValue] = {
            "heads": heads,
            "head_dim": head_dim,
            "rotary": rotary,
            "interleaved": interleaved,
            "factor": factor,
        }
        yield Case("rope", (heads * head_dim,), ((rotary // 2,),), attributes)


def _attention(rng: np.random.Generator) -> Iterator[Case]:
    for heads, kv_heads, head_dim, window, softcap, rotary, interleaved, norms in (
        (4, 2, 16, 0, 0.0, 0, False, False),
        (3, 3, 32, 0, 0.0, 32, False, False),
        (6, 2, 24, 70, 0.0, 12, False, False),
        (4, 1, 16, 5, 4.0, 16, True, False),
        (4, 2, 64, 0, 0.0, 64, False, True),
        (2, 1, 80, 0, 8.0, 0, False, True),
    ):
        norm = (head_dim,) if norms else None
        attributes: dict[str, AttributeValue] = {
            "group": 0,
            "layer": 0,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "scale": head_dim**-0.5,
            "window": window,
            "softcap": softcap,
            "rotary": rotary,
            "interleaved": interleaved,
            "factor": 1.1 if rotary else 1.0,
            "eps": 1e-6,
        }
        weights = (norm, norm, (rotary // 2,) if rotary else None)
        yield Case("attention", ((heads + 2 * kv_heads) * head_dim,), weights, attributes)


def _kinds(op: str, inputs: int) -> Callable[[np.random.Generator], Iterator[Case]]:
    def cases(rng: np.random.Generator) -> Iterator[Case]:
        for kind in ACTIVATIONS:
            yield Case(op, (45,) * inputs, (), {"kind": kind})

    return cases


def _one(
    op: str, *inputs: int, **attributes: AttributeValue
) -> Callable[[np.random.Generator], Iterator[Case]]:
    def cases(rng: np.random.Generator) -> Iterator[Case]:
        yield Case(op, inputs, (), attributes)

    return cases


def _pool(rng: np.random.Generator) -> Iterator[Case]:
    for kind in ("cls", "mean", "last"):
        yield Case("pool", (32,), (), {"kind": kind})


CASES: Mapping[str, Callable[[np.random.Generator], Iterator[Case]]] = {
    "embed": _embed,
    "norm": _norm,
    "linear": _linear,
    "rope": _rope,
    "attention": _attention,
    "activation": _kinds("activation", 1),
    "gated": _kinds("gated", 2),
    "add": _one("add", 50, 50),
    "scale": _one("scale", 50, factor=0.37),
    "softcap": _one("softcap", 50, cap=1.5),
    "slice": _one("slice", 70, start=11, size=40),
    "concat": _one("concat", 24, 17, 40),
    "gather": _one("gather", 40),
    "pool": _pool,
}
