"""Subsecond's own folder on this machine: fetched files, converted models, locks, and which files
were verified.

Owns: its place ($SUBSECOND_HOME, else subsecond/ in the XDG cache directory), the lock that lets
one process at a time make a thing, what each thing was made from and for whom, and the memory of
SHA-256 sums by file identity. Knows nothing of what is fetched or converted.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from subsecond.errors import InputError


def home() -> Path:
    """The cache folder; it need not exist yet. Raises InputError for a relative $SUBSECOND_HOME."""
    if value := os.environ.get("SUBSECOND_HOME"):
        path = Path(value).expanduser()
        if not path.is_absolute():
            raise InputError(f"SUBSECOND_HOME must be an absolute path, not {value!r}")
        return path
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative value is to be ignored.
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "subsecond"
    except RuntimeError:
        raise InputError("there is no home directory; set SUBSECOND_HOME to a folder") from None


def folder(name: str) -> Path:
    """A subfolder of the cache, made if need be. Raises InputError where it cannot be written."""
    path = home() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the cache folder {path}: {error.strerror}; set SUBSECOND_HOME to a "
            "writable folder"
        ) from None
    return path


@contextmanager
def locked(key: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the machine-wide lock of `key`; it ends with the process, however that ends.

    A second process waits, after a call of `waiting`.
    """
    import hashlib

    path = folder("locks") / hashlib.sha256(key.encode()).hexdigest()[:32]
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _cannot_lock(path, error) from None
    try:
        _lock(path, descriptor, waiting)
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int, waiting: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is not None:
            waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise _cannot_lock(path, error) from None


def _cannot_lock(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot lock {path}: {error.strerror}; set SUBSECOND_HOME to a writable folder on a "
        f"local disk"
    )


@dataclass(frozen=True)
class Origin:
    """What a folder of the cache was made from (`identity`), and how to ask for it again."""

    identity: str
    model: str
    weights: str


def origin_of(target: Path) -> Origin | None:
    """The record beside a folder of the cache; None where there is none."""
    try:
        record = json.loads(_origin_file(target).read_bytes())
        return Origin(**{name: str(record[name]) for name in ("identity", "model", "weights")})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def record_origin(target: Path, origin: Origin) -> None:
    """Writes the record. Raises OSError."""
    from subsecond.formats import atomic

    # ASCII: a name of the file system may hold bytes that are not UTF-8.
    atomic.write_file(_origin_file(target), json.dumps(asdict(origin)).encode("ascii"))


def forget_origin(target: Path) -> None:
    """Removes the record, if there is one."""
    with suppress(OSError):
        _origin_file(target).unlink()


def pull_command(target: Path) -> str | None:
    """The command that makes a folder of the cache again; None for any other folder."""
    with suppress(InputError):
        if target.parent != home() / "models":
            return None
    origin = origin_of(target)
    if origin is None:
        return None
    import shlex

    weights = "" if origin.weights == "int4" else f" --weights {origin.weights}"
    return f"subsecond pull {shlex.quote(origin.model)}{weights}"


def _origin_file(target: Path) -> Path:
    return target.parent / f"{target.name}.source"


def recall(key: str) -> str | None:
    """What `record` was told under this key (a file name)."""
    try:
        return (home() / "refs" / key).read_text("ascii")
    except (OSError, ValueError, InputError):
        return None


def record(key: str, value: str) -> None:
    """Remembers an ASCII text. Failing to record only costs time later."""
    from subsecond.formats import atomic

    with suppress(OSError, InputError):
        atomic.write_file(folder("refs") / key, value.encode("ascii"))


def is_verified(path: Path, sha256: str) -> bool:
    """Whether this very file (device, inode, size, times of modification and of change)
    was found to have this SHA-256 before."""
    try:
        return (home() / "verified" / _identity(path)).read_text() == sha256
    except (OSError, ValueError, InputError):
        return False


def remember_verified(path: Path, sha256: str) -> None:
    """Records that the file has this SHA-256. Failing to record only costs time later."""
    from subsecond.formats import atomic

    with suppress(OSError, InputError):
        atomic.write_file(folder("verified") / _identity(path), sha256.encode())


def _identity(path: Path) -> str:
    info = path.stat()
    # The time of change too: a program can set a file's modification time, but not this one.
    times = f"{info.st_mtime_ns:x}-{info.st_ctime_ns:x}"
    return f"{info.st_dev:x}-{info.st_ino:x}-{info.st_size:x}-{times}"
