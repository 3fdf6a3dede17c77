"""A Hugging Face folder as a Checkpoint: config.json, safetensors (one file or shards with an
index), texts.

Owns: the safetensors header, parsed strictly (the safetensors library cannot give bfloat16 to
NumPy, and its checks are not ours to rely on), the shard index, and which text files of a folder
matter. Knows nothing of model families.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subsecond.errors import ModelError, UnsupportedError
from subsecond.formats import files
from subsecond.formats.artifact import Source
from subsecond.formats.checkpoint import Texts
from subsecond.formats.layout import LIMIT_BYTES
from subsecond.formats.pack import Grid, from_bf16

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LIMIT_HEADER_BYTES = 100_000_000  # the format's own bound
_LIMIT_TENSORS = 1 << 16
_LIMIT_HEADER_VALUES = 16 * _LIMIT_TENSORS  # a tensor of 8 dimensions has 15
_LIMIT_SHARDS = 1 << 12
_CHUNK_BYTES = 1 << 20
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_OTHER_DTYPES = frozenset(
    "BOOL U8 I8 U16 I16 U32 I32 U64 I64 F64 F8_E4M3 F8_E5M2 F8_E8M0 F4 C64".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class _Stored:
    """One tensor of one mapped file: absolute offset and bytes."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class SafetensorsCheckpoint:
    """An open Hugging Face model folder."""

    def __init__(
        self, folder: Path, *, name: str = "", revision: str = "", label: str = ""
    ) -> None:
        """Reads config, index and headers. `name` and `revision` say where a downloaded folder came
        from, `label` is what messages call it.

        Raises ModelError naming what is missing, damaged or leads outside the folder.
        """
        self._folder, self._name, self._revision = (
            folder,
            name or files.printable(folder.resolve().name),
            revision,
        )
        self.label = label or str(folder)
        self.config_label = f"{self.label}/config.json"
        self._maps: dict[str, mmap.mmap] = {}
        self._tensors: dict[str, _Stored] = {}
        self._read: list[str] = ["config.json"]
        self.config: dict[str, Any] = files.read_json_object(_required(folder, "config.json"))
        try:
            weight_map = self._index()
            shards = sorted(set(weight_map.values())) if weight_map else [_WEIGHTS]
            self._refuse_missing(shards)
            for shard in shards:
                self._open_shard(shard, weight_map)
            for tensor, shard in (weight_map or {}).items():
                if tensor not in self._tensors:
                    raise ModelError(
                        f"{folder / shard}: tensor {tensor!r} is missing, although {_INDEX} names "
                        "it"
                    )
            self.texts = self._texts()
        except BaseException:
            self.close()
            raise
        self.shapes: Mapping[str, tuple[int, ...]] = {n: t.shape for n, t in self._tensors.items()}

    def source(self) -> Source:
        hashes = {name: files.sha256(files.inside(self._folder, name)) for name in self._read}
        return Source("safetensors", self._name, self._revision, hashes)

    def read(self, name: str) -> NDArray[np.float32]:
        tensor = self._tensors[name]
        if tensor.dtype not in _DTYPES:
            raise UnsupportedError(
                f"{self.where(name)} is stored as {tensor.dtype}; only F32, F16 and BF16 are read: "
                "convert it first, or get another version of the model"
            )
        dtype = _DTYPES[tensor.dtype]
        count = tensor.size // dtype.itemsize
        raw = np.frombuffer(
            self._maps[tensor.shard], dtype=dtype, count=count, offset=tensor.offset
        )
        values = from_bf16(raw) if tensor.dtype == "BF16" else raw.astype(np.float32)
        return values.reshape(tensor.shape)

    def where(self, name: str) -> str:
        return f"{self.label}/{self._tensors[name].shard}: tensor {name!r}"

    def same(self, a: str, b: str) -> bool:
        x, y = self._tensors[a], self._tensors[b]
        if (x.dtype, x.shape) != (y.dtype, y.shape):
            return np.array_equal(self.read(a), self.read(b))
        return all(
            self._maps[x.shard][x.offset + i : x.offset + min(i + _CHUNK_BYTES, x.size)]
            == self._maps[y.shard][y.offset + i : y.offset + min(i + _CHUNK_BYTES, x.size)]
            for i in range(0, x.size, _CHUNK_BYTES)
        )

    def grid(self, name: str, *, transposed: bool = False) -> Grid | None:
        return None  # this format has no grids; grid.py looks for them in the values

    def close(self) -> None:
        # Where an array of a caller still looks into a mapping, it closes when the last one goes.
        for data in self._maps.values():
            with suppress(BufferError):
                data.close()

    def _index(self) -> dict[str, str] | None:
        """Tensor name -> shard file name, or None for a folder with a single file."""
        if not (self._folder / _INDEX).exists():
            if (self._folder / _WEIGHTS).exists():
                return None
            pickled = [
                p.name
                for p in self._folder.iterdir()
                if p.suffix in (".bin", ".pt", ".pth", ".ckpt")
            ]
            if pickled:
                raise UnsupportedError(
                    f"{self._folder / pickled[0]}: pickled weights can run code and are not read; "
                    "get the model's safetensors, or save it again with safe_serialization=True"
                )
            half = files.half_of(self._folder / _WEIGHTS)
            raise ModelError(
                f"{self._folder}: no {_WEIGHTS} and no {_INDEX}"
                + (f", but {half}" if half else "")
                + "; the download is not complete, finish it"
            )
        self._read.append(_INDEX)
        index = files.read_json_object(files.inside(self._folder, _INDEX))
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(
                f"{self._folder / _INDEX}: weight_map must be a JSON object with tensors"
            )
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ModelError(f"{self._folder / _INDEX}: weight_map must map names to file names")
        if len(set(weight_map.values())) > _LIMIT_SHARDS:
            raise ModelError(f"{self._folder / _INDEX}: more than {_LIMIT_SHARDS} shards")
        return weight_map

    def _refuse_missing(self, shards: Sequence[str]) -> None:
        """Names every shard of the index that is not here, or that is none."""
        for shard in shards:
            if not shard.endswith(".safetensors"):
                files.inside(self._folder, shard)
                raise UnsupportedError(
                    f"{self._folder / _INDEX}: names {shard!r}; only .safetensors files are read"
                )
        missing = [s for s in shards if not files.exists(files.inside(self._folder, s))]
        if not missing:
            return
        halves = [h for s in missing if (h := files.half_of(self._folder / s)) is not None]
        found = f" ({', '.join(halves[:4])} is not complete)" if halves else ""
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise ModelError(
            f"{self._folder / _INDEX}: names {len(missing)} of {len(shards)} shards that are "
            f"missing: {', '.join(missing[:4])}{more}{found}; finish the download"
        )

    def _open_shard(self, shard: str, weight_map: Mapping[str, str] | None) -> None:
        path = files.inside(self._folder, shard)
        files.refuse_half(path)
        with files.open_regular(path) as file:
            if os.fstat(file.fileno()).st_size < 8:
                raise ModelError(
                    f"{path}: too short for a safetensors file, the download is not complete; "
                    "download it again"
                )
            self._maps[shard] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._read.append(shard)
        for name, tensor in _parse_header(self._maps[shard], shard, str(path)).items():
            if name in self._tensors:
                raise ModelError(
                    f"{path}: tensor {name!r} is in {self._tensors[name].shard} too; download "
                    "both again"
                )
            if weight_map is not None and weight_map.get(name) != shard:
                raise ModelError(f"{path}: holds the tensor {name!r}, but {_INDEX} does not say so")
            self._tensors[name] = tensor

    def _texts(self) -> Texts:
        tokenizer = self._optional("tokenizer.json", files.LIMIT_TOKENIZER_BYTES)
        if tokenizer is None:
            raise ModelError(
                f"{self._folder}: no tokenizer.json; a model folder needs one (save it with "
                "transformers' "
                "AutoTokenizer.from_pretrained(...).save_pretrained)"
            )
        config = self._optional_object("tokenizer_config.json")
        template = self._optional("chat_template.jinja")
        return Texts(
            tokenizer_json=tokenizer,
            tokenizer_config=config,
            generation_config=self._optional_object("generation_config.json"),
            chat_template=_text(template, str(self._folder / "chat_template.jinja"))
            if template
            else _template_of(config, str(self._folder / "tokenizer_config.json")),
            template_name="chat_template.jinja" if template else "tokenizer_config.json",
        )

    def _optional(self, name: str, limit: int = files.LIMIT_JSON_BYTES) -> bytes | None:
        if not (self._folder / name).exists():
            return None
        self._read.append(name)
        return files.read_bytes(files.inside(self._folder, name), limit)

    def _optional_object(self, name: str) -> dict[str, Any]:
        data = self._optional(name)
        value = {} if data is None else files.parse_json(data, str(self._folder / name))
        if not isinstance(value, dict):
            raise ModelError(f"{self._folder / name}: must hold a JSON object")
        return value


def _required(folder: Path, name: str) -> Path:
    if not (folder / name).exists():
        if (folder / "adapter_config.json").exists():
            raise UnsupportedError(
                f"{folder}: is an adapter (adapter_config.json), not a model; merge it into its "
                "base model (PEFT's merge_and_unload) and give the merged model's folder"
            )
        files_here = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"; give the path of the file {files_here[0]}" if files_here else ""
        half = files.half_of(folder / name)
        hint = f"; finish the download of {half}" if half else hint or "; download all of it"
        raise ModelError(f"{folder}: no {name}: not a complete Hugging Face model folder{hint}")
    return files.inside(folder, name)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ModelError(f"{what}: not valid UTF-8") from None


def _template_of(config: Mapping[str, Any], what: str) -> str | None:
    """The chat template of tokenizer_config.json: a string, or a list of named ones of which
    `default` is taken."""
    value = config.get("chat_template")
    if isinstance(value, list):
        if not all(
            isinstance(v, dict)
            and isinstance(v.get("name"), str)
            and isinstance(v.get("template"), str)
            for v in value
        ):
            raise ModelError(f"{what}: chat_template must list objects with name and template")
        value = {v["name"]: v["template"] for v in value}.get("default")
    if value is not None and not isinstance(value, str):
        raise ModelError(f"{what}: chat_template must be a string or a list of named templates")
    return value


def _parse_header(data: mmap.mmap, shard: str, where: str) -> dict[str, _Stored]:
    """The tensors of one file. Their bytes must fill the data part without a gap, as the format
    demands."""
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(_LIMIT_HEADER_BYTES, len(data) - 8):
        raise ModelError(
            f"{where}: the header claims {size} bytes of a file of {len(data)}: it is damaged"
        )
    text = data[8 : 8 + size]
    # A parsed record takes ten times its text. Every record is an object, and so are the header
    # itself and its metadata: counted before anything is parsed.
    if text.count(b"{") > _LIMIT_TENSORS + 2:
        raise ModelError(
            f"{where}: the header names more than {_LIMIT_TENSORS} tensors: it is damaged or not "
            "a model's"
        )
    header = files.parse_json(text, where, _LIMIT_HEADER_VALUES)
    if not isinstance(header, dict):
        raise ModelError(f"{where}: the header must be a JSON object")
    header.pop("__metadata__", None)
    base = 8 + size
    tensors = {name: _record(entry, name, shard, where, base) for name, entry in header.items()}
    end = base
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != end:
            raise ModelError(
                f"{where}: the bytes of tensor {name!r} overlap others or leave a gap: the file "
                "is damaged"
            )
        end += tensor.size
    if end != len(data):
        raise ModelError(
            f"{where}: the file has {len(data)} bytes, its header describes {end}: "
            "the download is not complete or the file is damaged"
        )
    return tensors


def _record(entry: object, name: str, shard: str, where: str, base: int) -> _Stored:
    what = f"{where}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{what}: its record must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in _DTYPES and dtype not in _OTHER_DTYPES):
        raise ModelError(f"{what}: unknown dtype {str(dtype)[:40]!r}")
    if (
        not _sizes(shape, 8)
        or not _sizes(offsets, 2)
        or len(offsets) != 2
        or offsets[0] > offsets[1]
    ):
        raise ModelError(f"{what}: shape or data_offsets are not lists of sizes")
    size = offsets[1] - offsets[0]
    if dtype in _DTYPES:
        wanted = _DTYPES[dtype].itemsize
        for length in shape:
            wanted *= length
        if wanted != size or wanted > LIMIT_BYTES:
            raise ModelError(f"{what}: shape {shape} in {dtype} does not take {size} bytes")
        if not wanted:
            raise ModelError(f"{what}: empty shape {shape}")
    return _Stored(shard, dtype, tuple(shape), base + offsets[0], size)


def _sizes(value: object, longest: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= longest
        and all(type(item) is int and 0 <= item < LIMIT_BYTES for item in value)
    )
