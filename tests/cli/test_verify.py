"""`verify`: a line a claim, and a lie of any file is found."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from subsecond.formats import artifact, certificate, files
from subsecond.formats.convert import convert
from subsecond.runtime import native
from subsecond.tasks.canary import tried

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def certified(tiny_checkpoint: Path) -> Path:
    """An artifact whose certificate has canaries."""
    out = tiny_checkpoint.parent / "certified"
    return convert(tiny_checkpoint, out, "int4", trial=tried).path


@pytest.fixture
def copy(certified: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(certified, tmp_path / "copy"))


def rewrite(folder: Path, **changes: object) -> None:
    """Changes the certificate, and the manifest so that it vouches for it: a consistent lie."""
    path = folder / artifact.CERTIFICATE
    record = msgspec.structs.replace(certificate.decode(path.read_bytes()), **changes)
    path.write_bytes(record.to_json())
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": files.sha256(path)}
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))


def test_every_claim_of_a_whole_artifact_holds(inline: Run, certified: Path) -> None:
    done = inline("verify", str(certified), "--threads", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.endswith(": holds") for line in lines)
    for words in (*artifact.FILES, "tensors: xxh3", "canary 1", "canary 2", "canary 3"):
        assert any(words in line for line in lines), words
    result = json.loads(inline("verify", str(certified), "--json").stdout)
    assert result["outcome"] == "holds"
    kinds = [claim["kind"] for claim in result["claims"]]
    manifest = artifact.open_artifact(certified).manifest
    assert kinds.count("sha256") == len(manifest.files) == 5
    assert kinds.count("xxh3") == len(manifest.tensors)
    assert kinds.count("canary") == 3


@pytest.mark.parametrize("name", artifact.FILES)
def test_one_altered_bit_of_any_file_is_found(inline: Run, copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    done = inline("verify", str(copy))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    refuted = [line for line in done.stdout.splitlines() if line.endswith(": refuted")]
    assert refuted[0].startswith(f"{name}: SHA-256")
    assert all(line.endswith((": holds", ": refuted")) for line in done.stdout.splitlines())
    tensors = [line for line in refuted if line.startswith("tensor ")]
    assert len(tensors) == (name == artifact.WEIGHTS)
    result = json.loads(inline("verify", str(copy), "--json").stdout)
    assert result["outcome"] == "refuted"


@pytest.mark.parametrize("damage", ["short", "empty", "missing", "folder", "link"])
def test_a_file_that_is_not_whole_is_refuted(inline: Run, copy: Path, damage: str) -> None:
    path = copy / artifact.WEIGHTS
    data = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.touch()
    elif damage == "folder":
        path.mkdir()
    elif damage == "link":
        path.symlink_to("/etc/passwd")
    done = inline("verify", str(copy))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert any(
        line.startswith("weights.bin: SHA-256") and line.endswith(": refuted")
        for line in done.stdout.splitlines()
    )


def test_a_damaged_manifest_is_refuted(inline: Run, copy: Path) -> None:
    (copy / artifact.MANIFEST).write_text("{")
    done = inline("verify", str(copy))
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("manifest.json (") and line.endswith("): refuted")


def test_an_answer_that_the_artifact_does_not_give_is_refuted(inline: Run, copy: Path) -> None:
    first, *others = certificate.decode((copy / artifact.CERTIFICATE).read_bytes()).canaries
    token = first.answer[2] ^ 1
    forged = msgspec.structs.replace(first, answer=[*first.answer[:2], token, *first.answer[3:]])
    rewrite(copy, canaries=[forged, *others])
    done = inline("verify", str(copy))
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.endswith(": refuted")]
    assert line.startswith("canary 1: ")
    assert "token 3 differs" in line


def test_impossible_canaries_are_refuted_not_run(inline: Run, copy: Path) -> None:
    first = certificate.decode((copy / artifact.CERTIFICATE).read_bytes()).canaries[0]
    change = msgspec.structs.replace
    rewrite(
        copy,
        canaries=[
            change(first, prompt=[]),
            change(first, prompt=[10**6]),
            change(first, prompt=[1] * 600),
            change(first, answer=[]),
            change(first, executor="rm -rf \x1b[31m"),
        ],
    )
    done = inline("verify", str(copy))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("canary ")]
    assert len(lines) == 5
    assert all(line.endswith(": refuted") for line in lines)
    assert "\x1b" not in done.stdout


def test_an_executor_that_is_not_here_leaves_a_difference_undecided(
    inline: Run, copy: Path
) -> None:
    first = certificate.decode((copy / artifact.CERTIFICATE).read_bytes()).canaries[0]
    absent = next(isa for isa in ("neon", "avx512") if isa not in native.host()["isas"])
    same = msgspec.structs.replace(first, executor=f"native {absent}, kv bf16")
    other = msgspec.structs.replace(same, answer=[token ^ 1 for token in first.answer])
    rewrite(copy, canaries=[same, other])
    done = inline("verify", str(copy))
    assert done.returncode == 3
    one, two = done.stdout.splitlines()[-2:]
    assert one.startswith("canary 1") and one.endswith(": holds")
    assert two.startswith("canary 2") and two.endswith(": undecided")


def test_a_certificate_of_other_files_is_refuted(inline: Run, copy: Path) -> None:
    rewrite(copy, weights_sha256="0" * 64)
    done = inline("verify", str(copy))
    assert done.returncode == 1
    assert "the certificate is of this weights.bin: refuted" in done.stdout


def test_an_artifact_without_canaries_says_so(inline: Run, tiny_artifact: Path) -> None:
    done = inline("verify", str(tiny_artifact))
    assert done.returncode == 0
    assert "records no answers" in done.stderr


@pytest.mark.parametrize("name", ["", "no/such/folder", "/dev/null", "x\0y"])
def test_what_is_no_artifact_is_bad_input(inline: Run, name: str) -> None:
    done = inline("verify", name)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("subsecond: error: ")
