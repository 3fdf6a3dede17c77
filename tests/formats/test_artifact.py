"""Artifacts: what is checked at opening, integrity, certificates, atomic writing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny

from subsecond.errors import InputError, ModelError
from subsecond.formats import (
    artifact,
    artifact_write,
    atomic,
    cache,
    certificate,
    files,
    open_artifact,
)
from subsecond.formats.compare import StoredTensors
from subsecond.formats.convert import convert


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("artifact")
    source = tiny.write("llama", base / "hf", tokenizer=True)
    convert(source, base / "a", "int4")
    return base / "a"


@pytest.fixture
def made(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "a"))


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def first_matrix(manifest: Any) -> Any:
    return next(t for t in manifest["tensors"] if t["kind"] == "matrix")


def test_holds_the_model(made: Path) -> None:
    opened = open_artifact(made)
    manifest = opened.manifest
    assert manifest.weights == "int4"
    formats = {t.name: t.format for t in manifest.tensors}
    assert formats["model.embed_tokens.weight"] == "int8_split"
    assert formats["model.layers.0.mlp.up_proj.weight"] == "int4"
    assert formats["model.norm.weight"] == "f32"
    assert all(t.offset % 64 == 0 for t in manifest.tensors)
    assert json.loads(opened.read(artifact.TOKENIZER))["model"]["type"] == "BPE"
    source = tiny.tensors("llama", 0, tiny.config("llama"))
    with artifact.mapped(opened.weights_path) as data:
        stored = StoredTensors(data, manifest.tensors)
        for name, values in source.items():
            error = np.abs(stored.read(name) - values).max()
            assert error <= (0 if values.ndim == 1 else 0.1 * np.abs(values).max()), name


CONTRADICTIONS: dict[str, tuple[Callable[[Any], object], str]] = {
    "unknown key": (lambda m: m.update(extra=1), "extra"),
    "unknown format": (lambda m: first_matrix(m).update(format="int3"), "int3|enum"),
    "version": (lambda m: m.update(format_version=99), "version 99"),
    "n": (lambda m: first_matrix(m).update(n=first_matrix(m)["n"] + 16), "asks for"),
    "k": (lambda m: first_matrix(m).update(k=1 << 40), "impossible shape"),
    "huge product": (
        lambda m: first_matrix(m).update(n=(1 << 31) - 1, k=(1 << 31) - 1),
        "asks for",
    ),
    "negative n": (lambda m: first_matrix(m).update(n=-16), "impossible shape"),
    "beyond 64 bits": (lambda m: first_matrix(m).update(n=1 << 70), "manifest"),
    "size": (lambda m: first_matrix(m).update(size=64), "asks for"),
    "negative offset": (lambda m: first_matrix(m).update(offset=-64), "starts at"),
    "unaligned": (lambda m: first_matrix(m).update(offset=8), "multiple of 64"),
    "beyond the end": (lambda m: first_matrix(m).update(offset=1 << 40), "passes the end"),
    "overlap": (lambda m: m["tensors"][1].update(offset=m["tensors"][0]["offset"]), "overlaps"),
    "same name": (lambda m: m["tensors"][1].update(name=m["tensors"][0]["name"]), "twice"),
    "vector in int4": (
        lambda m: next(t for t in m["tensors"] if t["kind"] == "vector").update(format="int4"),
        "vector",
    ),
    "checksum": (lambda m: first_matrix(m).update(xxh3="zz"), "checksum"),
    "no tensors": (lambda m: m.update(tensors=[]), "0 tensors"),
    "file missing": (lambda m: m["files"].pop("program.json"), "exactly"),
    "file outside": (lambda m: m["files"].update({"../x": m["files"]["text.json"]}), "exactly"),
    "file size": (lambda m: m["files"]["weights.bin"].update(size=64), "passes the end|bytes"),
    "sha256": (lambda m: m["files"]["text.json"].update(sha256="A" * 64), "SHA-256"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictory_manifests_are_refused(name: str, made: Path) -> None:
    change, words = CONTRADICTIONS[name]
    edit(made, change)
    with pytest.raises(ModelError, match=words):
        open_artifact(made)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a":NaN}', "\ud800"])
def test_manifests_that_are_no_manifest(text: str, made: Path) -> None:
    (made / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match="manifest"):
        open_artifact(made)


@pytest.mark.parametrize("name", artifact.FILES)
def test_missing_truncated_and_altered_files_are_named(name: str, made: Path) -> None:
    path = made / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ModelError, match=name):
        open_artifact(made)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ModelError, match=name):
        open_artifact(made)
    path.unlink()
    with pytest.raises(ModelError, match=name):
        open_artifact(made)
    os.mkfifo(path)
    with pytest.raises(ModelError, match=name):
        open_artifact(made)


def test_every_tensor_is_checked(made: Path) -> None:
    manifest = open_artifact(made).manifest
    path = made / artifact.WEIGHTS
    data = path.read_bytes()
    for tensor in (manifest.tensors[0], manifest.tensors[-1]):
        flipped = bytearray(data)
        flipped[tensor.offset + tensor.size - 1] ^= 128
        path.write_bytes(flipped)
        with pytest.raises(ModelError, match=tensor.name):
            open_artifact(made)


def test_sha256_is_computed_once_per_file_identity(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    plain = files.sha256
    monkeypatch.setattr(files, "sha256", lambda p: hashed.append(p.name) or plain(p))
    open_artifact(made)
    assert sorted(hashed) == sorted(artifact.FILES)
    hashed.clear()
    open_artifact(made)
    assert sorted(hashed) == sorted(set(artifact.FILES) - {artifact.WEIGHTS})
    hashed.clear()
    os.utime(made / artifact.WEIGHTS, ns=(1, 1))
    open_artifact(made)
    assert sorted(hashed) == sorted(artifact.FILES)


@pytest.mark.parametrize("name", sorted(set(artifact.FILES) - {artifact.WEIGHTS}))
def test_a_change_that_moves_no_time_is_found_in_small_files(
    name: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a write through a mapping whose page is still dirty."""
    monkeypatch.setattr(cache, "_identity", lambda path: path.name)  # the same before and after
    open_artifact(made)
    data = (made / name).read_bytes()
    (made / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match=f"{name}: its SHA-256"):
        open_artifact(made)
    with pytest.raises(ModelError, match=f"{name}: its SHA-256"):
        open_artifact(made, check=False).read(name)


def test_small_files_are_checked_when_read(made: Path) -> None:
    opened = open_artifact(made, check=False)
    path = made / artifact.TEXT
    path.write_bytes(path.read_bytes().replace(b"begin", b"begun"))
    with pytest.raises(ModelError, match="SHA-256"):
        opened.read(artifact.TEXT)


def test_what_is_not_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such"):
        open_artifact(tmp_path / "gone")
    with pytest.raises(ModelError, match="not an artifact"):
        open_artifact(tmp_path)


def test_certificate(made: Path, tmp_path: Path) -> None:
    opened = open_artifact(made)
    record = certificate.decode(opened.read(artifact.CERTIFICATE))
    assert record.kind == "converted"
    assert record.weights_sha256 == opened.manifest.files[artifact.WEIGHTS].sha256
    assert set(record.source_files) >= {"config.json", "model.safetensors", "tokenizer.json"}
    source = tiny.write("llama", tmp_path / "hf", tokenizer=True)
    convert(source, tmp_path / "q", "int8")
    finer = certificate.decode(open_artifact(tmp_path / "q").read(artifact.CERTIFICATE))
    assert record.logits.kind == finer.logits.kind == "measured"
    assert 0 < 3 * finer.logits.max_abs < record.logits.max_abs
    assert finer.logits.max_abs < 0.3 * finer.logits.source_deviation
    convert(source, tmp_path / "f", "f32")
    exact = certificate.decode(open_artifact(tmp_path / "f").read(artifact.CERTIFICATE))
    assert exact.logits.kind == "exact"
    assert exact.tensors == exact.tensors_exact
    with pytest.raises(ModelError, match="certificate"):
        certificate.decode(b'{"version": 1}')


def test_what_a_trial_told_is_kept(tmp_path: Path) -> None:
    source = tiny.write("llama", tmp_path / "hf", tokenizer=True)
    seen: list[str] = []

    def hook(folder: Path) -> certificate.Trial:
        seen.append(open_artifact(folder).manifest.weights)
        return certificate.Trial("int8", [certificate.Canary([1, 2], [3], "fake")])

    convert(source, tmp_path / "a", "int8", trial=hook)
    made = open_artifact(tmp_path / "a")
    record = certificate.decode(made.read(artifact.CERTIFICATE))
    assert seen == ["int8"]
    assert (made.manifest.kv, made.manifest.kv_default) == ("int8", "int8")
    assert record.canaries == [certificate.Canary([1, 2], [3], "fake")]


def test_an_artifact_is_replaced_and_others_are_not(tmp_path: Path) -> None:
    source = tiny.write("llama", tmp_path / "hf", tokenizer=True)
    convert(source, tmp_path / "a", "int4")
    convert(source, tmp_path / "a", "f32")
    assert open_artifact(tmp_path / "a").manifest.weights == "f32"
    with pytest.raises(InputError, match="other files"):
        convert(source, source)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not an artifact"):
        convert(source, tmp_path / "file")
    assert leftovers(tmp_path) == []


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("after", [0, 1, 5, 20])
def test_a_full_disk_leaves_nothing_and_the_old_intact(
    code: int, after: int, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.write("llama", tmp_path / "hf", 1, tokenizer=True)
    before = (made / artifact.MANIFEST).read_bytes()
    left = [after]
    plain = artifact_write.Writer._write

    def failing(self: artifact_write.Writer, data: memoryview) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        plain(self, data)

    monkeypatch.setattr(artifact_write.Writer, "_write", failing)
    with pytest.raises(InputError, match=os.strerror(code)):
        convert(source, made)
    with pytest.raises(InputError, match=os.strerror(code)):
        convert(source, tmp_path / "new")
    monkeypatch.undo()
    assert (made / artifact.MANIFEST).read_bytes() == before
    open_artifact(made)
    assert not (tmp_path / "new").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_a_failing_system_call_leaves_nothing(
    broken: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.write("llama", tmp_path / "hf", 1, tokenizer=True)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    if broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(atomic, "_put", fail)
    for target in (made, tmp_path / "new"):
        with pytest.raises(InputError, match="I/O error"):
            convert(source, target)
    monkeypatch.undo()
    open_artifact(made)
    assert not (tmp_path / "new").exists()
    assert leftovers(tmp_path) == []


def test_without_an_exchange_the_old_folder_steps_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.write("llama", tmp_path / "hf", tokenizer=True)
    convert(source, tmp_path / "a", "int4")
    monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    convert(source, tmp_path / "a", "bf16")
    assert open_artifact(tmp_path / "a").manifest.weights == "bf16"
    (tmp_path / "a").rename(tmp_path / ".a.old-123")  # killed between the two renames
    atomic.remove_leftovers(tmp_path / "a")
    assert open_artifact(tmp_path / "a").manifest.weights == "bf16"
    assert leftovers(tmp_path) == []


KILLED = """
import sys, time
from pathlib import Path
from subsecond.formats import artifact_write
plain = artifact_write.Writer._write
def slow(self, data):
    time.sleep(0.002)
    plain(self, data)
artifact_write.Writer._write = slow
from subsecond.formats.convert import convert
print("ready", flush=True)
while True:
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    print("made", flush=True)
"""


def test_killed_at_any_moment_the_old_or_the_new_stands(made: Path, tmp_path: Path) -> None:
    source = tiny.write("llama", tmp_path / "hf", 1, tokenizer=True)
    rng = np.random.default_rng(0)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source), str(made), "bf16"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    for moment in range(5):
        process.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.25)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert open_artifact(made).manifest.weights in ("int4", "bf16"), moment
        if moment < 4:
            process = subprocess.Popen(
                [sys.executable, "-c", KILLED, str(source), str(made), "bf16"],
                stdout=subprocess.PIPE,
            )
            assert process.stdout is not None
    convert(source, made, "f32")
    assert open_artifact(made).manifest.weights == "f32"
    assert leftovers(made.parent) == []


def test_opening_imports_no_numpy(made: Path) -> None:
    code = (
        "import sys; from subsecond.formats import open_artifact;"
        f"a = open_artifact({str(made)!r}); a.read('program.json');"
        "bad = {'numpy', 'gguf', 'huggingface_hub', 'torch'} & set(sys.modules);"
        "sys.exit(1 if bad else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_manifest_is_readable_json(made: Path) -> None:
    manifest = msgspec.json.decode((made / artifact.MANIFEST).read_bytes())
    keys = {"format_version", "weights", "source", "tensors", "files", "warnings", "kv"}
    assert set(manifest) == keys
    assert manifest["source"]["kind"] == "safetensors"
    assert "/" not in manifest["source"]["name"]


@pytest.mark.parametrize("name", [artifact.PROGRAM, artifact.TOKENIZER, artifact.TEXT])
def test_a_restored_modification_time_hides_no_change(name: str, made: Path) -> None:
    open_artifact(made)  # the files are remembered as verified
    path = made / name
    before = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + (b" " if data[-1:] != b" " else b"\n"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(ModelError, match=name):
        open_artifact(made)


def test_an_output_name_too_long_is_named(tmp_path: Path) -> None:
    folder = tiny.write("llama", tmp_path / "hf", tokenizer=True)
    with pytest.raises(InputError, match=r"x{300}.*too long"):
        convert(folder, tmp_path / ("x" * 300))
