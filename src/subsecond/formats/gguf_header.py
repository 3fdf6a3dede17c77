"""The GGUF header parser: strict, and bounded in memory by the size of the file.

Owns: the byte structure of GGUF versions 2 and 3 (the specification is docs/gguf.md of the ggml
project), and every check that must pass before a length or an offset of the file is used. Knows
nothing of models, and does not touch the tensors' bytes.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap

from subsecond.errors import ModelError, UnsupportedError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
# GGUF value type -> (struct code, array code). A bool is one byte that must be 0 or 1.
_SCALARS = {
    0: ("<B", "B"),
    1: ("<b", "b"),
    2: ("<H", "H"),
    3: ("<h", "h"),
    4: ("<I", "I"),
    5: ("<i", "i"),
    6: ("<f", "f"),
    7: ("<B", "B"),
    10: ("<Q", "Q"),
    11: ("<q", "q"),
    12: ("<d", "d"),
}

# Bounds far above every real file.
_LIMIT_KEYS = 1 << 16
_LIMIT_TENSORS = 1 << 17
_LIMIT_ELEMENTS = 1 << 21
_LIMIT_NAME_BYTES = 1 << 10
_LIMIT_STRING_BYTES = 1 << 25
_LIMIT_ALIGNMENT = 1 << 20
_LIMIT_DIMENSIONS = 4


@dataclass(frozen=True)
class Strings:
    """An array of strings that stays in the file: their ends are kept, 8 bytes each.

    A Python string of two bytes takes 64, so strings are made for the few arrays that are used, and
    only after their number has been compared with the model's.
    """

    data: mmap | bytes
    start: int
    ends: array[int]

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        at = self.start
        for end in self.ends:
            yield self.data[at + 8 : end].decode("utf-8")
            at = end


Value = int | float | bool | str | Strings | array  # type: ignore[type-arg]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: shape row-major (slowest first), ggml type number, absolute byte offset and
    bytes."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """Everything a GGUF file says before its data."""

    version: int
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]
    data_offset: int


def parse(data: mmap | bytes, block_sizes: Mapping[int, tuple[int, int]]) -> Header:
    """Reads the header of a whole GGUF file.

    `block_sizes`: ggml type number -> (values in a block, bytes of a block).
    Raises ModelError for a damaged file, UnsupportedError for a version, byte order or tensor type
    that is not read.
    """
    cursor = _Cursor(data)
    if cursor.take(4, "magic") != _MAGIC:
        raise ModelError(
            "not a GGUF file: it does not start with 'GGUF'; give a GGUF file, a Hugging Face "
            "folder or a hub id"
        )
    version = cursor.u32("version")
    if version not in _VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise UnsupportedError(
                "big-endian GGUF files are not read; convert it to little-endian"
            )
        raise UnsupportedError(f"GGUF version {version} is not read (supported: 2, 3)")
    tensor_count = cursor.count("tensor count", 24, _LIMIT_TENSORS)
    key_count = cursor.count("metadata count", 13, _LIMIT_KEYS)
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.string("metadata key", _LIMIT_NAME_BYTES)
        if key in metadata:
            raise ModelError(f"GGUF metadata key {key!r} appears twice")
        metadata[key] = cursor.value(key)
    records = [_tensor_record(cursor) for _ in range(tensor_count)]
    alignment = _alignment(metadata)
    data_offset = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, type_id, offset in records:
        if name in tensors:
            raise ModelError(f"GGUF tensor {name!r} appears twice")
        size = _tensor_bytes(name, shape, type_id, block_sizes, len(data))
        if offset % alignment:
            raise ModelError(
                f"GGUF tensor {name!r}: offset {offset} is not a multiple of {alignment}"
            )
        if data_offset + offset + size > len(data):
            raise ModelError(
                f"GGUF tensor {name!r} ends at byte {data_offset + offset + size}, but the file "
                f"has {len(data)}: "
                "it is truncated or damaged; download it again"
            )
        tensors[name] = TensorInfo(name, shape, type_id, data_offset + offset, size)
    _check_overlaps(tensors)
    return Header(version, metadata, tensors, data_offset)


def _tensor_record(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string("tensor name", _LIMIT_NAME_BYTES)
    if not name:
        raise ModelError("GGUF tensor with an empty name")
    dimensions = cursor.u32(f"dimension count of {name!r}")
    if not 1 <= dimensions <= _LIMIT_DIMENSIONS:
        raise ModelError(
            f"GGUF tensor {name!r} has {dimensions} dimensions (1 to {_LIMIT_DIMENSIONS} are "
            "allowed)"
        )
    sizes = [cursor.u64(f"shape of {name!r}") for _ in range(dimensions)]
    return (
        name,
        tuple(reversed(sizes)),
        cursor.u32(f"type of {name!r}"),
        cursor.u64(f"offset of {name!r}"),
    )


def _tensor_bytes(
    name: str,
    shape: tuple[int, ...],
    type_id: int,
    block_sizes: Mapping[int, tuple[int, int]],
    file_bytes: int,
) -> int:
    if type_id not in block_sizes:
        raise UnsupportedError(
            f"GGUF tensor {name!r} has the unknown type {type_id}; get the model in another "
            "quantization"
        )
    block, block_bytes = block_sizes[type_id]
    if min(shape) < 1:
        raise ModelError(f"GGUF tensor {name!r} has an empty shape {list(shape)}")
    if shape[-1] % block:
        raise ModelError(
            f"GGUF tensor {name!r}: row length {shape[-1]} is not a multiple of its block of "
            f"{block}"
        )
    size = block_bytes
    for length in (*shape[:-1], shape[-1] // block):
        size *= length
        if size > file_bytes:
            raise ModelError(
                f"GGUF tensor {name!r} of shape {list(shape)} is larger than the whole file "
                f"({file_bytes} bytes)"
            )
    return size


def _alignment(metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 0 < value <= _LIMIT_ALIGNMENT or value & (value - 1):
        raise ModelError(
            f"GGUF general.alignment is {value!r}, but must be a power of two up to "
            f"{_LIMIT_ALIGNMENT}"
        )
    return value


def _check_overlaps(tensors: dict[str, TensorInfo]) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if tensor.offset < end:
            raise ModelError(f"GGUF tensors {before!r} and {tensor.name!r} overlap")
        end, before = tensor.offset + tensor.size, tensor.name


class _Cursor:
    """A reading position that never passes the end of the data."""

    def __init__(self, data: mmap | bytes) -> None:
        self._data = data
        self._end = len(data)
        self.position = 0
        self._elements = 0

    def take(self, size: int, what: str) -> bytes:
        start = self.position
        if size > self._end - start:
            raise ModelError(
                f"GGUF file ends inside {what} (at byte {start}): it is truncated or damaged"
            )
        self.position = start + size
        return self._data[start : start + size]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def count(self, what: str, least_bytes: int, limit: int) -> int:
        """A number of records of at least `least_bytes` each, that must fit into the rest of the
        file."""
        value = self.u64(what)
        if value > limit or value * least_bytes > self._end - self.position:
            raise ModelError(
                f"GGUF {what} {value} does not fit into the file: it is truncated or damaged"
            )
        return value

    def string(self, what: str, limit: int) -> str:
        size = self.u64(what)
        if size > limit:
            raise ModelError(
                f"GGUF {what}: a string of {size} bytes (the limit is {limit}): the file is damaged"
            )
        raw = self.take(size, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(
                f"GGUF {what} is not valid UTF-8 (at byte {self.position - size})"
            ) from error

    def value(self, key: str) -> Value:
        kind = self.u32(key)
        if kind == _STRING:
            return self.string(key, _LIMIT_STRING_BYTES)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise ModelError(f"GGUF metadata {key!r} has the unknown value type {kind}")
        code = _SCALARS[kind][0]
        raw: int | float = struct.unpack(code, self.take(struct.calcsize(code), key))[0]
        if kind == _BOOL:
            if raw not in (0, 1):
                raise ModelError(f"GGUF metadata {key!r} is a bool with the byte {raw}")
            return bool(raw)
        return raw

    def _array(self, key: str) -> Strings | array:  # type: ignore[type-arg]
        kind = self.u32(key)
        if kind == _STRING:
            count = self._elements_of(key, 8)
            start, ends = self.position, array("Q")
            for _ in range(count):
                self.string(key, _LIMIT_STRING_BYTES)
                ends.append(self.position)
            return Strings(self._data, start, ends)
        if kind not in _SCALARS:
            raise UnsupportedError(
                f"GGUF metadata {key!r} is an array of the unsupported element type {kind}; get "
                "another file"
            )
        code = _SCALARS[kind][1]
        values = array(code)
        values.frombytes(self.take(self._elements_of(key, values.itemsize) * values.itemsize, key))
        return values

    def _elements_of(self, key: str, least_bytes: int) -> int:
        count = self.count(f"length of {key!r}", least_bytes, _LIMIT_ELEMENTS)
        self._elements += count
        if self._elements > _LIMIT_ELEMENTS:
            raise ModelError(
                f"GGUF metadata arrays hold more than {_LIMIT_ELEMENTS} elements (at {key!r})"
            )
        return count
