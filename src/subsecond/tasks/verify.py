"""Verification: every claim that an artifact makes about itself, tried on this machine.

Owns: the list of claims and how each is decided. Does not know: how claims are shown. Needs nothing
but the artifact: no source, no network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import xxhash

from subsecond.config import KV_FORMATS
from subsecond.engine.sampling import SamplingParams
from subsecond.errors import InputError, ModelError, SubsecondError
from subsecond.formats import artifact, certificate, files, finite
from subsecond.formats.certificate import Canary, Certificate
from subsecond.formats.progress import Progress
from subsecond.runtime import native
from subsecond.runtime.build import native_build
from subsecond.tasks.canary import logits_hash
from subsecond.tasks.generate import LLM

Outcome = Literal["holds", "refuted", "undecided"]

_EXECUTOR = re.compile(rf"native ([a-z0-9]{{1,16}}), kv ({'|'.join(KV_FORMATS)})")
_LIMIT_MANIFEST_BYTES = 64 << 20

LOGITS_TOLERANCE = 0.05
"""How far other kernels' best logits may lie from the recorded ones, as a part of the largest."""


class Claim(msgspec.Struct, frozen=True):
    """One claim. kind: "manifest", "sha256", "xxh3", "finite", "bounds", "certificate" or
    "canary". found: what was seen where it doesn't hold.
    """

    kind: str
    what: str
    outcome: Outcome
    found: str = ""

    def text(self) -> str:
        """The claim in one line that ends with its outcome."""
        return f"{self.what}{f' ({self.found})' if self.found else ''}: {self.outcome}"


def verify(
    folder: Path, *, threads: int | None = None, progress: Progress | None = None
) -> Iterator[Claim]:
    """Tries every claim of the artifact in `folder`, in the order in which they build on each
    other.

    SHA-256 of every file against the manifest and the certificate, xxh3 of every tensor against the
    manifest, that no stored number is NaN or infinite, that what bounds logits bounds them, and
    every canary on the executor that it names: the same greedy tokens, and after the prompt the
    same logits, bit for bit if the same build computed them. A canary is undecided where another
    executor or build finds logits farther away than `LOGITS_TOLERANCE`, another executor other
    tokens, or another build other tokens after logits that are as near as that. InputError if
    `folder` is no artifact at all.
    """
    if not artifact.is_artifact(folder):
        raise InputError(
            f"{files.printable(str(folder))} is no artifact folder (no {artifact.MANIFEST} in it); "
            "'subsecond pull MODEL' makes one and prints where it lies"
        )
    try:
        manifest = artifact.decode_manifest(
            files.read_bytes(files.inside(folder, artifact.MANIFEST), _LIMIT_MANIFEST_BYTES),
            artifact.MANIFEST,
        )
    except ModelError as error:
        yield Claim("manifest", artifact.MANIFEST, "refuted", str(error))
        return
    yield Claim("manifest", f"{artifact.MANIFEST} is well formed", "holds")
    opened = artifact.Artifact(folder, manifest)
    whole = True
    for name in manifest.files:
        claim = _file(opened, name)
        whole = whole and claim.outcome == "holds"
        yield claim
    yield from _tensors(opened, progress)
    try:
        record = certificate.decode(
            files.read_bytes(files.inside(folder, artifact.CERTIFICATE), _LIMIT_MANIFEST_BYTES)
        )
    except ModelError as error:
        yield Claim("certificate", artifact.CERTIFICATE, "refuted", str(error))
        return
    yield from _bindings(opened, record)
    yield from _canaries(folder, record.canaries, threads, progress, whole=whole)


def _file(opened: artifact.Artifact, name: str) -> Claim:
    entry = opened.manifest.files[name]
    what = f"{name}: SHA-256 {entry.sha256[:12]}..."
    try:
        path = files.inside(opened.path, name)
        found = files.sha256(path)
        if found == entry.sha256 and path.stat().st_size == entry.size:
            return Claim("sha256", what, "holds")
        return Claim("sha256", what, "refuted", f"found {found[:12]}...")
    except (ModelError, OSError) as error:
        return Claim("sha256", what, "refuted", str(error))


def _tensors(opened: artifact.Artifact, progress: Progress | None) -> Iterator[Claim]:
    """A claim a tensor, one that all of them hold numbers, and one on what bounds logits."""
    tensors = opened.manifest.tensors
    broken: list[str] = []
    bounds: list[Claim] = []
    try:
        with (
            artifact.mapped(files.inside(opened.path, artifact.WEIGHTS)) as data,
            memoryview(data) as view,
        ):
            for done, tensor in enumerate(tensors):
                if progress is not None:
                    progress("checking tensors", done, len(tensors), "tensors")
                with view[tensor.offset : tensor.offset + tensor.size] as span:
                    found = xxhash.xxh3_64_hexdigest(span)
                    if not finite.all_finite(span, _scanned(tensor), tensor.n, tensor.k):
                        broken.append(tensor.name)
                    elif tensor.format == "int8_split":
                        bounds.append(_bounds(tensor, span))
                what = f"tensor {tensor.name}: xxh3 {tensor.xxh3}"
                if found == tensor.xxh3:
                    yield Claim("xxh3", what, "holds")
                else:
                    yield Claim("xxh3", what, "refuted", f"found {found}")
    except ModelError as error:
        yield Claim("xxh3", f"{len(tensors)} tensors", "refuted", str(error))
        return
    what = f"{artifact.WEIGHTS}: every scale, minimum and unquantized value is finite"
    if broken:
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        yield Claim("finite", what, "refuted", f"NaN or infinite in {broken[0]}{others}")
    else:
        yield Claim("finite", what, "holds")
    yield from bounds


def _bounds(tensor: artifact.Tensor, span: memoryview) -> Claim:
    from subsecond.formats.pack import radii_hold  # NumPy: not for those who only generate

    holds = radii_hold(span, tensor.n, tensor.k)
    what = f"tensor {tensor.name}: no logit lies outside the bounds of its upper part"
    return Claim("bounds", what, "holds" if holds else "refuted")


def _scanned(tensor: artifact.Tensor) -> str:
    return "f32" if tensor.kind == "vector" else tensor.format


def _bindings(opened: artifact.Artifact, record: Certificate) -> Iterator[Claim]:
    """The certificate speaks of these very files."""
    for name, wanted in certificate.bound_files(record):
        same = opened.manifest.files[name].sha256 == wanted
        what = f"the certificate is of this {name}"
        yield Claim("certificate", what, "holds" if same else "refuted")


def _canaries(
    folder: Path,
    canaries: list[Canary],
    threads: int | None,
    progress: Progress | None,
    *,
    whole: bool,
) -> Iterator[Claim]:
    """A claim a canary. All that name one executor are asked with one loaded model."""
    whats = [
        f"canary {number}: {len(canary.prompt)} tokens give {len(canary.answer)} tokens on "
        f"{files.printable(canary.executor[:60])}"
        for number, canary in enumerate(canaries, 1)
    ]
    if not whole:  # what is damaged is never run
        yield from (Claim("canary", what, "refuted", "a file is damaged") for what in whats)
        return
    for executor in dict.fromkeys(canary.executor for canary in canaries):
        own = [i for i, canary in enumerate(canaries) if canary.executor == executor]
        try:
            with _model(folder, executor, threads) as llm:
                for done, index in enumerate(own):
                    if progress is not None:
                        progress("asking canaries", done, len(own), "canaries")
                    yield _ask(llm, canaries[index], whats[index])
        except SubsecondError as error:
            yield from (Claim("canary", whats[i], "refuted", str(error)) for i in own)


@contextmanager
def _model(folder: Path, executor: str, threads: int | None) -> Iterator[LLM]:
    """The model on the named executor, or on this machine's best where it lacks that one."""
    match = _EXECUTOR.fullmatch(executor)
    if match is None:
        raise ModelError(f"the certificate names an executor that is not known: {executor[:60]!r}")
    isa, kv = match.groups()
    has_it = isa in native.host()["isas"]
    with LLM(folder, max_sequences=1, isa=isa if has_it else None, kv=kv, threads=threads) as llm:
        yield llm


def _ask(llm: LLM, canary: Canary, what: str) -> Claim:
    if not canary.answer:
        return Claim("canary", what, "refuted", "no answer is recorded")
    params = SamplingParams(temperature=0.0, max_tokens=len(canary.answer))
    try:
        answer = list(llm.generate([canary.prompt], params)[0].token_ids)
    except SubsecondError as error:
        return Claim("canary", what, "refuted", str(error))
    if answer == canary.answer:
        return _ask_logits(llm, canary, what)
    same = next(
        (i for i, (a, b) in enumerate(zip(answer, canary.answer, strict=False)) if a != b),
        min(len(answer), len(canary.answer)),
    )
    if llm.executor != canary.executor:
        return Claim(
            "canary",
            what,
            "undecided",
            f"this machine has {llm.executor}, which differs from token {same + 1} on",
        )
    differs = f"token {same + 1} differs"
    recorded = canary.logits_xxh3 and canary.best
    if canary.build == native_build() or not recorded:
        return Claim("canary", what, "refuted", differs)
    # Another build may round differently, and greedy tokens part at a near-tie.
    logits = _ask_logits(llm, canary, what)
    if logits.outcome != "holds":
        return Claim("canary", what, "refuted", differs)
    return Claim("canary", what, "undecided", f"this is another build, and {differs}")


def _ask_logits(llm: LLM, canary: Canary, what: str) -> Claim:
    """The claim by the logits after the prompt alone, where the certificate has them."""
    if not canary.logits_xxh3:
        return Claim("canary", what, "holds")
    try:
        row = llm.logits(canary.prompt)[-1]
    except SubsecondError as error:
        return Claim("canary", what, "refuted", str(error))
    if logits_hash(row) == canary.logits_xxh3:
        return Claim("canary", what, "holds")
    same_executor = llm.executor == canary.executor
    if same_executor and canary.build == native_build():
        return Claim("canary", what, "refuted", "the logits' bits differ")
    if any(not 0 <= token_id < len(row) for token_id, _ in canary.best):
        return Claim("canary", what, "refuted", "the recorded logits are of no such token")
    largest = max((abs(logit) for _, logit in canary.best), default=0.0)
    off = max((abs(row[token_id] - logit) for token_id, logit in canary.best), default=0.0)
    if off <= LOGITS_TOLERANCE * largest:
        return Claim("canary", what, "holds")
    return Claim(
        "canary",
        what,
        "undecided",
        f"{llm.executor} gives the same tokens, but logits that differ by {off:.3g}",
    )
