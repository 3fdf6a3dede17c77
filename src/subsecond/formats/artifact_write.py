"""Writing an artifact: weights.bin tensor by tensor, then the small files, then the manifest, then
the rename.

Owns: the order of bytes in weights.bin (64-byte aligned tensors) and the promise that an artifact
appears whole or not at all. Knows nothing of what the tensors mean. The schema that it fills is
artifact.py's.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import xxhash

from subsecond.errors import InputError, ModelError
from subsecond.formats import artifact, atomic, cache, files
from subsecond.formats.artifact import (
    File,
    Manifest,
    MatrixFormat,
    Source,
    Tensor,
    WeightFormat,
)
from subsecond.formats.layout import align

# weights.bin is written in whole pieces of this size: a file system that keeps files in large pages
# then makes one of each, and reading weights misses the address cache less (a third faster where
# memory is fast).
_PIECE_BYTES = 2 << 20


@contextmanager
def writing(target: Path, weights: WeightFormat, source: Source) -> Iterator[Writer]:
    """A Writer whose artifact takes the name `target` when the block ends without an error.

    An artifact that stands there is replaced in one step and stays intact until then; anything else
    that stands there (a file, a folder that is not empty) is refused. Raises InputError for that
    and when the disk refuses (full, ...).
    """
    replaces = check_output(target)
    try:
        with atomic.replacing(target) as folder:
            writer = Writer(folder, weights, source)
            writer.replaces = replaces
            try:
                yield writer
                writer.finish()
            finally:
                writer.close()
    except OSError as error:
        raise InputError(
            f"cannot write the artifact {target}: {error.strerror or error}; free space or choose "
            "another folder"
        ) from error
    weights_sha256 = writer.files[artifact.WEIGHTS].sha256
    cache.remember_verified(target / artifact.WEIGHTS, weights_sha256)


def check_output(target: Path) -> bool:
    """Whether an artifact stands at `target`. Raises InputError where anything else stands there
    that the new one would take with it, or where the name is impossible."""
    names: set[str] = set()
    if target.name in ("", "..") or os.path.ismount(target):
        raise InputError(
            f"cannot write the artifact {target}: a folder of this name can't be replaced; give "
            "the name of a new folder"
        )
    try:
        os.lstat(target)
        names = {entry.name for entry in target.iterdir()} if target.is_dir() else names
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write the artifact {target}: {reason}; choose another output"
        ) from None
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target} exists and is not an artifact folder; choose another output")
    if not names:
        return False
    strangers = sorted(names - {artifact.MANIFEST, *artifact.FILES})
    if strangers:
        raise InputError(
            f"{target} is a folder with other files in it ({strangers[0]}); choose another output"
        )
    try:
        artifact.open_artifact(target, check=False)
    except ModelError as error:
        raise InputError(
            f"{target} is not a whole artifact ({error}); remove the folder, or choose another "
            "output"
        ) from None
    return True


def check_place(target: Path) -> None:
    """Tries whether a folder can be made where `target` will stand. InputError if not."""
    place = target.parent
    while not files.exists(place) and place != place.parent:
        place = place.parent
    probe = place / f".{target.name[:100]}.tmp-{secrets.token_hex(6)}"
    try:
        probe.mkdir()
        probe.rmdir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write the artifact {target}: {place} takes no new folder ({reason}); choose "
            "another output"
        ) from None


class Writer:
    """Takes tensors in the order of the file, then the other files; `folder` is where they lie
    until the rename. `replaces`: an artifact stands at the target."""

    def __init__(self, folder: Path, weights: WeightFormat, source: Source) -> None:
        self.folder = folder
        self.source = source
        self._weights = weights
        self._file: BinaryIO = (folder / artifact.WEIGHTS).open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._piece = bytearray()  # written next
        self._offset = 0  # the end of it
        self.tensors: list[Tensor] = []
        self.files: dict[str, File] = {}
        self.warnings: list[str] = []
        self.kv: Literal["", "f32", "bf16", "int8"] = ""
        self.replaces = False

    def add_vector(self, name: str, n: int, data: memoryview) -> None:
        """An f32 vector [n], as its bytes."""
        self._add("vector", name, "f32", (n, 0), data)

    def add_matrix(self, name: str, format: MatrixFormat, n: int, k: int, data: memoryview) -> None:
        """A packed matrix [n, k], as its bytes."""
        self._add("matrix", name, format, (n, k), data)

    def add_file(self, name: str, data: bytes) -> None:
        """One of the small files; a second one of the same name replaces the first."""
        with (self.folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = File(len(data), hashlib.sha256(data).hexdigest())

    def weights_sha256(self) -> str:
        """SHA-256 of weights.bin as written so far."""
        return self._hash.hexdigest()

    def flush(self) -> None:
        """Brings all tensors added so far into weights.bin, for a reader."""
        with memoryview(self._piece) as piece:
            written = 0
            while written < piece.nbytes:
                written += self._file.write(piece[written:])
        self._piece = bytearray()

    def finish(self) -> None:
        """Writes the manifest, checked as a reader would check it; the folder is a whole artifact
        from then on."""
        self.flush()
        os.fsync(self._file.fileno())
        self.files[artifact.WEIGHTS] = File(self._offset, self._hash.hexdigest())
        manifest = Manifest(
            artifact.FORMAT_VERSION,
            self._weights,
            self.source,
            self.tensors,
            self.files,
            self.warnings,
            self.kv,
        )
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        artifact.decode_manifest(data, artifact.MANIFEST)
        with (self.folder / artifact.MANIFEST).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        self._file.close()

    def _add(
        self,
        kind: Literal["matrix", "vector"],
        name: str,
        format: MatrixFormat,
        shape: tuple[int, int],
        data: memoryview,
    ) -> None:
        n, k = shape
        data = data.cast("B")
        self._write(memoryview(bytes(align(self._offset) - self._offset)))
        tensor = Tensor(
            name, kind, format, n, k, self._offset, data.nbytes, xxhash.xxh3_64_hexdigest(data)
        )
        if tensor.size != tensor.bytes_wanted():
            raise ModelError(
                f"tensor {name!r} [{n}, {k}] {format} was packed into {tensor.size} bytes"
            )
        self._write(data)
        self.tensors.append(tensor)

    def _write(self, data: memoryview) -> None:
        self._hash.update(data)
        self._offset += data.nbytes
        while data.nbytes:
            taken = data[: _PIECE_BYTES - len(self._piece)]
            self._piece += taken
            data = data[len(taken) :]
            if len(self._piece) == _PIECE_BYTES:
                self.flush()
