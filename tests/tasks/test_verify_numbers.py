"""`verify` finds what rewritten hashes hide: numbers that are none, and logits that are others."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny
import xxhash

from subsecond.formats import artifact, certificate
from subsecond.formats.convert import convert
from subsecond.formats.layout import FORMATS
from subsecond.tasks import verify as verify_module
from subsecond.tasks.canary import tried
from subsecond.tasks.verify import Claim, verify

NAN, INFINITY = b"\x00\x7e", b"\x00\xfc"  # fp16


@pytest.fixture(scope="module", params=["int4", "int8", "bf16", "f32"])
def certified(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose certificate has canaries."""
    folder = tmp_path_factory.mktemp("certified")
    tiny.write("qwen3", folder / "checkpoint", tokenizer=True)
    return convert(folder / "checkpoint", folder / "artifact", request.param, trial=tried).path


@pytest.fixture
def copy(certified: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(certified, tmp_path / "copy"))


def rewrite(folder: Path, weights: bytes, change: Callable[[Any], object]) -> None:
    """A consistent lie: other weights and canaries, and every hash as if they were true."""
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    for tensor in manifest["tensors"]:
        span = weights[tensor["offset"] : tensor["offset"] + tensor["size"]]
        tensor["xxh3"] = xxhash.xxh3_64_hexdigest(span)
    (folder / artifact.WEIGHTS).write_bytes(weights)
    path = folder / artifact.CERTIFICATE
    record = certificate.decode(path.read_bytes())
    record = msgspec.structs.replace(
        record,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        canaries=[change(canary) for canary in record.canaries],
    )
    path.write_bytes(record.to_json())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))


def outcomes(folder: Path, kind: str) -> list[Claim]:
    return [claim for claim in verify(folder, threads=1) if claim.kind == kind]


def same(canary: certificate.Canary) -> certificate.Canary:
    return canary


def places(folder: Path) -> list[tuple[str, int, bytes]]:
    """(tensor, offset in weights.bin, bytes that are no number) for each kind of number."""
    tensors = artifact.open_artifact(folder).manifest.tensors
    vector = next(t for t in tensors if t.kind == "vector")
    matrix = [t for t in tensors if t.kind == "matrix"][-1]
    block = 416 if matrix.format == "int8_split" else FORMATS[matrix.format].block_bytes
    last = matrix.offset + matrix.size - block
    found = [(vector.name, vector.offset + 4, b"\x00\x00\xc0\x7f")]
    if matrix.format == "f32":
        found.append((matrix.name, last + 60, b"\x00\x00\x80\xff"))
    elif matrix.format == "bf16":
        found.append((matrix.name, last + 62, b"\x80\x7f"))
    else:
        found.append((matrix.name, last + 2 * 15, NAN))
        found.append((matrix.name, last, INFINITY))
    if matrix.format == "int8_split":  # a radius
        found.append((matrix.name, matrix.offset, b"\x00\x00\xc0\x7f"))
    if matrix.format == "int4":
        found.append((matrix.name, last + 32 + 2 * 15, NAN))
    return found


def test_a_number_that_is_none_is_found_behind_true_hashes(certified: Path, copy: Path) -> None:
    weights = (certified / artifact.WEIGHTS).read_bytes()
    rewrite(copy, weights, same)
    assert [claim.outcome for claim in outcomes(copy, "finite")] == ["holds"]
    for name, offset, bad in places(certified):
        changed = weights[:offset] + bad + weights[offset + len(bad) :]
        rewrite(copy, changed, same)
        claims = [claim for claim in verify(copy, threads=1) if claim.kind != "canary"]
        (refuted,) = [claim for claim in claims if claim.outcome != "holds"]
        assert (refuted.kind, refuted.outcome) == ("finite", "refuted")
        assert refuted.found == f"NaN or infinite in {name}"


@pytest.mark.parametrize("certified", ["int4"], indirect=True)
def test_a_bound_that_does_not_hold_is_found_behind_true_hashes(
    certified: Path, copy: Path
) -> None:
    weights = (certified / artifact.WEIGHTS).read_bytes()
    tensors = artifact.open_artifact(certified).manifest.tensors
    (matrix,) = [tensor for tensor in tensors if tensor.format == "int8_split"]
    rewrite(copy, weights, same)
    assert [claim.outcome for claim in outcomes(copy, "bounds")] == ["holds"]
    last = matrix.offset + 4 * (matrix.n - 1)  # the radius of the last row
    less = np.frombuffer(weights[last : last + 4], "<f4") * np.float32(0.999)
    rewrite(copy, weights[:last] + less.tobytes() + weights[last + 4 :], same)
    (claim,) = outcomes(copy, "bounds")
    assert claim.outcome == "refuted"
    assert matrix.name in claim.what


@pytest.mark.parametrize("certified", ["int4", "int8"], indirect=True)
def test_integers_of_all_ones_are_numbers(certified: Path, copy: Path) -> None:
    tensors = artifact.open_artifact(certified).manifest.tensors
    matrix = next(t for t in tensors if t.kind == "matrix")
    weights = bytearray((certified / artifact.WEIGHTS).read_bytes())
    start = matrix.offset + (64 if matrix.format == "int4" else 32)
    if matrix.format == "int8_split":  # its last block ends the matrix
        start = matrix.offset + matrix.size - 384
    weights[start : start + 256] = b"\xff" * 256
    rewrite(copy, bytes(weights), same)
    assert [claim.outcome for claim in outcomes(copy, "finite")] == ["holds"]


@pytest.mark.parametrize("certified", ["int4"], indirect=True)
def test_logits_of_the_same_build_are_the_same_bits(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (copy / artifact.WEIGHTS).read_bytes()
    assert [claim.outcome for claim in outcomes(copy, "canary")] == ["holds"] * 3
    replace = msgspec.structs.replace
    rewrite(copy, weights, lambda canary: replace(canary, logits_xxh3="0" * 16))
    claims = outcomes(copy, "canary")
    assert {(claim.outcome, claim.found) for claim in claims} == {
        ("refuted", "the logits' bits differ")
    }
    # Another build owes the numbers, not the bits.
    monkeypatch.setattr(verify_module, "native_build", lambda: "another")
    assert [claim.outcome for claim in outcomes(copy, "canary")] == ["holds"] * 3
    rewrite(
        copy,
        weights,
        lambda canary: replace(canary, best=[(token, 2 * x + 1) for token, x in canary.best]),
    )
    assert [claim.outcome for claim in outcomes(copy, "canary")] == ["undecided"] * 3
    rewrite(copy, weights, lambda canary: replace(canary, best=[(10**6, 1.0)]))
    assert [claim.outcome for claim in outcomes(copy, "canary")] == ["refuted"] * 3
    # As certificates were before they had logits.
    rewrite(copy, weights, lambda canary: replace(canary, logits_xxh3="", best=[], build=""))
    assert [claim.outcome for claim in outcomes(copy, "canary")] == ["holds"] * 3


@pytest.mark.parametrize("certified", ["int4"], indirect=True)
def test_other_tokens_of_another_build_are_undecided_where_the_logits_are_near(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, replace = (copy / artifact.WEIGHTS).read_bytes(), msgspec.structs.replace

    def other(canary: certificate.Canary) -> certificate.Canary:
        tokens = [*canary.answer[:4], canary.answer[4] ^ 1, *canary.answer[5:]]
        return replace(canary, answer=tokens, logits_xxh3="0" * 16)

    def found() -> set[tuple[str, str]]:
        return {(claim.outcome, claim.found) for claim in outcomes(copy, "canary")}

    rewrite(copy, weights, other)
    assert found() == {("refuted", "token 5 differs")}
    monkeypatch.setattr(verify_module, "native_build", lambda: "another")
    assert found() == {("undecided", "this is another build, and token 5 differs")}
    # Roundings don't explain tokens after logits that are far away, or of no such token.
    for best in ([(5, 1e3)], [(10**6, 1.0)], []):
        rewrite(copy, weights, lambda canary, best=best: replace(canary, best=best))
        assert found() == {("refuted", "token 5 differs")}


@pytest.mark.parametrize("certified", ["int4"], indirect=True)
def test_a_certificate_of_version_1_is_read(copy: Path) -> None:
    record = json.loads((copy / artifact.CERTIFICATE).read_text())
    record["version"] = 1
    for canary in record["canaries"]:
        del canary["logits_xxh3"], canary["best"], canary["build"]
    assert certificate.decode(json.dumps(record).encode()).canaries[0].logits_xxh3 == ""


@pytest.mark.parametrize("certified", ["int4"], indirect=True)
def test_the_certificate_is_of_this_text_json(copy: Path) -> None:
    def texts() -> list[str]:
        claims = outcomes(copy, "certificate")
        return [claim.outcome for claim in claims if artifact.TEXT in claim.what]

    assert texts() == ["holds"]
    text = (copy / artifact.TEXT).read_bytes() + b" "
    (copy / artifact.TEXT).write_bytes(text)
    manifest = json.loads((copy / artifact.MANIFEST).read_text())
    entry = manifest["files"][artifact.TEXT]
    entry["size"], entry["sha256"] = len(text), hashlib.sha256(text).hexdigest()
    (copy / artifact.MANIFEST).write_text(json.dumps(manifest))
    assert texts() == ["refuted"]
