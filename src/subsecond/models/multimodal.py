"""The text part of a model that also reads images: which keys and tensors are its own.

Owns: the place of the language model inside such checkpoints, and the keys of the rest. Knows
nothing of a family's structure: what is left is a configuration and tensors like any other's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from subsecond.errors import ModelError
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Shapes

# What transformers' Gemma3TextConfig means where text_config leaves a key out; the families of its
# own kind have them in their builders.
_GEMMA3_DEFAULTS: Mapping[str, object] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
_OTHER_KEYS = (
    "vision_config",
    "mm_tokens_per_image",
    "boi_token_index",
    "eoi_token_index",
    "image_token_index",
    "boi_token_id",
    "eoi_token_id",
    "image_token_id",
)
# Where the language model lies, in older and in newer checkpoints -> its own names.
_PLACES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
_OTHER_TENSORS = (
    "vision_tower.",
    "model.vision_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
)
IMAGES_NOT_READ = "the model reads images too; only its text part was taken over"


def gemma3_text(
    config: ConfigReader,
    shapes: Shapes,
    text_build: Callable[[ConfigReader, Shapes], Built],
    text_model_type: str,
) -> Built:
    """Builds the text part of Gemma3ForConditionalGeneration. Recipes name the checkpoint's
    tensors. Raises ModelError as the builder does, and where there is no text_config.
    """
    text = config.nested("text_config", defaults=_GEMMA3_DEFAULTS)
    if text is None:
        raise ModelError("config key text_config is missing: where is the language model?")
    if (kind := text.word("model_type", text_model_type)) != text_model_type:
        raise ModelError(f"config key text_config.model_type is {kind!r}, not {text_model_type!r}")
    config.ignore(*_OTHER_KEYS)
    if config.has("tie_word_embeddings") and not text.has("tie_word_embeddings"):
        text.adopt("tie_word_embeddings", config)
    else:
        config.ignore("tie_word_embeddings")
    names = _own_names(shapes)
    built = text_build(text, {own: shapes[name] for own, name in names.items()})
    text.refuse_computation()
    return _renamed(built, names)


def _own_names(shapes: Shapes) -> dict[str, str]:
    """The language model's own names -> those of the checkpoint. Tensors of the image part are left
    out; any other keeps its name, for the builder to refuse.
    """
    names: dict[str, str] = {}
    for name in shapes:
        if name.startswith(_OTHER_TENSORS):
            continue
        place = next((place for place in _PLACES if name.startswith(place)), "")
        own = _PLACES.get(place, "") + name.removeprefix(place)
        if own in names:
            raise ModelError(f"tensors {names[own]!r} and {name!r} are the same one; leave one out")
        names[own] = name
    return names


def _renamed(built: Built, names: Mapping[str, str]) -> Built:
    recipes: dict[str, Any] = {
        logical: recipe if recipe.source is None else replace(recipe, source=names[recipe.source])
        for logical, recipe in built.recipes.items()
    }
    tied = None if built.tied is None else (names[built.tied[0]], names[built.tied[1]])
    return replace(built, recipes=recipes, tied=tied, warnings=[*built.warnings, IMAGES_NOT_READ])
