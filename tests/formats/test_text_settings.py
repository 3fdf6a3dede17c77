"""text.json: gathered from Hugging Face configs and from GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import tiny

from subsecond.errors import ModelError
from subsecond.formats import artifact, open_artifact, text_settings
from subsecond.formats.checkpoint import Texts
from subsecond.formats.convert import convert
from subsecond.formats.text_settings import gather

TOKENIZER = json.dumps(
    {
        "model": {"vocab": {"a": 0, "b": 1, "<s>": 2, "</s>": 3}},
        "added_tokens": [{"id": 4, "content": "<|end|>"}],
    }
).encode()


def test_from_a_folder(tmp_path: Path) -> None:
    folder = tiny.write("llama", tmp_path / "hf", tokenizer=True)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [257, 258], "temperature": 0.6, "top_k": 20, "do_sample": True})
    )
    opened = open_artifact(convert(folder, tmp_path / "a").path)
    settings = text_settings.decode(opened.read(artifact.TEXT))
    assert settings.stop_ids == [257, 258]
    assert settings.generation == {"temperature": 0.6, "top_k": 20, "do_sample": True}
    assert settings.special_tokens["eos_token"] == "<|end|>"
    assert settings.chat_template is not None
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    opened = open_artifact(convert(folder, tmp_path / "b").path)
    assert text_settings.decode(opened.read(artifact.TEXT)).chat_template == "{{ messages }}"


def test_from_a_gguf_file(tmp_path: Path) -> None:
    gguf_files.write("llama", tmp_path / "m.gguf")
    opened = open_artifact(convert(tmp_path / "m.gguf", tmp_path / "a").path)
    settings = text_settings.decode(opened.read(artifact.TEXT))
    assert settings.stop_ids == [257]
    assert settings.special_tokens == {"bos_token": "<|begin|>", "eos_token": "<|end|>"}


def test_spellings_that_end_a_turn_stop_too() -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["a", "<|im_end|>", "<|eot_id|>", "</s>"],
        "tokenizer.ggml.token_type": [1, 3, 1, 3],
        "tokenizer.ggml.eos_token_id": 3,
    }
    tokenizer = json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}).encode()
    settings = gather(Texts(gguf=metadata), tokenizer, {}, 4)
    assert settings.stop_ids == [1, 3]  # <|eot_id|> is ordinary text here


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "expected"),
    [
        ({"eos_token_id": 3}, {}, [3]),
        ({"eos_token_id": [3, 4]}, {"eos_token": "</s>"}, [3, 4]),
        ({}, {"eos_token": {"content": "<|end|>"}}, [4]),
        ({"eos_token_id": None}, {"eos_token": None}, []),
    ],
)
def test_ids_that_stop(
    config: dict[str, Any], tokenizer_config: dict[str, Any], expected: list[int]
) -> None:
    texts = Texts(tokenizer_json=TOKENIZER, tokenizer_config=tokenizer_config)
    assert gather(texts, TOKENIZER, config, 5).stop_ids == expected


@pytest.mark.parametrize(
    ("tokenizer", "vocabulary", "words"),
    [
        (TOKENIZER, 4, "another model"),
        (b"{}", 4, "model.vocab"),
        (b"[]", 4, "model.vocab"),
        (b'{"model": {"vocab": {"a": "x"}}}', 4, "integer"),
        (b'{"model": {"vocab": {"a": -1}}}', 4, "integer"),
        (b'{"model": {"vocab": {}}, "added_tokens": [3]}', 4, "added_tokens"),
        (b'{"model": {"vocab": [3]}}', 4, "model.vocab"),
        (b'{"model": {"vocab": {}}, "added_tokens": 5}', 4, "added_tokens"),
    ],
)
def test_tokenizers_that_do_not_fit(tokenizer: bytes, vocabulary: int, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        gather(Texts(tokenizer_json=tokenizer), tokenizer, {}, vocabulary)


def test_a_tokenizer_that_knows_less_than_half_of_the_rows_is_odd() -> None:
    warnings: list[str] = []
    gather(Texts(tokenizer_json=TOKENIZER), TOKENIZER, {"eos_token_id": 1}, 10, warnings)
    assert warnings == []
    gather(Texts(tokenizer_json=TOKENIZER), TOKENIZER, {"eos_token_id": 1}, 11, warnings)
    assert len(warnings) == 1
    assert "5 ids, the embedding 11 rows" in warnings[0]


def test_unigram_vocabularies_are_lists() -> None:
    tokenizer = b'{"model": {"vocab": [["a", 0.0], ["b", -1.0]]}}'
    texts = Texts(tokenizer_json=tokenizer, tokenizer_config={"eos_token": "b"})
    assert gather(texts, tokenizer, {}, 2).stop_ids == [1]


def test_named_templates_give_the_default(tmp_path: Path) -> None:
    folder = tiny.write("llama", tmp_path / "hf", tokenizer=True)
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    opened = open_artifact(convert(folder, tmp_path / "a").path)
    assert text_settings.decode(opened.read(artifact.TEXT)).chat_template == "d"


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), "x", True])
def test_sampling_defaults_that_are_no_numbers_are_named(value: Any) -> None:
    texts = Texts(tokenizer_json=TOKENIZER, generation_config={"temperature": value})
    with pytest.raises(ModelError, match=r"generation_config.json: temperature"):
        gather(texts, TOKENIZER, {}, 5)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("tokenizer_config.json", {"chat_template": "{% for %}"}, "chat_template.*compiled"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template"),
        ("tokenizer_config.json", {"chat_template": [5]}, "chat_template"),
        ("tokenizer_config.json", {"chat_template": [{"name": "a", "template": []}]}, "template"),
        ("tokenizer.json", {"decoder": {"type": "zz"}}, "tokenizer.json"),
    ],
)
def test_texts_that_cannot_be_used_are_refused_at_convert(
    name: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = tiny.write("llama", tmp_path / "hf", tokenizer=True)
    document = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(document | changes))
    with pytest.raises(ModelError, match=words):
        convert(folder, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_gguf_template_that_is_no_text_is_refused() -> None:
    metadata = {"tokenizer.ggml.tokens": ["a"], "tokenizer.chat_template": 5}
    with pytest.raises(ModelError, match=r"tokenizer\.chat_template"):
        gather(Texts(gguf=metadata), b'{"model": {"vocab": {"a": 0}}}', {}, 1)
