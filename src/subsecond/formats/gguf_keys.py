"""The metadata of one GGUF architecture, read with types and bounds.

Owns: the account of which keys were read, and the keys that change the computation, which are
refused where nobody reads them. Knows nothing of any architecture.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping

from subsecond.errors import ModelError, UnsupportedError
from subsecond.formats.gguf_header import Header, Strings, Value

_LIMIT_BLOCKS = 1 << 12
_LIMIT_SIZE = 1 << 24
# Keys of every architecture that do not change the computation, or repeat what the tensors say.
_BOOKKEEPING = {"tensor_data_layout", "rope.scaling.finetuned"}
# Keys by which architectures change the computation, and the values under which they do not: what
# no family here reads is refused under any other value.
_COMPUTATION: Mapping[str, tuple[float | bool, ...]] = {
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
}


class Keys:
    """Typed access to the architecture's own metadata; remembers what was read."""

    def __init__(self, architecture: str, header: Header) -> None:
        self._prefix = architecture + "."
        self._values = {
            key.removeprefix(self._prefix): value
            for key, value in header.metadata.items()
            if key.startswith(self._prefix)
        }
        self._used = set(_BOOKKEEPING)
        self._header = header
        if self._values.get("expert_count", 0):
            raise UnsupportedError(
                f"GGUF {self._prefix}expert_count: mixtures of experts are not supported"
            )
        self.blocks = self.integer("block_count", low=1, high=_LIMIT_BLOCKS)

    def has(self, key: str) -> bool:
        return key in self._values

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = _LIMIT_SIZE
    ) -> int:
        value = self._take(key, default)
        if isinstance(value, array) and len(value) and value.count(value[0]) == len(value):
            value = value[0]  # one value a layer, all equal
        if type(value) is not int or not low <= value <= high:
            raise ModelError(
                f"GGUF {self._prefix}{key} is {short(value)}, but must be an integer of {low} to "
                f"{high}"
            )
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._take(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 3e38:
            raise ModelError(
                f"GGUF {self._prefix}{key} is {short(value)}, but must be a finite number"
            )
        return _decimal(float(value))

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.real(key, default)
        if value <= 0:
            raise ModelError(f"GGUF {self._prefix}{key} is {value}, but must be above 0")
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"GGUF {self._prefix}{key} is {short(value)}, but must be a bool")
        return value

    def word(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        if not isinstance(value, str):
            raise ModelError(f"GGUF {self._prefix}{key} is {short(value)}, but must be a string")
        return value

    def rows(self, tensor: str) -> int:
        if tensor not in self._header.tensors:
            raise ModelError(f"GGUF tensor {tensor!r} is missing")
        return self._header.tensors[tensor].shape[0]

    def has_tensor(self, tensor: str) -> bool:
        return tensor in self._header.tensors

    def refuse_computation(self) -> None:
        """Refuses the keys of _COMPUTATION that nobody has read, unless their value is harmless."""
        for key, harmless in _COMPUTATION.items():
            if key in self._used or key not in self._values:
                continue
            value = self._values[key]
            if not any(
                isinstance(value, bool) == isinstance(h, bool) and value == h for h in harmless
            ):
                raise UnsupportedError(
                    f"GGUF {self._prefix}{key} = {short(value)} changes the computation and is "
                    "not supported for this architecture"
                )
            self._used.add(key)

    def unused(self) -> dict[str, Value]:
        return {self._prefix + k: v for k, v in self._values.items() if k not in self._used}

    def _take(self, key: str, default: Value | None) -> Value:
        self._used.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise ModelError(f"GGUF metadata {self._prefix}{key} is missing")
        return value


def short(value: object) -> str:
    """A value as messages show it: its beginning, or what it is a list of."""
    if isinstance(value, (array, Strings)):
        return f"an array of {len(value)} values"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _decimal(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF keeps float32 (1e-05 as 9.99999975e-06),
    configs decimals."""
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if abs(short) < 3e38 and struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
