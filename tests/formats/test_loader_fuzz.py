"""Mutated files: every loader answers with a typed error or a model, soon, in bounded memory."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
import tiny
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from subsecond.errors import ModelError
from subsecond.formats import artifact, gguf_header, open_artifact
from subsecond.formats.convert import convert, open_checkpoint

SETTINGS = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]
MEMORY_BYTES = 100 << 20

# A list of changes: (position as a fraction, kind of change, value).
MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["byte", "u32", "u64", "cut", "insert", "repeat"]),
        st.one_of(
            st.sampled_from([*INTERESTING, 1 << 31, 1 << 62, (1 << 64) - 1]),
            st.integers(0, (1 << 64) - 1),
        ),
    ),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, changes: list[tuple[float, str, int]], span: int) -> bytes:
    """`data` with changes within its first `span` bytes."""
    out = bytearray(data)
    for place, kind, value in changes:
        at = int(place * min(span, len(out)))
        if kind == "byte":
            out[at : at + 1] = bytes([value & 255])
        elif kind == "u32":
            out[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")
        elif kind == "u64":
            out[at : at + 8] = value.to_bytes(8, "little")
        elif kind == "cut":
            del out[at : at + 1 + value % 64]
        elif kind == "insert":
            out[at:at] = bytes([value & 255]) * (1 + value % 16)
        else:
            out[at:at] = out[at : at + value % 64]
    return bytes(out)


def survives(load: Callable[[], object]) -> None:
    """Runs a loader: a typed error or a result, below the memory bound."""
    tracemalloc.start()
    try:
        load()
    except ModelError as error:
        assert str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY_BYTES


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    try:
        for name in checkpoint.shapes:
            checkpoint.grid(name)
            checkpoint.read(name)
    finally:
        checkpoint.close()


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    gguf_files.write("llama", path, quantized=Type.Q4_1, **SMALL)
    return path.read_bytes()


@SETTINGS
@given(changes=MUTATIONS, tables=st.booleans())
@example(changes=[(0.0, "cut", 0)], tables=False)
def test_gguf(
    changes: list[tuple[float, str, int]], tables: bool, small_gguf: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    # The keys of the model and the table of tensors are small beside the tokenizer: aim at them
    # too.
    start = small_gguf.index(b"token_embd") - 200 if tables else 0
    span = 1500 if tables else 700
    path.write_bytes(small_gguf[:start] + mutated(small_gguf[start:], changes, span))
    survives(lambda: read_all(path))


@SETTINGS
@given(keep=st.integers(0, 1 << 20))
def test_truncated_gguf(keep: int, small_gguf: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_gguf[: keep % len(small_gguf)])
    with pytest.raises(ModelError):
        read_all(path)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write("llama", tmp_path_factory.mktemp("hf"), tokenizer=True, **SMALL)


@SETTINGS
@given(changes=MUTATIONS)
def test_safetensors(
    changes: list[tuple[float, str, int]], small_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(small_folder, folder, dirs_exist_ok=True)
    path = folder / "model.safetensors"
    data = (small_folder / path.name).read_bytes()
    path.write_bytes(mutated(data, changes, 8 + int.from_bytes(data[:8], "little")))
    survives(lambda: read_all(folder))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@SETTINGS
@given(key=st.sampled_from(sorted(tiny.config("llama"))), value=JSON_VALUES)
def test_config_values(key: str, value: object, small_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(small_folder, folder, dirs_exist_ok=True)
    config = json.loads((small_folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    survives(lambda: convert(folder, tmp_path / "a", "f32"))


@pytest.fixture(scope="module")
def small_artifact(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifact") / "a"
    convert(small_folder, out, "int4")
    return out


@SETTINGS
@given(name=st.sampled_from([artifact.MANIFEST, *artifact.FILES]), changes=MUTATIONS)
def test_artifact(
    name: str, changes: list[tuple[float, str, int]], small_artifact: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(small_artifact, folder, dirs_exist_ok=True)
    data = (small_artifact / name).read_bytes()
    new = mutated(data, changes, len(data))
    (folder / name).write_bytes(new)
    survives(lambda: open_artifact(folder))
    if new != data and name != artifact.MANIFEST:
        with pytest.raises(ModelError, match=name):
            open_artifact(folder)


@SETTINGS
@given(data=st.data())
def test_manifest_fields(data: st.DataObject, small_artifact: Path, tmp_path: Path) -> None:
    """Any value in any field of the manifest: an error, or a manifest that still adds up."""
    folder = tmp_path / "a"
    shutil.copytree(small_artifact, folder, dirs_exist_ok=True)
    manifest = json.loads((small_artifact / artifact.MANIFEST).read_text())
    tensor = data.draw(st.sampled_from(manifest["tensors"]))
    numbers = st.integers(-(1 << 66), 1 << 66) | st.sampled_from([0, 1, 16, 32, 64, 1 << 31])
    tensor[data.draw(st.sampled_from(sorted(tensor)))] = data.draw(numbers | JSON_VALUES)
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))
    try:
        opened = open_artifact(folder)
    except ModelError:
        return
    for entry in opened.manifest.tensors:
        assert entry.size == entry.bytes_wanted()
        assert 0 <= entry.offset <= entry.offset + entry.size <= opened.weights_path.stat().st_size


def test_arrays_of_strings_stay_in_the_file(tmp_path: Path) -> None:
    """Strings of two bytes would take 64 each; what is not the tokenizer's is never unpacked."""
    count = 200_000
    key = b"general.tags"
    data = b"GGUF" + np.array([3], "<u4").tobytes() + np.array([0, 1], "<u8").tobytes()
    data += np.array([len(key)], "<u8").tobytes() + key + np.array([9, 8], "<u4").tobytes()
    data += np.array([count], "<u8").tobytes() + (bytes([2] + [0] * 7) + b"ab") * count
    tracemalloc.start()
    try:
        header = gguf_header.parse(data, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * count
    strings = header.metadata["general.tags"]
    assert isinstance(strings, gguf_header.Strings)
    assert list(strings) == ["ab"] * count


@pytest.mark.parametrize(("name", "length"), [("tokens", 321), ("merges", 2561), ("scores", 321)])
def test_arrays_longer_than_the_vocabulary_are_not_unpacked(
    name: str, length: int, tmp_path: Path
) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        key = f"tokenizer.ggml.{name}"
        writer.kv_data[0].pop(key, None)
        writer.add_array(key, [1.0] * length if name == "scores" else ["a b"] * length)

    gguf_files.write("llama", tmp_path / "m.gguf", edit=edit)
    with pytest.raises(ModelError, match=f"{name} has {length} entries.*320 rows"):
        _ = open_checkpoint(tmp_path / "m.gguf").texts


def test_a_large_header_is_refused_within_its_bounds(tmp_path: Path) -> None:
    """An array of many tiny strings must not turn a file of some MB into GBs of objects."""
    count = 3_000_000
    key = b"tokenizer.ggml.tokens"
    data = b"GGUF" + np.array([3], "<u4").tobytes() + np.array([0, 1], "<u8").tobytes()
    data += np.array([len(key)], "<u8").tobytes() + key + np.array([9, 8], "<u4").tobytes()
    data += np.array([count], "<u8").tobytes() + bytes(8 * count)
    (tmp_path / "m.gguf").write_bytes(data)
    survives(lambda: open_checkpoint(tmp_path / "m.gguf"))
    with pytest.raises(ModelError, match="length of"):
        open_checkpoint(tmp_path / "m.gguf")
