"""Hugging Face folders: what is read, and what is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from subsecond.errors import ModelError, UnsupportedError
from subsecond.formats import files
from subsecond.formats.convert import convert, open_checkpoint
from subsecond.formats.pack import from_bf16, to_bf16
from subsecond.formats.safetensors_in import SafetensorsCheckpoint

INDEX = "model.safetensors.index.json"


def write_raw(path: Path, header: Any, data: bytes = b"", *, size: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)


def record(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write("llama", tmp_path / "m", tokenizer=True)


def test_dtypes(folder: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    parts = [
        ("a", "F32", values.tobytes()),
        ("b", "F16", values.astype(np.float16).tobytes()),
        ("c", "BF16", to_bf16(values).tobytes()),
    ]
    header, data = {}, b""
    for name, dtype, raw in parts:
        header[name] = record(dtype, [3, 5], len(data), len(data) + len(raw))
        data += raw
    write_raw(folder / "model.safetensors", header, data)
    checkpoint = SafetensorsCheckpoint(folder)
    np.testing.assert_array_equal(checkpoint.read("a"), values)
    np.testing.assert_array_equal(checkpoint.read("b"), values.astype(np.float16))
    np.testing.assert_array_equal(checkpoint.read("c"), from_bf16(to_bf16(values)))
    assert {checkpoint.read(x).dtype for x in "abc"} == {np.dtype(np.float32)}


def test_shards_equal_one_file(folder: Path, tmp_path: Path) -> None:
    sharded = tiny.write("llama", tmp_path / "s", tokenizer=True, shards=3)
    convert(folder, tmp_path / "a", "f32")
    convert(sharded, tmp_path / "b", "f32")
    assert (tmp_path / "a/weights.bin").read_bytes() == (tmp_path / "b/weights.bin").read_bytes()


BAD_FILES: dict[str, tuple[Any, bytes, str]] = {
    "no JSON": (b"{nope", b"", "JSON"),
    "deep JSON": (b"[" * 100_000, b"", "nested too deeply|JSON"),
    "a list": ([1], b"", "JSON object"),
    "NaN": (b'{"t": NaN}', b"", "dtype"),
    "twice": (b'{"t": {}, "t": {}}', b"", "twice"),
    "no dtype": ({"t": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4), "exactly"),
    "unknown dtype": ({"t": record("F7", [1], 0, 4)}, bytes(4), "unknown dtype"),
    "negative shape": ({"t": record("F32", [-1], 0, 4)}, bytes(4), "lists of sizes"),
    "float shape": ({"t": record("F32", [1.0], 0, 4)}, bytes(4), "lists of sizes"),  # type: ignore[list-item]
    "bool shape": ({"t": record("F32", [True], 0, 4)}, bytes(4), "lists of sizes"),
    "wrong product": ({"t": record("F32", [3], 0, 4)}, bytes(4), "does not take"),
    "product overflow": ({"t": record("F32", [1 << 40, 1 << 40], 0, 4)}, bytes(4), "does not take"),
    "empty tensor": ({"t": record("F32", [0], 0, 0)}, b"", "empty shape"),
    "backwards": ({"t": record("F32", [1], 4, 0)}, bytes(4), "lists of sizes"),
    "beyond the end": ({"t": record("F32", [2], 0, 8)}, bytes(4), "not complete"),
    "trailing bytes": ({"t": record("F32", [1], 0, 4)}, bytes(9), "not complete|damaged"),
    "gap": ({"t": record("F32", [1], 4, 8)}, bytes(8), "gap"),
    "overlap": (
        {"t": record("F32", [2], 0, 8), "u": record("F32", [1], 4, 8)},
        bytes(8),
        "overlap",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_by_name(name: str, folder: Path) -> None:
    header, data, words = BAD_FILES[name]
    write_raw(folder / "model.safetensors", header, data)
    with pytest.raises(ModelError, match=words):
        SafetensorsCheckpoint(folder)


@pytest.mark.parametrize("size", [0, 1, 1 << 62, 10_000])
def test_absurd_header_sizes(size: int, folder: Path) -> None:
    write_raw(folder / "model.safetensors", {}, size=size)
    with pytest.raises(ModelError, match="header"):
        SafetensorsCheckpoint(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, 5000])
def test_half_a_download(keep: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="download"):
        SafetensorsCheckpoint(folder)


def test_other_dtypes_are_named_with_a_fix(folder: Path) -> None:
    write_raw(folder / "model.safetensors", {"t": record("F64", [2], 0, 16)}, bytes(16))
    with pytest.raises(UnsupportedError, match=r"'t'.*F64.*convert"):
        SafetensorsCheckpoint(folder).read("t")


def test_nan_is_refused_by_tensor_name(folder: Path, tmp_path: Path) -> None:
    arrays = tiny.tensors("llama", 0, tiny.config("llama"))
    arrays["model.layers.1.mlp.up_proj.weight"][3, 4] = np.inf
    tiny.write_safetensors(folder / "model.safetensors", arrays)
    for weights in ("int4", "f32", "bf16"):
        with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight.*infinite"):
            convert(folder, tmp_path / "a", weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_files_are_named(missing: str, folder: Path) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        SafetensorsCheckpoint(folder)


def test_missing_and_extra_tensors_are_named(folder: Path, tmp_path: Path) -> None:
    arrays = tiny.tensors("llama", 0, tiny.config("llama"))
    name = "model.layers.0.self_attn.k_proj.weight"
    tiny.write_safetensors(
        folder / "model.safetensors", {n: a for n, a in arrays.items() if n != name}
    )
    with pytest.raises(ModelError, match=name):
        convert(folder, tmp_path / "a")
    arrays["model.layers.7.extra"] = np.zeros(3, np.float32)
    tiny.write_safetensors(folder / "model.safetensors", arrays)
    with pytest.raises(ModelError, match=r"layers\.7\.extra"):
        convert(folder, tmp_path / "a", strict=True)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match=r"pytorch_model.bin.*safetensors"):
        SafetensorsCheckpoint(folder)
    with pytest.raises(UnsupportedError, match="safetensors"):
        open_checkpoint(folder / "pytorch_model.bin")


def test_one_file_of_a_folder_is_not_the_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="give its folder"):
        open_checkpoint(folder / "model.safetensors")


def with_shard(folder: Path, name: Any) -> None:
    tensors = tiny.shapes("llama", tiny.config("llama"))
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))


@pytest.mark.parametrize(
    "name",
    ["../m2/model.safetensors", "/etc/model.safetensors", "a/../../x.safetensors", "", "..",
     "x\0.safetensors", "..\\x.safetensors"],
)  # fmt: skip
def test_shard_names_stay_inside(name: str, folder: Path) -> None:
    outside = folder.parent / "m2"
    outside.mkdir()
    (outside / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with_shard(folder, name)
    with pytest.raises(ModelError, match="outside"):
        SafetensorsCheckpoint(folder)


def test_links_out_of_the_folder_are_refused(folder: Path) -> None:
    outside = folder.parent / "secret.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(ModelError, match="symbolic link"):
        SafetensorsCheckpoint(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        SafetensorsCheckpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_links_of_text_files_are_refused_too(name: str, folder: Path) -> None:
    outside = folder.parent / name
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ModelError, match="symbolic link"):
        SafetensorsCheckpoint(folder)


def test_the_hub_cache_may_link_into_its_blobs(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert SafetensorsCheckpoint(snapshot).config["model_type"] == "llama"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_fifo_does_not_hang(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match="not a regular file"):
        SafetensorsCheckpoint(folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "weight_map"),
        ({"weight_map": []}, "weight_map"),
        ({"weight_map": {"t": 3}}, "weight_map"),
        ({"weight_map": {"t": "gone.safetensors"}}, r"names 1 of 1 shards.*gone\.safetensors"),
        ({"weight_map": {"t": "\ud800.safetensors"}}, "JSON"),
        ({"weight_map": {"t": "model.bin"}}, "only .safetensors"),
        ({"weight_map": {"t": "model.safetensors"}}, "does not say so"),
    ],
)
def test_bad_indexes(index: Any, words: str, folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=words):
        SafetensorsCheckpoint(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[]"),
        ("config.json", "{"),
        ("config.json", "[" * 200_000),
        ("config.json", '{"a": "\\ud800"}'),
        ("tokenizer_config.json", '{"chat_template": "\\ude00"}'),
        ("config.json", '{"a": ' + "9" * 5000 + "}"),
        ("tokenizer_config.json", "3"),
        ("tokenizer_config.json", '{"chat_template": 3}'),
        ("tokenizer.json", "{}"),
        ("generation_config.json", '{"temperature": "hot"}'),
        ("generation_config.json", '{"eos_token_id": "x"}'),
        ("generation_config.json", '{"eos_token_id": 100000}'),
    ],
)
def test_bad_text_files(name: str, text: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ModelError):
        convert(folder, tmp_path / "a")


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    document["model"]["vocab"]["stranger"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ModelError, match=r"'stranger'.*another model"):
        convert(folder, tmp_path / "a")


BOMB = "[" + "[]," * 1_000_001 + "[]]"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_of_too_many_values_is_not_parsed(name: str, folder: Path) -> None:
    (folder / name).write_text('{"a": ' + BOMB + "}")
    with pytest.raises(ModelError, match=f"{name}.*JSON values"):
        open_checkpoint(folder)


def test_json_files_are_bounded_in_bytes(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": "' + "x" * files.LIMIT_JSON_BYTES + '"}')
    with pytest.raises(ModelError, match=r"config.json.*limit"):
        open_checkpoint(folder)


def test_headers_of_too_many_values_are_not_parsed(folder: Path) -> None:
    write_raw(folder / "model.safetensors", {"__metadata__": {"a": [[]] * 1_100_000}})
    with pytest.raises(ModelError, match=r"model.safetensors.*JSON values"):
        open_checkpoint(folder)


def test_headers_of_too_many_tensors_are_not_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200,000 records of 13 MB would be 200 MB of objects."""
    record = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    write_raw(folder / "model.safetensors", {f"t{i}": record for i in range(70_000)})
    parsed: list[str] = []
    plain = files.parse_json
    monkeypatch.setattr(
        files, "parse_json", lambda data, what, *a: parsed.append(what) or plain(data, what, *a)
    )
    with pytest.raises(ModelError, match=r"model.safetensors.*more than 65536 tensors"):
        open_checkpoint(folder)
    assert not any(what.endswith(".safetensors") for what in parsed)


def test_a_tokenizer_of_too_many_values_is_not_parsed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LIMIT_TOKENIZER_VALUES", 100)
    with pytest.raises(ModelError, match=r"tokenizer.json.*100 JSON values"):
        convert(folder, tmp_path / "a")


def test_a_shard_name_too_long_is_named(folder: Path) -> None:
    with_shard(folder, "x" * 300 + ".safetensors")
    with pytest.raises(ModelError, match=r"x{300}"):
        open_checkpoint(folder)
