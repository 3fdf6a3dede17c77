"""Models of a Hugging Face hub: a snapshot of one commit, through huggingface_hub.

Owns: how a hub id is spelled (`org/name`, `org/name@revision`, `org/name/file.gguf`), which files
are wanted, and the library's errors in our words. The library owns the network, its cache,
resuming, tokens, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from subsecond.errors import FetchError, UnsupportedError

_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_ID = re.compile(rf"({_NAME}/{_NAME})((?:/[\w][\w. -]*)*/[\w][\w. -]*\.gguf)?(?:@([\w][\w./-]*))?")
_WANTED = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "*.safetensors",
    "model.safetensors.index.json",
]
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """`repository` org/name; `file` a GGUF file in it, or empty; `revision` a branch, tag or
    commit, or empty."""

    repository: str
    file: str
    revision: str

    @property
    def slug(self) -> str:
        """Repository and file as one file name."""
        return "--".join(p for p in (self.repository, self.file) if p).replace("/", "--")

    @property
    def commit(self) -> str | None:
        """The commit, where the revision is one."""
        return self.revision if _COMMIT.fullmatch(self.revision) else None


@dataclass(frozen=True)
class Snapshot:
    """A folder or a GGUF file on this machine, and the commit that it belongs to."""

    path: Path
    commit: str


def parse(model: str) -> HubId | None:
    """The hub id that `model` spells, or None."""
    match = _ID.fullmatch(model)
    if match is None or ".." in model:
        return None
    return HubId(match[1], (match[2] or "").lstrip("/"), match[3] or "")


def fetch(hub_id: HubId) -> Snapshot:
    """Downloads what is missing; resolves the revision to a commit. Offline, the library's cache
    answers.

    Raises FetchError where neither the hub nor the cache has it, UnsupportedError for a repository
    without safetensors.
    """
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(
                hub_id.repository,
                revision=hub_id.revision or None,
                allow_patterns=[hub_id.file] if hub_id.file else _WANTED,
                ignore_patterns=None if hub_id.file else ["*/*"],
                library_name="subsecond",
            )
        )
    except (
        Exception
    ) as error:  # the library raises from several unrelated trees (HTTP, OSError, ValueError)
        raise FetchError(_complaint(hub_id, error)) from error
    commit = path.name
    if not _COMMIT.fullmatch(commit):
        raise FetchError(f"the hub gave no commit for {hub_id.repository}, but {commit!r}")
    if hub_id.file:
        if not (path / hub_id.file).exists():
            raise FetchError(f"the repository {hub_id.repository} has no file {hub_id.file!r}")
        return Snapshot(path / hub_id.file, commit)
    if not any(path.glob("*.safetensors")):
        raise UnsupportedError(
            f"the repository {hub_id.repository} has no safetensors (pickled weights are not "
            "read); for a GGUF file give "
            f"{hub_id.repository}/FILE.gguf"
        )
    return Snapshot(path, commit)


def _complaint(hub_id: HubId, error: Exception) -> str:
    from huggingface_hub import errors
    from huggingface_hub.constants import is_offline_mode

    name = hub_id.repository
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the repository {name} asks to accept a licence: do so on the hub, then set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no repository {name} (or it is private: set HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository {name} has no revision {hub_id.revision!r}"
    if is_offline_mode():
        return f"{name} is not complete in the hub's cache, and HF_HUB_OFFLINE is set; unset it"
    reason = (str(error) or type(error).__name__).splitlines()[0].removeprefix("Got: ")[:200]
    return f"cannot fetch {name} from the hub ({reason}); check the network, downloads resume"
