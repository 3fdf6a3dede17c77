"""Files of an untrusted folder: found by name inside it, opened as regular files only, read within
bounds.

Owns: the checks that keep a model folder from reaching outside itself (`../`, absolute names,
symlinks, FIFOs), what stands in for a file that is not here yet (Git LFS pointers, half downloads),
bounded reads of JSON, hashes of files, and the place where errors get the file's name. Knows
nothing of what the files mean.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from subsecond.errors import ModelError, UnsupportedError

LIMIT_JSON_BYTES = 16 << 20
LIMIT_TOKENIZER_BYTES = 128 << 20
# Parsed, one JSON value takes up to about 100 bytes, whatever it takes in the file.
LIMIT_JSON_VALUES = 1_000_000
LIMIT_TOKENIZER_VALUES = 8_000_000
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# What Git checks out in place of a large file where Git LFS is not installed.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Names that downloaders give to what they have not finished (aria2's is a file beside it).
_HALF = (".part", ".partial", ".incomplete", ".crdownload", ".download", ".aria2")
# What a server sends in place of a file: a page to log in, or an error.
_WEB_PAGE = (b"<!doctype html", b"<html")
_ANOTHER = "use another model, or another version of it"
_OWN_FILE = re.compile(r"[\w.-]+\.(json|jinja|safetensors)\b")


@contextmanager
def named(
    label: str, path: Path | None = None, *, fix: str, folder: bool = False
) -> Iterator[None]:
    """Errors of the block name the model as the user does, and say what to do.

    label: what the user calls the file or folder that the block reads; path: where it really lies,
    replaced by the label (the cache of a hub is nobody's name for it). fix: added to a ModelError
    that has none; our messages put theirs behind a semicolon. (What is not supported needs another
    model.) folder: a message that begins with the name of a file gets the folder before it.
    """
    try:
        yield
    except ModelError as error:
        text = str(error)
        if path is not None:
            text = text.replace(str(path), label)
        if not text.startswith((f"{label}:", f"{label}/", f"{label} ")):
            inside = folder and _OWN_FILE.match(text) is not None
            text = f"{label}/{text}" if inside else f"{label}: {text}"
        kind = UnsupportedError if isinstance(error, UnsupportedError) else ModelError
        if ";" not in text:
            text = f"{text}; {fix if kind is ModelError else _ANOTHER}"
        raise kind(text) from error


def half_of(path: Path) -> str | None:
    """The name of the unfinished download of `path`, where one lies beside it."""
    for end in _HALF:
        if exists(path.with_name(path.name + end)):
            return path.name + end
    return None


def refuse_half(path: Path) -> None:
    """Raises ModelError where `path` is an unfinished download, by its name or by aria2's file."""
    half = path.name if path.name.endswith(_HALF) else None
    if half is None and exists(path.with_name(path.name + ".aria2")):
        half = path.name + ".aria2"
    if half is not None:
        raise ModelError(
            f"{path}: is not complete ({half} is what a download leaves until it is done); finish "
            "the download, or start it again"
        )


def root_of(folder: Path) -> Path:
    """The directory that files of `folder` may resolve into: the folder, or its Hugging Face cache
    repository.

    The hub's cache keeps snapshots/<commit>/<file> as symlinks into blobs/ beside snapshots/.
    """
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
        return folder.parent.parent
    return folder


def inside(folder: Path, name: str) -> Path:
    """The path of the file `name` of `folder`. Raises ModelError where the name or a symlink leads
    outside."""
    if (
        not name
        or "\0" in name
        or "\\" in name
        or Path(name).is_absolute()
        or ".." in Path(name).parts
    ):
        raise ModelError(f"file name {name!r} leads outside the model folder, it is refused")
    path = folder / name
    with suppress(OSError, RuntimeError):  # a loop of symlinks: open_regular reports it
        if not path.resolve().is_relative_to(root_of(folder)):
            raise ModelError(
                f"{name!r} is a symbolic link that leads outside the model folder, it is refused; "
                "copy what it points at into the folder (cp -L)"
            )
    return path


def is_folder(path: Path) -> bool:
    """Path.is_dir, but false where the system refuses to say (a name too long, no permission)."""
    try:
        return path.is_dir()
    except OSError:
        return False


def exists(path: Path) -> bool:
    """Path.exists, but false where the system refuses to say."""
    try:
        return path.exists()
    except OSError:
        return False


def open_regular(path: Path) -> BufferedReader:
    """Opens an ordinary file for reading. Raises ModelError for anything else (missing, folder,
    FIFO, device)."""
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer before its kind can be looked
        # at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        half = half_of(path)
        found = f", but {half} is here; finish its download" if half else ""
        raise ModelError(f"{path}: no such file{found}") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        _check_content(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _check_content(path: Path, descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ModelError(f"{path}: not a regular file")
    try:
        begin = os.pread(descriptor, len(_LFS_POINTER), 0)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    if begin.lower().startswith(_WEB_PAGE):
        raise ModelError(
            f"{path}: is a web page, saved in place of the file; download it again, logged in if "
            "need be"
        )
    if begin == _LFS_POINTER:
        raise ModelError(
            f"{path}: is a Git LFS pointer, not the file itself; run 'git lfs pull' in its "
            "repository (install git-lfs first)"
        )


def read_bytes(path: Path, limit: int = LIMIT_JSON_BYTES) -> bytes:
    """A whole small file. Raises ModelError when it is larger than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ModelError(f"{path}: {size} bytes are more than the limit of {limit}")
        try:
            data = file.read(size + 1)  # what is asked for is allocated at once
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > size:
        raise ModelError(f"{path}: grows while it is read")
    return data


def parse_json(data: bytes, what: str, limit: int = LIMIT_JSON_VALUES) -> Any:
    """Strict UTF-8 JSON of at most `limit` values; a key that appears twice in one object is
    refused. Raises ModelError naming `what`."""
    # An upper bound: every value but the first follows one of these. Those in strings count too.
    values = data.count(b"[") + data.count(b"{") + data.count(b",")
    if values > limit:
        raise ModelError(f"{what}: more than {limit} JSON values: it is damaged or not a model's")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise ValueError("a key appears twice in one object")
        return out

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once)
        if _SURROGATE.search(data):  # a pair is one character, a lone half is no text at all
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise ModelError(f"{what}: JSON is nested too deeply") from None
    except (
        ValueError
    ) as error:  # includes JSONDecodeError, UnicodeDecodeError and over-long integers
        raise ModelError(f"{what}: not valid JSON: {str(error)[:200]}") from None


def read_json_object(path: Path, limit: int = LIMIT_JSON_BYTES) -> dict[str, Any]:
    """A JSON file whose top level is an object."""
    value = parse_json(read_bytes(path, limit), str(path))
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def printable(name: str) -> str:
    """A file's name as text that UTF-8 can hold: bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    import hashlib  # loads OpenSSL: only for files that are not known yet

    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
