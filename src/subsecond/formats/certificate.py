"""Certificates: what is known about an artifact's faithfulness to its source, in a schema that
serving can read.

Owns: the schema and its JSON form. Kind `converted` (written by convert) holds hashes, canaries and
the difference of logits against the source, and claims nothing about accuracy. Knows nothing of how
the figures are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import msgspec

from subsecond.errors import ModelError

VERSION = 3
_READ = (1, 2, 3)  # version 1 has no logits in its canaries, 2 no hash of text.json


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fixed prompt and the greedy continuation that the artifact gave on the named executor.

    logits_xxh3: hash of the logits after the prompt, float32, little endian. best: (token id,
    logit) of the largest of them. build: hash of the native module that computed them; only the
    same build owes the same bits. All three are empty in version 1.
    """

    prompt: list[int]
    answer: list[int]
    executor: str
    logits_xxh3: str = ""
    best: list[tuple[int, float]] = []
    build: str = ""


class Trial(NamedTuple):
    """What running a fresh artifact told: the KV cache that suits it ("": not tried), and its
    canaries."""

    kv: Literal["", "f32", "bf16", "int8"]
    canaries: list[Canary]


class LogitsDifference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the artifact's logits lie from the source's, both in float32 by the NumPy
    interpreter.

    `exact`: every stored value equals the source's, so the difference is zero by construction and
    was not computed.
    `measured`: largest absolute difference over `tokens` positions, and the standard deviation of
    the source's logits.
    `none`: not computed; `reason` says why.
    """

    kind: Literal["exact", "measured", "none"]
    tokens: int = 0
    max_abs: float = 0.0
    source_deviation: float = 0.0
    reason: str = ""


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What convert knows. `tensors_exact` of `tensors` tensors hold the source's values
    unchanged. text_sha256 is empty up to version 2."""

    version: int
    kind: Literal["converted"]
    weights_sha256: str
    program_sha256: str
    tokenizer_sha256: str
    source_files: dict[str, str]
    tensors: int
    tensors_exact: int
    logits: LogitsDifference
    canaries: list[Canary]
    text_sha256: str = ""

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def decode(data: bytes) -> Certificate:
    """Reads a certificate strictly. Raises ModelError for anything else."""
    try:
        certificate = msgspec.json.decode(data, type=Certificate)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(
            f"certificate.json is not a valid certificate: {error}; convert the model again"
        ) from None
    if certificate.version not in _READ:
        raise ModelError(
            f"certificate version {certificate.version} is not read; convert the model again"
        )
    return certificate


def bound_files(record: Certificate) -> Iterator[tuple[str, str]]:
    """(name, SHA-256) of the files that the certificate is of. text.json is not among them in
    certificates of versions that didn't record it.
    """
    yield "weights.bin", record.weights_sha256
    yield "program.json", record.program_sha256
    yield "tokenizer.json", record.tokenizer_sha256
    if record.version >= 3 or record.text_sha256:
        yield "text.json", record.text_sha256


def check_binding(record: Certificate, files: Mapping[str, str]) -> None:
    """Raises ModelError unless the certificate is of these files (name: SHA-256), and of no others:
    one that was made of another artifact says nothing about this one.
    """
    for name, wanted in bound_files(record):
        if files.get(name) != wanted:
            raise ModelError(
                f"certificate.json is not of this {name}, but of another artifact's; convert the "
                "model again"
            )
