"""Every refusal of a model's files names the file as the user does, the thing in it, the fix."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
import tiny
from test_gguf import BAD_HEADERS

from subsecond.errors import InputError, ModelError, UnsupportedError
from subsecond.formats import artifact, files, locate, open_artifact
from subsecond.formats.convert import convert, open_checkpoint

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def refusal(model: Path, out: Path) -> str:
    """The message with which the model is refused; nothing is left at `out`."""
    with pytest.raises(ModelError) as caught:
        convert(model, out)
    assert not out.exists()
    return str(caught.value)


def edit_json(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    document = json.loads(path.read_text("utf-8")) if path.exists() else {}
    document.update(changes)
    path.write_text(json.dumps(document), "utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    arrays = tiny.tensors("llama", 0, tiny.config("llama"))
    change(arrays)
    tiny.write_safetensors(folder / "model.safetensors", arrays)


def set_nan(arrays: dict[str, Any]) -> None:
    arrays["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def shards_gone(folder: Path) -> None:
    tiny.write("llama", folder, shards=3)
    (folder / "model.safetensors").unlink()
    (folder / "model-00001-of-00003.safetensors").unlink()
    half = folder / "model-00003-of-00003.safetensors"
    half.rename(half.with_name(half.name + ".incomplete"))


# What is done to a folder, the file that the message must begin with, and what it must say.
FOLDERS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "quantized": (
        lambda f: edit_json(f, "config.json", quantization_config={"quant_method": "awq"}),
        "config.json",
        r"quantization_config.*'awq'.*; get",
    ),
    "size": (
        lambda f: edit_json(f, "config.json", vocab_size=321),
        "config.json",
        r"embed_tokens.*\[320, 64\].*\[321, 64\] \(vocab_size 321\); correct",
    ),
    "key type": (
        lambda f: edit_json(f, "config.json", rms_norm_eps="small"),
        "config.json",
        "rms_norm_eps must be a number, not 'small'; correct",
    ),
    "no such architecture": (
        lambda f: edit_json(f, "config.json", architectures=["MambaForCausalLM"]),
        "config.json",
        "MambaForCausalLM.*supported: Llama",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "", "no config.json.*; download all"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json", "object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "", "no model.safetensors.*; "),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "", r"no tokenizer.json; "),
    "cut weights": (
        lambda f: cut(f / "model.safetensors"),
        "model.safetensors",
        "not complete or the file is damaged; download it again",
    ),
    "a few bytes": (
        lambda f: (f / "model.safetensors").write_bytes(b"abc"),
        "model.safetensors",
        "not complete; download it again",
    ),
    "NaN": (
        lambda f: edit_tensors(f, set_nan),
        "model.safetensors",
        r"layers\.1\.mlp\.up_proj.*NaN.*; download",
    ),
    "lacks a tensor": (
        lambda f: edit_tensors(f, lambda t: t.pop("model.norm.weight")),
        "config.json",
        r"lacks tensor 'model\.norm\.weight'.*; correct",
    ),
    "tied and different": (
        lambda f: edit_tensors(
            f, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})
        ),
        "config.json",
        "tie_word_embeddings is true.*'lm_head.weight'.*differ; set",
    ),
    "missing shards": (
        shards_gone,
        "model.safetensors.index.json",
        r"2 of 3 shards.*00001.*00003.*00003.safetensors.incomplete is not complete\); finish",
    ),
    "temperature": (
        lambda f: edit_json(f, "generation_config.json", temperature=-0.5),
        "generation_config.json",
        r"temperature must be a number from 0 to 100, not -0\.5; correct",
    ),
    "top_p": (
        lambda f: edit_json(f, "generation_config.json", top_p=0),
        "generation_config.json",
        "top_p must be a number above 0 and at most 1, not 0;",
    ),
    "top_k": (
        lambda f: edit_json(f, "generation_config.json", top_k=1.5),
        "generation_config.json",
        "top_k must be an integer from 0 .*, not 1.5;",
    ),
    "web page": (
        lambda f: (f / "model.safetensors").write_text("<!DOCTYPE html><title>Log in</title>"),
        "model.safetensors",
        "is a web page.*; download it again",
    ),
    "adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "",
        "is an adapter.*; merge",
    ),
    "activation": (
        lambda f: edit_json(f, "config.json", hidden_act="quick_gelu"),
        "config.json",
        "hidden_act = 'quick_gelu'.*; use another model",
    ),
    "do_sample": (
        lambda f: edit_json(f, "generation_config.json", do_sample="no"),
        "generation_config.json",
        "do_sample must be true or false, not 'no';",
    ),
    "bos": (
        lambda f: edit_json(f, "config.json", bos_token_id=320),
        "config.json",
        "bos_token_id 320 is outside the vocabulary of 320 tokens; correct",
    ),
    "eos": (
        lambda f: edit_json(f, "generation_config.json", eos_token_id=[257, -1]),
        "generation_config.json",
        "eos_token_id -1 is outside",
    ),
    "eos token": (
        lambda f: edit_json(f, "tokenizer_config.json", eos_token="</done>"),
        "tokenizer_config.json",
        "eos_token '</done>' is not a token of tokenizer.json; correct",
    ),
    "template": (
        lambda f: edit_json(f, "tokenizer_config.json", chat_template="{% for %}"),
        "tokenizer_config.json",
        "chat_template.*; correct",
    ),
    "tokenizer": (
        lambda f: edit_json(f, "tokenizer.json", decoder={"type": "zz"}),
        "tokenizer.json",
        "zz.*; ",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_refused_folder(name: str, tmp_path: Path) -> None:
    damage, file, words = FOLDERS[name]
    folder = tiny.write("llama", tmp_path / "m", tokenizer=True)
    damage(folder)
    text = refusal(folder, tmp_path / "out")
    assert text.startswith(f"{folder}/{file}" if file else f"{folder}:")
    assert re.search(words, text), text
    assert text.count(str(folder)) == 1, text


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_refused_gguf_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(BAD_HEADERS[name][0])
    text = refusal(tmp_path / "m.gguf", tmp_path / "out")
    assert text.startswith(f"{tmp_path / 'm.gguf'}: ")
    assert ";" in text, text


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda w: w.add_string("general.type", "adapter"), "general.type is 'adapter'.*; give"),
        (lambda w: w.add_string("general.type", "mmproj"), "general.type is 'mmproj'"),
        (lambda w: w.add_uint16("split.count", 3), r"split.count is 3.*; merge"),
        (lambda w: w.add_bool("llama.attention.causal", False), "attention.causal = False"),
        (lambda w: w.add_string("llama.expert_count", "x" * 10**6), "expert_count"),
    ],
)
def test_gguf_files_that_are_no_whole_model(edit: Any, words: str, tmp_path: Path) -> None:
    gguf_files.write("llama", tmp_path / "m.gguf", edit=edit)
    with pytest.raises(UnsupportedError, match=words) as caught:
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert str(caught.value).startswith(f"{tmp_path / 'm.gguf'}: ")
    assert len(str(caught.value)) < 600


def test_a_later_part_of_a_split_gguf_is_named(tmp_path: Path) -> None:
    """Only the first part has the model's metadata."""
    writer = gguf.GGUFWriter(tmp_path / "m-00002-of-00003.gguf", "llama")
    writer.kv_data[0].clear()
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    text = refusal(tmp_path / "m-00002-of-00003.gguf", tmp_path / "out")
    assert "split.count is 3" in text
    assert "--merge" in text


def test_a_damaged_gguf_tensor_has_both_its_names(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.tensors[0]["blk.1.ffn_up.weight"].tensor[0, 0] = np.nan

    gguf_files.write("llama", tmp_path / "m.gguf", edit=edit)
    text = refusal(tmp_path / "m.gguf", tmp_path / "out")
    name = r"tensor 'blk.1.ffn_up.weight' (model.layers.1.mlp.up_proj.weight) has values"
    assert text.startswith(f"{tmp_path / 'm.gguf'}: {name}")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_git_lfs_pointers_of_a_folder(name: str, tmp_path: Path) -> None:
    folder = tiny.write("llama", tmp_path / "m", tokenizer=True)
    (folder / name).write_text(POINTER)
    text = refusal(folder, tmp_path / "out")
    assert text.startswith(f"{folder / name}: is a Git LFS pointer")
    assert "git lfs pull" in text


def test_a_git_lfs_pointer_of_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text(POINTER)
    assert "git lfs pull" in refusal(tmp_path / "m.gguf", tmp_path / "out")


@pytest.mark.parametrize("end", [".part", ".incomplete", ".crdownload", ".aria2"])
def test_half_downloads(end: str, tmp_path: Path) -> None:
    gguf_files.write("llama", tmp_path / "m.gguf")
    half = tmp_path / f"m.gguf{end}"
    half.write_bytes((tmp_path / "m.gguf").read_bytes()[:3000])
    assert "is not complete" in refusal(half, tmp_path / "out")
    if end == ".aria2":  # aria2 writes under the final name, with this file beside it
        assert "m.gguf.aria2" in refusal(tmp_path / "m.gguf", tmp_path / "out")
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(InputError, match=f"m.gguf{end} is here: finish"):
        locate(tmp_path / "m.gguf")


def test_half_downloads_of_a_folder(tmp_path: Path) -> None:
    folder = tiny.write("llama", tmp_path / "m", tokenizer=True)
    for name in ("tokenizer_config.json", "model.safetensors", "config.json"):
        (folder / name).rename(folder / f"{name}.part")
        if name != "tokenizer_config.json":
            assert f"{name}.part" in refusal(folder, tmp_path / "out")


def test_a_truncated_gguf_file_says_so(tmp_path: Path) -> None:
    gguf_files.write("llama", tmp_path / "m.gguf")
    for kept in (100, 3000, 60_000):
        data = (tmp_path / "m.gguf").read_bytes()
        (tmp_path / "n.gguf").write_bytes(data[:kept])
        text = refusal(tmp_path / "n.gguf", tmp_path / "out")
        assert "truncated" in text or "does not fit" in text
        assert "download it again" in text


def test_messages_call_a_fetched_model_as_the_user_does(tmp_path: Path) -> None:
    folder = tiny.write("llama", tmp_path / "snapshots" / ("1" * 40), tokenizer=True)
    edit_json(folder, "config.json", rms_norm_eps=-1)
    checkpoint = open_checkpoint(folder, label="org/tiny")
    with pytest.raises(ModelError, match=r"^org/tiny/config\.json: .*rms_norm_eps"):
        convert(checkpoint, tmp_path / "out")
    (folder / "model.safetensors").write_text(POINTER)
    with pytest.raises(ModelError, match=r"^org/tiny/model\.safetensors: is a Git LFS"):
        open_checkpoint(folder, label="org/tiny")


def test_a_short_name_is_not_taken_for_named(tmp_path: Path) -> None:
    """A folder called "a" is named although its name is in every message by chance."""
    with pytest.raises(ModelError, match=r"^a: b a c; fix$"), files.named("a", fix="fix"):
        raise ModelError("b a c")
    named = files.named("a", fix="fix", folder=True)
    with pytest.raises(UnsupportedError, match=r"^a/x.json: b; use another"), named:
        raise UnsupportedError("x.json: b")


def test_warnings_are_kept_in_the_manifest(tmp_path: Path) -> None:
    folder = tiny.write("llama", tmp_path / "m", tokenizer=True, flavour="new")
    edit_json(folder, "tokenizer_config.json", bos_token="<s>")
    made = convert(folder, tmp_path / "out")
    assert made.warnings == open_artifact(made.path).manifest.warnings
    assert "flavour" in made.warnings[0]
    assert "bos_token '<s>'" in made.warnings[1]
    with pytest.warns(UserWarning) as caught:
        path = locate(folder)
    assert [str(w.message) for w in caught] == [f"{folder}: {text}" for text in made.warnings]
    assert open_artifact(path).manifest.warnings == made.warnings


def test_a_model_without_an_end_is_reported(tmp_path: Path) -> None:
    folder = tiny.write("llama", tmp_path / "m", tokenizer=True, eos_token_id=None)
    edit_json(folder, "tokenizer_config.json", eos_token=None)
    assert "no end-of-sequence token" in convert(folder, tmp_path / "out").warnings[0]


def test_a_file_of_a_folder_is_answered_with_the_folder(tmp_path: Path) -> None:
    folder = tiny.write("llama", tmp_path / "m", tokenizer=True)
    for name in ("config.json", "model.safetensors"):
        assert "give its folder" in refusal(folder / name, tmp_path / "out")


def test_stop_ids_are_not_repeated(tmp_path: Path) -> None:
    from subsecond.formats import text_settings

    folder = tiny.write("llama", tmp_path / "m", tokenizer=True, eos_token_id=[257, 258, 257])
    edit_json(folder, "generation_config.json", eos_token_id=[258, 257])
    opened = open_artifact(convert(folder, tmp_path / "out").path)
    assert text_settings.decode(opened.read(artifact.TEXT)).stop_ids == [257, 258]


def test_an_output_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    source = tiny.write("llama", tmp_path / "m", tokenizer=True)
    out = tmp_path / "out"
    assert not convert(source, out).replaced
    assert convert(source, out, "int8").replaced
    (out / "notes.md").write_text("mine")
    with pytest.raises(InputError, match=r"out is a folder with other files.*notes\.md"):
        convert(source, out)
    with pytest.raises(InputError, match=r"notes\.md"):
        convert("org/absent", out)  # before anything is fetched
    assert (out / "notes.md").read_text() == "mine"
    web = tmp_path / "web"
    web.mkdir()
    (web / "manifest.json").write_text('{"name": "my web application"}')
    with pytest.raises(InputError, match=r"web is not a whole artifact.*; remove the folder"):
        convert(source, web)
    assert json.loads((web / "manifest.json").read_text()) == {"name": "my web application"}


@pytest.mark.parametrize("out", [".", "..", "/", "x/..", "/proc/x", "/proc/x/y", "/dev/null/x"])
def test_an_output_that_cannot_be_is_refused_before_any_work(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"cannot write the artifact {re.escape(out)}: .*; ") as e:
        convert("no-such-model", out)  # the output comes first
    assert re.search("can't be replaced|takes no new folder", str(e.value))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_artifact_of_the_cache_names_the_command(tmp_path: Path) -> None:
    folder = tiny.write("llama", tmp_path / "a model", tokenizer=True)
    for weights, option in (("int4", ""), ("int8", " --weights int8")):
        made = locate(folder, weights)  # type: ignore[arg-type]
        command = f"; run 'subsecond pull '{folder}'{option}'"
        for name in artifact.FILES:
            data = (made / name).read_bytes()
            for bad in (data[:-1], bytes([data[0] ^ 1]) + data[1:], b""):
                (made / name).write_bytes(bad)
                with pytest.raises(ModelError) as caught:
                    open_artifact(made)
                assert str(caught.value).endswith(command)
                assert str(made / name) in str(caught.value)
            (made / name).unlink()
            with pytest.raises(ModelError, match="no such file") as caught:
                open_artifact(made)
            assert str(caught.value).endswith(command)
            (made / name).write_bytes(data)
        (made / artifact.MANIFEST).write_text("{")
        with pytest.raises(ModelError, match=r"manifest\.json.*subsecond pull"):
            open_artifact(made)


def test_pull_repairs_an_artifact_whose_manifest_is_damaged(tmp_path: Path) -> None:
    from subsecond.formats import pull

    folder = tiny.write("llama", tmp_path / "m", tokenizer=True)
    made = locate(folder)
    (made / artifact.MANIFEST).write_text("{")
    assert pull(folder) == made
    open_artifact(made)


def test_first_starts_at_once_convert_once(tmp_path: Path) -> None:
    """Processes, not threads: the second waits for the first, and for no dead one."""
    folder = tiny.write("llama", tmp_path / "m", tokenizer=True)
    log = tmp_path / "log"
    code = (
        "import sys, time, importlib, os\n"
        "m = importlib.import_module('subsecond.formats.locate')\n"
        "plain = m._make\n"
        "def make(*a):\n"
        f"    open({str(log)!r}, 'a').write('made ')\n"
        "    if sys.argv[1] == 'die': os._exit(9)\n"
        "    time.sleep(0.3)\n"
        "    plain(*a)\n"
        "m._make = make\n"
        f"print(m.locate({str(folder)!r}))\n"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run([*command, "die"], check=False).returncode == 9
    running = [subprocess.Popen([*command, "live"], stdout=subprocess.PIPE) for _ in range(3)]
    found = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(found) == 1
    assert log.read_text() == "made made "
