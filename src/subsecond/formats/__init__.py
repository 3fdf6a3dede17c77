"""Formats: checkpoints in (safetensors folders, GGUF files, hub ids, aliases), artifacts out and
in.

Importing this package, locating a converted model and opening an artifact import no NumPy.
"""

from subsecond.formats.artifact import Artifact, open_artifact
from subsecond.formats.locate import locate, pull

__all__ = ["Artifact", "locate", "open_artifact", "pull"]
