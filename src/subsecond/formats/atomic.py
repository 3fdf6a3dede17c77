"""Folders and files that appear whole or not at all.

Owns: the temporary sibling, fsync of files and directories, and the rename (an exchange where a
folder is replaced, so that one of the two always stands under the name). Knows nothing of what they
hold.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux's renameat2, RENAME_SWAP of macOS's renamex_np
_AT_FDCWD = -100


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new empty folder beside `target` that takes its place when the block ends without an error.

    On an error the new folder is removed and `target` stays as it was. Raises OSError when the file
    system refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    fresh = target.parent / f".{target.name}.tmp-{secrets.token_hex(6)}"
    fresh.mkdir()
    # The lock tells other processes that this folder's writer lives; it ends with the process,
    # however that ends.
    lock = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks: nobody will clean up there either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fresh
        os.fsync(lock)
        _put(fresh, target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        os.close(lock)


def write_file(path: Path, data: bytes) -> None:
    """Writes a small file whole or not at all, and forces it to the disk."""
    fresh = path.parent / f".{path.name}.tmp-{secrets.token_hex(6)}"
    try:
        with fresh.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    finally:
        with suppress(FileNotFoundError):
            fresh.unlink()


def remove_leftovers(target: Path) -> None:
    """Cleans up after writers of `target` that were killed: their half-written folders go, a folder
    set aside returns."""
    name = glob.escape(target.name)
    for aside in target.parent.glob(f".{name}.old-*"):
        if not target.exists():
            aside.rename(target)
        else:
            shutil.rmtree(aside, ignore_errors=True)
    for path in target.parent.glob(f".{name}.tmp-*"):
        if path.is_dir() and not _locked(path):
            shutil.rmtree(path, ignore_errors=True)


def _locked(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True  # gone in the meantime, or not ours to look at
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(fresh: Path, target: Path) -> None:
    """Gives `fresh` the name `target`. A folder that stood there ends up under the name `fresh`, or
    is removed."""
    try:
        fresh.rename(target)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _exchange(fresh, target):
        return
    # A file system without the exchange: the old folder steps aside, and returns if the rename
    # fails.
    aside = target.parent / f".{target.name}.old-{secrets.token_hex(6)}"
    target.rename(aside)
    try:
        fresh.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two folders in one step; False where the system or the file system has no such call."""
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(a), os.fsencode(b)
    try:
        if sys.platform == "darwin":
            result = library.renamex_np(first, second, _EXCHANGE)
        else:
            result = library.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _EXCHANGE)
    except AttributeError:
        return False
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))
