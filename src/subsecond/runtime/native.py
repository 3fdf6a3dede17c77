"""The native executor behind a typed face: a Program and mapped weights in, a model that runs
plans out.

Owns: checking at import that the C++ op list is the op table's, and building a native model from a
Program. Knows nothing of requests or text. Does not import NumPy. What the native classes do is in
docs/design.md, "Runtime".

Errors of the native module arrive as ModelError (the description of a model is wrong) and
RequestError (a plan is).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from subsecond import _native
from subsecond.errors import ModelError, RuntimeFailure, UnsupportedError
from subsecond.program import memory
from subsecond.program.ops import op_table

if TYPE_CHECKING:
    from subsecond.program.program import Program

Model = _native.Model
Plan = _native.Plan
Sampler = _native.Sampler
Weights = _native.Weights
host = _native.host

PAGE_POSITIONS = 64


def _check_op_table() -> None:
    ours, theirs = op_table(), _native.op_table()
    for name in sorted(set(ours) | set(theirs)):
        if ours.get(name) != theirs.get(name):
            raise ImportError(
                f"subsecond._native and subsecond.program.ops disagree about op {name!r}: "
                f"attributes {theirs.get(name)} and {ours.get(name)}; build the package again"
            )


_check_op_table()


class MappedFile:
    """A file of weights, mapped read-only. weights: what a model is built over; its buffer is the
    file's bytes.

    A page of it that the file has no longer ends the process (SIGBUS), so whoever reads asks first.
    Raises ModelError where the file can't be opened or mapped.
    """

    def __init__(self, path: str) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ModelError(f"{path}: cannot be opened: {error.strerror}") from None
        try:
            # The native class takes names of valid Unicode alone; this one means the same file.
            self.weights = Weights(path if _is_unicode(path) else f"/dev/fd/{descriptor}")
        except BaseException:
            os.close(descriptor)
            raise
        self._path, self._descriptor = path, descriptor
        # Not at exit: threads may still ask.
        weakref.finalize(self, os.close, descriptor).atexit = False
        self.check_whole()

    def check_whole(self) -> None:
        """RuntimeFailure where the file has become shorter since it was mapped. Takes half a
        microsecond; what happens to the file afterwards is not seen.
        """
        size, mapped = os.lseek(self._descriptor, 0, os.SEEK_END), self.weights.size
        if size < mapped:
            raise RuntimeFailure(
                f"{self._path}: was cut to {size} bytes, of {mapped}, while it was in use; "
                "restore the file, or convert the model again, and load it anew"
            )


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class TensorPlace(Protocol):
    """A tensor of weights.bin, as an artifact's manifest describes it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model's buffers are made for: tokens, sequences and logit rows of the largest step."""

    tokens: int
    sequences: int
    rows: int


def choose_isa(name: str | None) -> str:
    """`name` if this machine runs it, the best one for None. Raises UnsupportedError."""
    found = host()
    if name is None:
        return found["best"]
    if name not in found["isas"]:
        raise UnsupportedError(
            f"isa {name!r} is not available here; choose one of {', '.join(found['isas'])}"
        )
    return name


def build(
    program: Program,
    tensors: Sequence[TensorPlace],
    weights: Weights,
    *,
    isa: str,
    threads: int,
    kv: str,
    pages: int,
    limits: Limits,
    offsets: Sequence[int] | None = None,
) -> Model:
    """A finished model of `program` over the mapped `weights`, with `pages` KV pages of 64
    positions in each cache group. `offsets` replaces the memory plan (tests keep every value).

    Raises ModelError where program, tensors and file do not fit together.
    """
    model = Model(isa, threads, limits.tokens, limits.sequences, limits.rows)
    places = {tensor.name: tensor for tensor in tensors}
    for spec in program.tensors:
        tensor = places.get(spec.name)
        if tensor is None:
            raise ModelError(f"tensor {spec.name!r} of the program is not in the manifest")
        if (tensor.kind, tensor.n, tensor.k) != (spec.kind, spec.n, spec.k):
            raise ModelError(
                f"tensor {spec.name!r}: the manifest says {tensor.kind} {tensor.n} x {tensor.k}, "
                f"the program {spec.kind} {spec.n} x {spec.k}"
            )
        if tensor.kind == "vector":
            model.add_vector(spec.name, tensor.n, weights, tensor.offset, tensor.size)
        else:
            model.add_tensor(
                spec.name, tensor.format, tensor.n, tensor.k, weights, tensor.offset, tensor.size
            )
    for group in program.groups:
        model.add_group(
            group.kind, group.window, [(layer.kv_heads, layer.head_dim) for layer in group.layers]
        )
    if offsets is None:
        offsets = memory.plan(program).offsets
    for value, offset in zip(program.values, offsets, strict=True):
        model.add_value(value.width, value.rows, offset)
    for op in program.ops:
        model.add_op(op.kind, op.inputs, op.output, op.weights, op.attributes)
    try:
        model.finish(program.output, kv, pages)
    except MemoryError:
        raise RuntimeFailure(
            f"the system gives no memory for {pages} KV pages of 64 positions a cache group and a "
            "step's values; lower context, max_sequences or max_tokens_per_step, or raise the "
            "limit (ulimit -v)"
        ) from None
    return model
