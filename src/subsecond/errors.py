"""The exception tree: every error that Subsecond raises on purpose.

    SubsecondError
    +-- InputError            the caller's value, file or configuration is wrong (exit code 2)
    |   +-- ModelError        a checkpoint or artifact: missing, damaged, contradictory, unsupported
    |   |   +-- UnsupportedError   a well-formed model that this version does not run
    |   +-- RequestError      a prompt or a sampling parameter is out of bounds
    |   +-- TextError         text that cannot be tokenized, or a template that cannot be rendered
    +-- FetchError            a model could not be fetched (network, offline mode, checksum)
    +-- RuntimeFailure        the runtime failed although its input was valid (exit code 1)
        +-- EngineUnavailable    the engine process is not there, or ended before the answer did
        +-- ProtocolError        bytes between two of our processes are no message

Messages name the key or the value, and the fix. They never hold a stack trace.
"""

from __future__ import annotations


class SubsecondError(Exception):
    """Base of all errors raised on purpose. `exit_code` is the command line's."""

    exit_code = 1


class InputError(SubsecondError):
    """The caller's value, file or configuration is wrong."""

    exit_code = 2


class ModelError(InputError):
    """A checkpoint or artifact is missing, damaged, contradictory or unsupported."""


class UnsupportedError(ModelError):
    """A well-formed model that this version does not run."""


class RequestError(InputError):
    """A prompt or a sampling parameter is out of bounds. `param` names it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class TextError(InputError):
    """Text that cannot be tokenized, or a chat template that cannot be rendered."""


class FetchError(SubsecondError):
    """A model could not be fetched: no network, offline mode, or a checksum that differs."""

    exit_code = 2


class RuntimeFailure(SubsecondError):  # noqa: N818 (RuntimeError is taken)
    """The runtime failed although its input was valid."""


class EngineUnavailable(RuntimeFailure):
    """The engine process is not there, or it ended before the answer did. Asking again may help."""


class ProtocolError(RuntimeFailure):
    """What arrived from another process of Subsecond is no message."""
