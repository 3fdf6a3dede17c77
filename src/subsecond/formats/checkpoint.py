"""The Checkpoint: what every input format looks like to convert.

Owns: the protocol, in the names, shapes and values of a Hugging Face checkpoint, and the texts that
come with it. Knows nothing of any file format (safetensors_in.py and gguf_in.py do) or of model
families.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from subsecond.formats.artifact import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from subsecond.formats.pack import Grid


@dataclass(frozen=True)
class Texts:
    """What the tokenizer and the chat template are made from.

    A Hugging Face folder has `tokenizer_json` and the configs; a GGUF file has its `tokenizer.*`
    metadata in `gguf`.
    """

    tokenizer_json: bytes | None = None
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    generation_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    template_name: str = "tokenizer_config.json"  # the file that holds it
    gguf: dict[str, Any] | None = None


class Checkpoint(Protocol):
    """A model as it was published: config, named tensors, texts.

    Reading a tensor raises ModelError when its bytes are damaged. A checkpoint holds files open
    until `close`.
    """

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def label(self) -> str:
        """What the user calls the file or the folder; messages begin with it."""
        ...

    @property
    def config_label(self) -> str:
        """The same of the file that holds the config."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def texts(self) -> Texts: ...

    def source(self) -> Source:
        """The origin, with SHA-256 of every file that was read (this hashes them)."""
        ...

    def where(self, name: str) -> str:
        """The tensor `name` as messages name it: its file, and its name in there."""
        ...

    def same(self, a: str, b: str) -> bool:
        """Whether two tensors hold the same values."""
        ...

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor `name` as float32, in the shape of `shapes`."""
        ...

    def grid(self, name: str, *, transposed: bool = False) -> Grid | None:
        """The integer grid that the matrix `name` is stored on, exactly, or None where it is stored
        otherwise.

        With `transposed`, the grid of its transpose.
        """
        ...

    def close(self) -> None: ...
