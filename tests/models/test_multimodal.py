"""Gemma 3 checkpoints that read images too: their text part is the text model, exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from subsecond import models
from subsecond.errors import ModelError, UnsupportedError
from subsecond.formats.convert import convert
from subsecond.models import multimodal

OLD = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
NEW = {"model.": "model.language_model.", "lm_head.": "lm_head."}
VISION = {
    OLD["model."]: ("vision_tower.x.weight", "multi_modal_projector.y.weight"),
    NEW["model."]: ("model.vision_tower.x.weight", "model.multi_modal_projector.y.weight"),
}


def config(**text: Any) -> dict[str, Any]:
    own = {k: v for k, v in tiny.config("gemma3").items() if k != "architectures"}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {**own, **text},
        "vision_config": {"hidden_size": 8, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "boi_token_index": 300,
        "eoi_token_index": 301,
        "image_token_index": 302,
        "eos_token_id": [257],
        "torch_dtype": "bfloat16",
    }


def tensors(place: dict[str, str]) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    named = {}
    for name, array in tiny.tensors("gemma3", 0, tiny.config("gemma3")).items():
        start = next(start for start in place if name.startswith(start))
        named[place[start] + name.removeprefix(start)] = array
    other = {name: np.ones((2, 3), np.float32) for name in VISION[place["model."]]}
    return {**named, **other}


@pytest.mark.parametrize("place", [OLD, NEW], ids=["old", "new"])
def test_the_text_part_is_the_text_model(place: dict[str, str], tmp_path: Path) -> None:
    alone = models.build(tiny.config("gemma3"), tiny.shapes("gemma3", tiny.config("gemma3")))
    arrays = tensors(place)
    shapes = {name: array.shape for name, array in arrays.items()}
    built = models.build(config(), shapes, strict=True)
    assert built.program.text() == alone.program.text()
    assert built.warnings == [*alone.warnings, multimodal.IMAGES_NOT_READ]
    original = tiny.tensors("gemma3", 0, tiny.config("gemma3"))
    for name, recipe in built.recipes.items():
        assert np.array_equal(recipe.apply(arrays), alone.recipes[name].apply(original)), name

    folder = tiny.write("gemma3", tmp_path / "hf", tokenizer=True)
    text = convert(folder, tmp_path / "text", "f32")
    (folder / "config.json").write_text(json.dumps(config()))
    tiny.write_safetensors(folder / "model.safetensors", arrays)
    made = convert(folder, tmp_path / "both", "f32")
    assert multimodal.IMAGES_NOT_READ in made.warnings
    weights = [(one.path / "weights.bin").read_bytes() for one in (text, made)]
    assert weights[0] == weights[1]


def test_what_the_text_part_refuses() -> None:
    shapes = {name: array.shape for name, array in tensors(OLD).items()}
    for bad, words in (
        ({**config(), "text_config": None}, "text_config is missing"),
        (config(model_type="llama"), "text_config.model_type is 'llama'"),
        (config(hidden_size=1 << 40), "text_config.hidden_size"),
        (config(clip_qkv=8.0), "text_config.clip_qkv"),
        ({**config(), "clip_qkv": 8.0}, "clip_qkv"),
    ):
        with pytest.raises((ModelError, UnsupportedError), match=words):
            models.build(bad, shapes)
    with pytest.raises(ModelError, match=r"'encoder\.weight'"):
        models.build(config(), {**shapes, "encoder.weight": (2, 2)})
    twice = {**shapes, "model.language_model.norm.weight": (64,)}
    with pytest.raises(ModelError, match="are the same one"):
        models.build(config(), twice)


def test_keys_that_are_left_out_mean_what_transformers_means() -> None:
    """As google/gemma-3-4b-it, whose text_config names only what differs."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    full = {**text, "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4}
    shapes = tiny.shapes("gemma3", {**full, "head_dim": 256})
    shapes = {
        f"language_{name}".replace("language_", "language_model.", 1): shape
        for name, shape in shapes.items()
    }
    built = models.build({**config(), "text_config": text}, shapes)
    assert built.program.vocab_size == 262208
    assert built.warnings == [multimodal.IMAGES_NOT_READ]
