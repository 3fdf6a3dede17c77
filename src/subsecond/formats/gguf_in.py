"""A GGUF file as a Checkpoint.

Owns: reading tensors (dequantized by the gguf library), the exact grids of Q4_0, Q4_1 and Q8_0, and
undoing the row orders, transposes and shifts that gguf_config.py names. Knows nothing of model
families or of artifacts.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from subsecond.errors import ModelError, UnsupportedError
from subsecond.formats import files, gguf_config, gguf_header
from subsecond.formats.artifact import Source
from subsecond.formats.checkpoint import Texts
from subsecond.formats.gguf_header import Strings, TensorInfo
from subsecond.formats.gguf_names import Entry
from subsecond.formats.layout import GROUP_INT
from subsecond.formats.pack import Grid

_TYPES = {int(t): t for t in GGMLQuantizationType}
_BLOCK_SIZES = {int(t): sizes for t, sizes in GGML_QUANT_SIZES.items()}
_CHUNK_VALUES = 1 << 20
_LIMIT_CONSTANTS = 1 << 16
# Arrays of the tokenizer, and how many entries a token of the vocabulary they may have.
_LISTS = {
    "tokenizer.ggml.tokens": 1,
    "tokenizer.ggml.token_type": 1,
    "tokenizer.ggml.scores": 1,
    "tokenizer.ggml.merges": 8,
}
_BLOCK_Q4_0 = np.dtype([("scale", "<f2"), ("quant", "u1", 16)])
_BLOCK_Q4_1 = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("quant", "u1", 16)])
_BLOCK_Q8_0 = np.dtype([("scale", "<f2"), ("quant", "i1", 32)])


class GgufCheckpoint:
    """An open GGUF file, in Hugging Face's names, shapes and values."""

    def __init__(self, path: Path, *, name: str = "", revision: str = "", label: str = "") -> None:
        """Maps the file and checks its header. `name` and `revision` say where a downloaded file
        came from, `label` is what messages call it.

        Raises ModelError, or UnsupportedError for what is not read.
        """
        self._path, self._name, self._revision = path, name or files.printable(path.name), revision
        self.label = self.config_label = label or str(path)
        files.refuse_half(path)
        with files.open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path}: is empty; download it again")
            self._data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        try:
            self._header = gguf_header.parse(self._data, _BLOCK_SIZES)
            description = gguf_config.describe(self._header, self._floats)
            self.config: dict[str, Any] = description.config
            self._entries = description.tensors
            self._share_tied_output()
            self.shapes: Mapping[str, tuple[int, ...]] = {
                n: self._shape(e) for n, e in self._entries.items()
            }
        except BaseException:
            self.close()
            raise

    @property
    def texts(self) -> Texts:
        """The `tokenizer.*` metadata, its arrays as lists."""
        metadata: dict[str, Any] = {}
        for key, value in self._header.metadata.items():
            if key in _LISTS and isinstance(value, (array, Strings)):
                self._check_length(key, len(value))
                metadata[key] = list(value)
            elif key.startswith("tokenizer.") or key == "general.architecture":
                metadata[key] = value
        template = metadata.get("tokenizer.chat_template")
        return Texts(
            gguf=metadata,
            chat_template=template if isinstance(template, str) else None,
            template_name="GGUF tokenizer",
        )

    def _check_length(self, key: str, length: int) -> None:
        """Compares the length of a tokenizer's array with the embedding before it is unpacked."""
        rows = self.config["vocab_size"]
        if length > _LISTS[key] * rows:
            raise ModelError(
                f"GGUF {key} has {length} entries, but token_embd.weight has {rows} rows: this "
                "tokenizer belongs to another model"
            )

    def where(self, name: str) -> str:
        stored = self._entries[name].gguf
        return f"{self.label}: tensor {stored!r}" + (f" ({name})" if name != stored else "")

    def same(self, a: str, b: str) -> bool:
        return np.array_equal(self.read(a), self.read(b))

    def source(self) -> Source:
        return Source(
            "gguf",
            self._name,
            self._revision,
            {files.printable(self._path.name): files.sha256(self._path)},
        )

    def read(self, name: str) -> NDArray[np.float32]:
        entry = self._entries[name]
        info = self._header.tensors[entry.gguf]
        values = self._dequantized(info).reshape(info.shape)
        if entry.rows:
            values = values[self._row_order(entry, info.shape[0])]
        if entry.shift:
            values = values - np.float32(entry.shift)
        return np.ascontiguousarray(values.T) if entry.transposed else values

    def grid(self, name: str, *, transposed: bool = False) -> Grid | None:
        entry = self._entries[name]
        info = self._header.tensors[entry.gguf]
        if entry.transposed != transposed or entry.shift or len(info.shape) != 2:
            return None
        grid = _stored_grid(self._bytes(info), info)
        return grid.rows(self._row_order(entry, info.shape[0])) if grid and entry.rows else grid

    def close(self) -> None:
        # Where an array of a caller still looks into the mapping, it closes when the last one goes.
        with suppress(BufferError):
            self._data.close()

    def _bytes(self, info: TensorInfo) -> NDArray[np.uint8]:
        return np.frombuffer(self._data, dtype=np.uint8, count=info.size, offset=info.offset)

    def _shape(self, entry: Entry) -> tuple[int, ...]:
        shape = self._header.tensors[entry.gguf].shape
        return tuple(reversed(shape)) if entry.transposed else shape

    def _floats(self, name: str) -> Sequence[float]:
        if name not in self._header.tensors:
            raise ModelError(f"GGUF tensor {name!r} is missing")
        info = self._header.tensors[name]
        if len(info.shape) != 1 or info.shape[0] > _LIMIT_CONSTANTS:
            raise ModelError(f"GGUF tensor {name!r} has the impossible shape {list(info.shape)}")
        values: list[float] = self._dequantized(info).ravel().tolist()
        return values

    def _dequantized(self, info: TensorInfo) -> NDArray[np.float32]:
        """The tensor as float32 [rows, row length], converted a few rows at a time to bound
        memory."""
        row = info.shape[-1]
        out = np.empty((_values(info) // row, row), dtype=np.float32)
        data = self._bytes(info).reshape(len(out), -1)
        step = max(1, _CHUNK_VALUES // row)
        kind = _TYPES[info.type_id]
        with np.errstate(all="ignore"):  # NaN and infinity are the caller's to refuse
            for start in range(0, len(out), step):
                try:
                    out[start : start + step] = dequantize(data[start : start + step], kind)
                except NotImplementedError:
                    raise UnsupportedError(
                        f"GGUF tensor {info.name!r}: type {kind.name} is not read"
                    ) from None
        return out

    def _row_order(self, entry: Entry, n: int) -> NDArray[np.intp]:
        """For each row of the Hugging Face tensor, the row of the file that holds it."""
        heads = self.config["num_attention_heads"]
        if entry.rows == "rope_k":
            heads = self.config["num_key_value_heads"]
        if (
            entry.rows == "neox_qkv"
        ):  # the file: all q, all k, all v; Hugging Face: q, k, v of each head in turn
            parts = (3, heads, n // (3 * heads))
            order = (1, 0, 2)
        else:  # the file: rope pairs (2i, 2i + 1); Hugging Face: (i, i + head_dim / 2)
            parts = (heads, n // heads // 2, 2)
            order = (0, 2, 1)
        if parts[0] * parts[1] * parts[2] != n:
            raise ModelError(
                f"GGUF tensor {entry.gguf!r}: {n} rows do not divide into {heads} heads"
            )
        return np.arange(n).reshape(parts).transpose(order).reshape(-1)

    def _share_tied_output(self) -> None:
        """Some converters write a tied matrix twice; equal bytes are one tensor."""
        tensors = self._header.tensors
        if "output.weight" not in tensors or "token_embd.weight" not in tensors:
            return
        a, b = tensors["output.weight"], tensors["token_embd.weight"]
        if (a.shape, a.type_id) == (b.shape, b.type_id) and np.array_equal(
            self._bytes(a), self._bytes(b)
        ):
            self._entries = {n: e for n, e in self._entries.items() if e.gguf != "output.weight"}
            self.config["tie_word_embeddings"] = True


def _values(info: TensorInfo) -> int:
    count = 1
    for length in info.shape:
        count *= length
    return count


def _stored_grid(data: NDArray[np.uint8], info: TensorInfo) -> Grid | None:
    """The grid of a Q4_0, Q4_1 or Q8_0 matrix, value for value; None for other types."""
    n, k = info.shape
    kind = _TYPES[info.type_id]
    if kind == GGMLQuantizationType.Q8_0:
        blocks = data.view(_BLOCK_Q8_0).reshape(n, k // GROUP_INT)
        offset = np.ascontiguousarray(blocks["quant"]).view(np.uint8) ^ np.uint8(0x80)  # q + 128
        return Grid("int8", np.ascontiguousarray(blocks["scale"]), None, offset.reshape(n, k))
    if kind == GGMLQuantizationType.Q4_1:
        blocks = data.view(_BLOCK_Q4_1).reshape(n, k // GROUP_INT)
        minimum = np.ascontiguousarray(blocks["minimum"])
    elif kind == GGMLQuantizationType.Q4_0:
        blocks = data.view(_BLOCK_Q4_0).reshape(n, k // GROUP_INT)
        with np.errstate(over="ignore", invalid="ignore"):
            minimum = blocks["scale"] * np.float16(-8)  # exact: a power of two, unless it overflows
        if not np.isfinite(minimum).all():
            return None
    else:
        return None
    quant = np.empty((n, k // GROUP_INT, GROUP_INT), dtype=np.uint8)
    np.bitwise_and(blocks["quant"], 0x0F, out=quant[:, :, :16])
    np.right_shift(blocks["quant"], 4, out=quant[:, :, 16:])
    return Grid("int4", np.ascontiguousarray(blocks["scale"]), minimum, quant.reshape(n, k))
