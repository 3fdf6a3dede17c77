"""The artifact: a folder of memory-mapped weights, the program, the tokenizer and a manifest that
vouches for them.

Owns: the manifest's schema, opening with every check that must pass before a kernel sees a pointer,
and the levels of integrity (xxh3 of each tensor and SHA-256 of the small files at every open,
SHA-256 of weights.bin once per file identity). Knows nothing of programs, checkpoints or of how the
weights were made. Does not import NumPy. artifact_write.py writes what this module reads.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import xxhash

from subsecond.errors import ModelError
from subsecond.formats import cache, files
from subsecond.formats.layout import ALIGNMENT, FORMATS, LIMIT_BYTES, LIMIT_DIMENSION

FORMAT_VERSION = 2  # 2: the output matrix in two parts (int8_split)
MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
PROGRAM = "program.json"
TOKENIZER = "tokenizer.json"
TEXT = "text.json"
CERTIFICATE = "certificate.json"
FILES = (WEIGHTS, PROGRAM, TOKENIZER, TEXT, CERTIFICATE)

WeightFormat = Literal["f32", "bf16", "int8", "int4"]  # what a user chooses
MatrixFormat = Literal["f32", "bf16", "int8", "int4", "int8_split"]
_LIMIT_MANIFEST_BYTES = 64 << 20
_LIMIT_TENSORS = 1 << 17
_CHECK_THREADS = 2


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights came from. `name` never holds a path of the machine that converted them."""

    kind: Literal["gguf", "safetensors"]
    name: str
    revision: str = ""  # the commit of a hub repository, the version of a package
    files: dict[str, str] = {}  # name -> SHA-256


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of weights.bin. A vector is f32 [n] with k = 0; a matrix [n, k] is packed."""

    name: str
    kind: Literal["matrix", "vector"]
    format: MatrixFormat
    n: int
    k: int
    offset: int
    size: int
    xxh3: str

    def bytes_wanted(self) -> int:
        """The bytes that the shape and the format ask for."""
        return (
            4 * self.n
            if self.kind == "vector"
            else FORMATS[self.format].matrix_bytes(self.n, self.k)
        )


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and SHA-256 of one file of the artifact."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an artifact holds. `weights` is the choice that it was converted with; `warnings` are
    what conversion had to say (keys that were not used, and the like); `kv` the KV cache that suits
    it ("": it was not tried)."""

    format_version: int
    weights: WeightFormat
    source: Source
    tensors: list[Tensor]
    files: dict[str, File]
    warnings: list[str] = []
    kv: Literal["", "f32", "bf16", "int8"] = ""

    @property
    def kv_default(self) -> str:
        """The KV cache format where the user names none."""
        return self.kv or ("f32" if self.weights == "f32" else "bf16")


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: its manifest has been checked, its small files are read on request."""

    path: Path
    manifest: Manifest

    @property
    def weights_path(self) -> Path:
        return self.path / WEIGHTS

    def read(self, name: str) -> bytes:
        """One of the small files; the very bytes that are returned have its SHA-256."""
        import hashlib

        path = files.inside(self.path, name)
        data = files.read_bytes(path, files.LIMIT_TOKENIZER_BYTES)
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise self._altered(path)
        return data

    def check_tensors(self, data: mmap.mmap | memoryview) -> None:
        """Checks xxh3 of every tensor in the mapped weights.bin, in parallel (the hash releases the
        GIL).

        Raises ModelError naming the first tensor that differs.
        """
        view = memoryview(data)
        if view.nbytes != self.manifest.files[WEIGHTS].size:
            raise ModelError(
                f"{self.weights_path}: has {view.nbytes} bytes, not those of the manifest; "
                + again(self.path)
            )
        damaged: list[str] = []
        stop = threading.Event()

        def check(part: Sequence[Tensor]) -> None:
            for tensor in part:
                if stop.is_set():
                    return
                with view[tensor.offset : tensor.offset + tensor.size] as span:
                    if xxhash.xxh3_64_hexdigest(span) != tensor.xxh3:
                        damaged.append(tensor.name)

        with view:
            parts = _shares(self.manifest.tensors, _CHECK_THREADS)
            threads = [threading.Thread(target=check, args=(part,)) for part in parts]
            try:
                for thread, part in zip(threads, parts, strict=True):
                    try:
                        thread.start()
                    except RuntimeError:  # no thread can be had
                        check(part)
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
            finally:  # after Ctrl-C too, the view outlives those who read it
                stop.set()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
        if damaged:
            raise ModelError(
                f"{self.weights_path}: tensor {damaged[0]!r} is damaged (its checksum differs); "
                + again(self.path)
            )

    def check_files(self, *, remembered: bool = True) -> None:
        """Checks SHA-256 of every file; with `remembered`, weights.bin is not read again once it
        has passed.

        It is the same while device, inode, size and times are. A write through a mapping may move
        no time, so the small files, which cost little, are always read; what happens to weights.bin
        shows in the tensors' xxh3.
        """
        for name in self.manifest.files:
            self._check_file(name, files.inside(self.path, name), remembered=remembered)

    def _check_file(self, name: str, path: Path, *, remembered: bool) -> None:
        wanted = self.manifest.files[name].sha256
        large = name == WEIGHTS
        if large and remembered and cache.is_verified(path, wanted):
            return
        if files.sha256(path) != wanted:
            raise self._altered(path)
        if large:
            cache.remember_verified(path, wanted)

    def _altered(self, path: Path) -> ModelError:
        return ModelError(f"{path}: its SHA-256 is not the manifest's; {again(self.path)}")


def open_artifact(path: str | os.PathLike[str], *, check: bool = True) -> Artifact:
    """Opens an artifact folder.

    With `check`, the tensors' xxh3 and the files' SHA-256 (see `check_files`) are checked too;
    a caller that maps weights.bin anyway passes False and calls `check_tensors` on its own mapping
    and `check_files`. Raises ModelError naming what is missing, damaged or contradictory.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such artifact folder")
    if not (folder / MANIFEST).exists():
        raise ModelError(
            f"{folder}: not an artifact (no {MANIFEST}); make one with 'subsecond convert'"
        )
    with files.named(str(folder), fix=again(folder)):
        manifest = decode_manifest(
            files.read_bytes(files.inside(folder, MANIFEST), _LIMIT_MANIFEST_BYTES),
            str(folder / MANIFEST),
        )
        artifact = Artifact(folder, manifest)
        for name, entry in manifest.files.items():
            with files.open_regular(files.inside(folder, name)) as file:
                size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise ModelError(
                    f"{folder / name}: has {size} bytes, the manifest says {entry.size}"
                )
    if check:
        with mapped(artifact.weights_path) as data:
            artifact.check_tensors(data)
        artifact.check_files()
    return artifact


def again(folder: Path) -> str:
    """How to get a damaged artifact anew: one of the cache by the name that it was made for."""
    command = cache.pull_command(folder)
    return f"run '{command}'" if command else "convert the model again"


def is_artifact(path: Path) -> bool:
    """Whether a folder has a manifest, which only artifacts have."""
    return (path / MANIFEST).is_file()


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, mapped read-only."""
    with files.open_regular(path) as file:
        try:
            data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be mapped: {error}") from None
    try:
        yield data
    finally:
        # After an error, its traceback may still hold arrays over the mapping; it ends with them.
        with suppress(BufferError):
            data.close()


def decode_manifest(data: bytes, what: str) -> Manifest:
    """Reads and checks a manifest: unknown keys, sizes, offsets, overlaps, alignment, shapes
    against bytes."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{what}: not a valid manifest: {error}") from None
    if manifest.format_version != FORMAT_VERSION:
        raise ModelError(
            f"{what}: format version {manifest.format_version} is not read (this version reads "
            f"{FORMAT_VERSION}); convert the model again"
        )
    _check_file_entries(manifest, what)
    _check_tensor_entries(manifest, what)
    return manifest


def _check_file_entries(manifest: Manifest, what: str) -> None:
    if set(manifest.files) != set(FILES):
        raise ModelError(f"{what}: files must be exactly {', '.join(FILES)}")
    for name, entry in manifest.files.items():
        if not 0 < entry.size < LIMIT_BYTES or not _is_hex(entry.sha256, 64):
            raise ModelError(f"{what}: file {name!r} has an impossible size or SHA-256")


def _check_tensor_entries(manifest: Manifest, what: str) -> None:
    total = manifest.files[WEIGHTS].size
    if not 0 < len(manifest.tensors) <= _LIMIT_TENSORS:
        raise ModelError(f"{what}: {len(manifest.tensors)} tensors")
    names: set[str] = set()
    end = 0
    for tensor in sorted(manifest.tensors, key=lambda t: t.offset):
        where = f"{what}: tensor {tensor.name!r}"
        if not tensor.name or tensor.name in names:
            raise ModelError(f"{where} has no name or appears twice")
        names.add(tensor.name)
        vector = tensor.kind == "vector"
        if (
            not 0 < tensor.n < LIMIT_DIMENSION
            or not 0 <= tensor.k < LIMIT_DIMENSION
            or vector != (tensor.k == 0)
        ):
            raise ModelError(f"{where} has the impossible shape n={tensor.n}, k={tensor.k}")
        if vector and tensor.format != "f32":
            raise ModelError(f"{where} is a vector in {tensor.format}, but vectors are f32")
        if tensor.size != tensor.bytes_wanted():
            raise ModelError(
                f"{where} has {tensor.size} bytes, but its shape asks for {tensor.bytes_wanted()}"
            )
        if tensor.offset < 0 or tensor.offset % ALIGNMENT:
            raise ModelError(
                f"{where} starts at {tensor.offset}, which is not a multiple of {ALIGNMENT}"
            )
        if tensor.offset < end or tensor.offset + tensor.size > total:
            raise ModelError(f"{where} overlaps another or passes the end of {WEIGHTS}")
        if not _is_hex(tensor.xxh3, 16):
            raise ModelError(f"{where} has an impossible checksum {tensor.xxh3!r}")
        end = tensor.offset + tensor.size


def _shares(tensors: Sequence[Tensor], parts: int) -> list[list[Tensor]]:
    """Tensors in file order, cut into parts of about equal bytes."""
    total = sum(t.size for t in tensors)
    shares: list[list[Tensor]] = [[] for _ in range(parts)]
    done = 0
    for tensor in sorted(tensors, key=lambda t: t.offset):
        shares[min(parts - 1, done * parts // total)].append(tensor)
        done += tensor.size
    return shares


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and not text.strip("0123456789abcdef")
