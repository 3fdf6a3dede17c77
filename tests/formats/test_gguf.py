"""GGUF files: equal to the Hugging Face folder they came from, exact grids, strict headers."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
import tiny
from gguf import GGMLQuantizationType as Type

from subsecond.errors import ModelError, UnsupportedError
from subsecond.formats import artifact, gguf_config, gguf_names
from subsecond.formats.convert import convert, open_checkpoint
from subsecond.formats.gguf_in import GgufCheckpoint

DEQUANTIZED = [Type.F32, Type.F16, *gguf.quants._type_traits]


def hub_config(family: str) -> dict[str, object]:
    """What a GGUF file cannot say is set to what the reader derives."""
    return {"query_pre_attn_scalar": 32} if family.startswith("gemma") else {}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_equals_the_hugging_face_folder(family: str, tmp_path: Path) -> None:
    overrides = hub_config(family)
    folder = tiny.write(family, tmp_path / "hf", 1, tokenizer=True, **overrides)
    gguf_files.write(family, tmp_path / "m.gguf", 1, **overrides)
    a = convert(folder, tmp_path / "a", "f32")
    b = convert(tmp_path / "m.gguf", tmp_path / "b", "f32")
    assert a.warnings == b.warnings == []
    for name in (artifact.WEIGHTS, artifact.PROGRAM):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q8_0])
def test_raw_grids_are_taken_over_exactly(family: str, kind: Type, tmp_path: Path) -> None:
    gguf_files.write(family, tmp_path / "m.gguf", 2, quantized=kind)
    exact = convert(tmp_path / "m.gguf", tmp_path / "q", "int4")
    plain = convert(tmp_path / "m.gguf", tmp_path / "f", "f32")
    assert exact.tensors_exact == exact.tensors == plain.tensors
    q, f = (artifact.open_artifact(tmp_path / x) for x in "qf")
    wanted = "int8" if kind == Type.Q8_0 else "int4"
    found = {t.format for t in q.manifest.tensors if t.kind == "matrix"}
    assert found - {"int8_split"} == {wanted}
    assert ("int8_split" in found) == (wanted == "int8")
    assert_same_values(q, f)


def assert_same_values(a: artifact.Artifact, b: artifact.Artifact) -> None:
    from subsecond.formats.compare import StoredTensors

    with artifact.mapped(a.weights_path) as x, artifact.mapped(b.weights_path) as y:
        left = StoredTensors(x, a.manifest.tensors)
        right = StoredTensors(y, b.manifest.tensors)
        for tensor in a.manifest.tensors:
            np.testing.assert_array_equal(left.read(tensor.name), right.read(tensor.name))


def test_q8_0_keeps_minus_128(tmp_path: Path) -> None:
    """The gguf library never writes -128, but other quantizers do."""

    def edit(writer: gguf.GGUFWriter) -> None:
        row = np.zeros((1, 34), np.uint8)
        row[0, :2] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
        row[0, 2:] = np.arange(128, 160)  # -128 ... -97
        writer.add_tensor("extra.weight", row, raw_dtype=Type.Q8_0)

    gguf_files.write("llama", tmp_path / "m.gguf", edit=edit)
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    grid = checkpoint.grid("extra.weight")
    assert grid is not None
    np.testing.assert_array_equal(grid.values()[0], np.arange(-128, -96) * 0.5)
    np.testing.assert_array_equal(grid.values(), checkpoint.read("extra.weight"))


@pytest.mark.parametrize("kind", DEQUANTIZED, ids=lambda t: t.name)
def test_every_type_the_library_dequantizes_is_read(kind: Type, tmp_path: Path) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 3, 2 * block
    raw = np.random.default_rng(5).integers(0, 256, (rows, 2 * size), np.uint8)
    gguf_files.write(
        "llama",
        tmp_path / "m.gguf",
        edit=lambda w: w.add_tensor("extra.weight", raw, raw_dtype=kind),
    )
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    assert checkpoint.shapes["extra.weight"] == (rows, columns)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, kind)
    np.testing.assert_array_equal(checkpoint.read("extra.weight"), wanted)


def test_llama3_rope_factors_become_parameters(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    frequencies = 1 / (500000.0 ** (np.arange(0, 16, 2) / 16))
    smooth = (8192 * frequencies / (2 * np.pi) - 1) / 3
    factors = 1 / ((1 - np.clip(smooth, 0, 1)) / 8 + np.clip(smooth, 0, 1))
    gguf_files.write(
        "llama",
        tmp_path / "m.gguf",
        rope_theta=500000.0,
        edit=lambda w: w.add_tensor("rope_freqs.weight", factors.astype(np.float32)),
    )
    assert open_checkpoint(tmp_path / "m.gguf").config["rope_scaling"] == scaling
    folder = tiny.write(
        "llama", tmp_path / "hf", tokenizer=True, rope_theta=500000.0, rope_scaling=scaling
    )
    convert(folder, tmp_path / "a", "f32")
    convert(tmp_path / "m.gguf", tmp_path / "b", "f32")
    assert (tmp_path / "a/weights.bin").read_bytes() == (tmp_path / "b/weights.bin").read_bytes()


@pytest.mark.parametrize("betas", [{}, {"beta_fast": 16.0, "beta_slow": 0.5}])
def test_yarn_equals_the_folder_with_the_same_scaling(
    betas: dict[str, float], tmp_path: Path
) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)
        for name, value in betas.items():
            writer.add_float32(f"qwen2.rope.scaling.yarn_{name}", value)

    gguf_files.write("qwen2", tmp_path / "m.gguf", edit=edit)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128} | betas
    assert open_checkpoint(tmp_path / "m.gguf").config["rope_scaling"] == scaling
    folder = tiny.write("qwen2", tmp_path / "hf", tokenizer=True, rope_scaling=scaling)
    assert convert(folder, tmp_path / "a", "f32").warnings == []
    assert convert(tmp_path / "m.gguf", tmp_path / "b", "f32").warnings == []
    assert (tmp_path / "a/weights.bin").read_bytes() == (tmp_path / "b/weights.bin").read_bytes()


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 3.0])
def test_other_rope_factors_are_refused(factor: float, tmp_path: Path) -> None:
    factors = np.full(8, factor, np.float32)
    factors[0] = 1
    gguf_files.write(
        "llama",
        tmp_path / "m.gguf",
        edit=lambda w: w.add_tensor("rope_freqs.weight", factors),
    )
    with pytest.raises(ModelError, match="rope_freqs"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("theta", [0.0, -1.0, float("nan"), float("inf")])
def test_absurd_rope_bases_are_refused(theta: float, tmp_path: Path) -> None:
    gguf_files.write("llama", tmp_path / "m.gguf", rope_theta=theta)
    with pytest.raises(ModelError, match="freq_base"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_tied_matrix_that_is_written_twice_is_stored_once(tmp_path: Path) -> None:
    table = tiny.tensors("llama", 0, tiny.config("llama"))["model.embed_tokens.weight"]
    gguf_files.write(
        "llama", tmp_path / "m.gguf", edit=lambda w: w.add_tensor("output.weight", table)
    )
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in checkpoint.shapes


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (lambda w: w.add_expert_count(8), UnsupportedError, "expert"),
        (lambda w: w.add_uint16("split.count", 3), UnsupportedError, "split"),
        (lambda w: w.add_uint32("llama.attention.key_length", 15), ModelError, "q_proj|rope"),
        (lambda w: w.add_float32("llama.attention.clamp_kqv", 8.0), ModelError, "clamp_kqv"),
    ],
)
def test_metadata_that_changes_the_model_is_not_passed_over(
    edit: object, error: type[Exception], words: str, tmp_path: Path
) -> None:
    gguf_files.write("llama", tmp_path / "m.gguf", edit=edit)  # type: ignore[arg-type]
    with pytest.raises(error, match=words):
        convert(tmp_path / "m.gguf", tmp_path / "a", strict=True)


def header(*, version: int = 3, tensors: int = 0, keys: bytes = b"", count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + keys


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    raw = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
    return raw + b"".join(struct.pack("<Q", n) for n in shape) + struct.pack("<IQ", kind, offset)


BIG = 1 << 62
BAD_HEADERS = {
    "empty": (b"", "empty"),
    "other magic": (b"GGML" + bytes(60), "GGUF"),
    "version 1": (header(version=1), "version 1"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "endian"),
    "tensor count": (header(tensors=BIG), "tensor count"),
    "key count": (header(count=BIG), "metadata count"),
    "ends early": (header(count=2, keys=key("a", 4, b"\0" * 4)), "does not fit|ends inside"),
    "string length": (header(count=1, keys=struct.pack("<Q", BIG) + bytes(40)), "string of"),
    "array length": (
        header(count=1, keys=key("a", 9, struct.pack("<IQ", 4, BIG))),
        "length of 'a'",
    ),
    "nested array": (
        header(count=1, keys=key("a", 9, struct.pack("<IQ", 9, 1)) + bytes(40)),
        "element type 9",
    ),
    "bool of 2": (header(count=1, keys=key("a", 7, b"\2")), "bool"),
    "value type": (header(count=1, keys=key("a", 99, bytes(8))), "value type 99"),
    "not UTF-8": (header(count=1, keys=key("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")), "UTF-8"),
    "same key": (header(count=2, keys=key("a", 4, bytes(4)) * 2), "twice"),
    "alignment 0": (
        header(count=1, keys=key("general.alignment", 4, bytes(4))),
        "general.alignment",
    ),
    "alignment 48": (
        header(count=1, keys=key("general.alignment", 4, struct.pack("<I", 48))),
        "power of two",
    ),
    "5 dimensions": (header(tensors=1, keys=tensor("t", [1] * 5) + bytes(64)), "5 dimensions"),
    "product": (header(tensors=1, keys=tensor("t", [BIG, BIG, 8]) + bytes(64)), "larger than"),
    "empty shape": (header(tensors=1, keys=tensor("t", [0]) + bytes(64)), "empty shape"),
    "past the end": (header(tensors=1, keys=tensor("t", [8], offset=64) + bytes(64)), "truncated"),
    "offset product": (
        header(tensors=1, keys=tensor("t", [1], offset=BIG) + bytes(64)),
        "truncated",
    ),
    "unaligned": (header(tensors=1, keys=tensor("t", [1], offset=4) + bytes(64)), "multiple of 32"),
    "type 200": (header(tensors=1, keys=tensor("t", [32], 200) + bytes(64)), "type 200"),
    "half a block": (header(tensors=1, keys=tensor("t", [33], 2) + bytes(64)), "block of 32"),
    "same name": (header(tensors=2, keys=tensor("t", [1]) * 2 + bytes(64)), "twice"),
    "overlap": (
        header(tensors=2, keys=tensor("t", [9]) + tensor("u", [1], offset=32) + bytes(128)),
        "overlap",
    ),
    "no model": (header(), "general.architecture"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers_are_refused_by_name(name: str, tmp_path: Path) -> None:
    data, words = BAD_HEADERS[name]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=words):
        GgufCheckpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("value", [0, -1, 1 << 31])
def test_absurd_sizes_are_refused(value: int, tmp_path: Path) -> None:
    name = "llama.block_count"
    path = tmp_path / "m.gguf"
    gguf_files.write("llama", path)
    data = bytearray(path.read_bytes())
    at = data.index(name.encode()) + len(name) + 4
    data[at : at + 4] = struct.pack("<I", value & 0xFFFFFFFF)
    path.write_bytes(data)
    with pytest.raises(ModelError, match="block_count"):
        GgufCheckpoint(path)


def test_every_architecture_has_names_and_a_config() -> None:
    assert set(gguf_names.FAMILIES) == set(gguf_config._CONFIGS)
    assert set(gguf_names.FAMILIES) == set(gguf_files.ARCHITECTURES.values())


def test_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=r"'mamba'.*llama"):
        GgufCheckpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", [Type.F32, Type.Q4_1])
def test_nan_is_refused_by_tensor_name(kind: Type, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf_files.write("llama", path, quantized=None if kind == Type.F32 else kind)
    info = GgufCheckpoint(path)._header.tensors["blk.1.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    nan = np.float32("nan").tobytes() if kind == Type.F32 else np.float16("nan").tobytes()
    data[info.offset : info.offset + len(nan)] = nan
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj.*NaN"):
        convert(path, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "scaling",
    [{"rope.scale_linear": 4.0}, {"rope.scaling.factor": 4.0}],
    ids=lambda s: next(iter(s)),
)
def test_a_rope_factor_without_a_type_is_linear(scaling: dict[str, float], tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 4.0}
    write_with(tmp_path / "m.gguf", scaling)
    assert open_checkpoint(tmp_path / "m.gguf").config["rope_scaling"] == linear


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, "rope.scaling.type none"),
        ({"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0}, "rope.scale_linear"),
        ({"rope.scaling.attn_factor": 3.0}, "rope.scaling.attn_factor 3"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.yarn_ext_factor": 0.5},
            "rope.scaling.yarn_ext_factor 0.5",
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.yarn_log_multiplier": 0.1},
            "rope.scaling.yarn_log_multiplier",
        ),
        ({"rope.scaling.type": "dynamic", "rope.scaling.factor": 2.0}, "dynamic"),
        ({"logit_scale": 0.1}, "logit_scale"),
        ({"attention.scale": 0.1}, "attention.scale"),
        ({"residual_scale": 0.1}, "residual_scale"),
        ({"embedding_scale": 12.0}, "embedding_scale"),
        ({"attention.clamp_kqv": 8.0}, "attention.clamp_kqv"),
        ({"attention.causal": False}, "attention.causal"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
    ],
)
def test_keys_that_change_the_computation_are_refused(
    values: dict[str, object], words: str, tmp_path: Path
) -> None:
    write_with(tmp_path / "m.gguf", values)
    with pytest.raises(ModelError, match=words):
        convert(tmp_path / "m.gguf", tmp_path / "a")


def test_windows_are_refused_where_the_family_has_none(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32("qwen2.attention.sliding_window", 64)

    gguf_files.write("qwen2", tmp_path / "m.gguf", edit=edit)
    with pytest.raises(UnsupportedError, match=r"attention\.sliding_window"):
        open_checkpoint(tmp_path / "m.gguf")


def write_with(path: Path, values: dict[str, object]) -> None:
    """A Llama file with these keys of the architecture added."""

    def edit(writer: gguf.GGUFWriter) -> None:
        for key, value in values.items():
            if isinstance(value, bool):
                writer.add_bool(f"llama.{key}", value)
            elif isinstance(value, str):
                writer.add_string(f"llama.{key}", value)
            elif isinstance(value, float):
                writer.add_float32(f"llama.{key}", value)

    gguf_files.write("llama", path, edit=edit)
