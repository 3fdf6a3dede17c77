"""What Subsecond's cache holds: the converted models, listed and removed.

Owns: the records of `subsecond list`, which of them a name means, and their removal. Does not know:
how they came to be (locate.py), the hub's own cache, which is its library's.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from subsecond.errors import InputError, ModelError
from subsecond.formats import artifact, cache, files


@dataclass(frozen=True)
class Kept:
    """One converted model. model: how it was asked for; source: its file format and revision, ""
    where its manifest can't be read; made: seconds since 1970.
    """

    name: str
    model: str
    weights: str
    source: str
    bytes: int
    made: float
    path: Path


def kept() -> list[Kept]:
    """All converted models of the cache, the newest first; half-made ones are none."""
    models = cache.home() / "models"
    try:
        folders = [path for path in models.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
    found = [_record(path) for path in folders if files.is_folder(path)]
    return sorted((own for own in found if own is not None), key=lambda own: (-own.made, own.name))


def named(name: str) -> list[Kept]:
    """The models of the cache that a name means: their own, or that of the model that they were
    made from. InputError if there is none.
    """
    place = os.path.realpath(name) if name and "\0" not in name else ""
    found = [own for own in kept() if name in (own.name, own.model) or own.model == place]
    if not found:
        raise InputError(
            f"the cache has no model {name!r:.200}; 'subsecond list' shows what it has"
        )
    return found


def remove(own: Kept) -> None:
    """Removes one. A process that has it open keeps its mapping. InputError if it can't be."""
    with cache.locked(own.path.name):
        try:
            shutil.rmtree(own.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputError(
                f"cannot remove {own.path}: {error.strerror}; remove the folder yourself"
            ) from None
        cache.forget_origin(own.path)


def _record(path: Path) -> Kept | None:
    """None for a folder that vanishes meanwhile."""
    origin = cache.origin_of(path)
    try:
        size = sum(entry.stat().st_size for entry in path.iterdir())
        made = path.stat().st_mtime
    except OSError:
        return None
    try:
        manifest = artifact.open_artifact(path, check=False).manifest
        revision = f" {manifest.source.revision[:12]}" if manifest.source.revision else ""
        source, weights = f"{manifest.source.kind}{revision}", str(manifest.weights)
        model = manifest.source.name
    except ModelError:
        source, weights, model = "", "", path.name
    if origin is not None:
        model, weights = origin.model, origin.weights
    return Kept(path.name, model, weights, source, size, made, path)
