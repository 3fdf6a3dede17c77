"""`list` and `rm`: what the cache holds, and how it goes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "my model"))


def listed(inline: Run) -> list[dict[str, object]]:
    models: list[dict[str, object]] = json.loads(inline("list", "--json").stdout)["models"]
    return models


def test_an_empty_cache(inline: Run) -> None:
    done = inline("list")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("subsecond: 0 models, 0.0 MB in ")
    assert listed(inline) == []
    assert inline("rm", "--all").returncode == 0


def test_models_are_listed_and_removed(inline: Run, model: Path) -> None:
    paths = {
        weights: json.loads(inline("pull", str(model), "--weights", weights, "--json").stdout)[
            "path"
        ]
        for weights in ("int4", "int8", "f32")
    }
    found = {str(own["weights"]): own for own in listed(inline)}
    assert {weights: own["path"] for weights, own in found.items()} == paths
    for own in found.values():
        folder = Path(str(own["path"]))
        assert own["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
        assert own["model"] == str(model)
        assert own["source"] == "safetensors"
    text = inline("list").stdout
    assert len(text.splitlines()) == 4
    assert all(str(own["name"]) in text for own in found.values())

    done = inline("rm", str(found["int8"]["name"]))
    assert done.stdout.startswith(f"removed {found['int8']['name']} (")
    assert not Path(paths["int8"]).exists()
    assert {str(own["weights"]) for own in listed(inline)} == {"int4", "f32"}
    assert len(inline("rm", str(model)).stdout.splitlines()) == 2
    assert list(Path(paths["int4"]).parent.iterdir()) == []


def test_what_rm_refuses(inline: Run, model: Path) -> None:
    path = Path(json.loads(inline("pull", str(model), "--json").stdout)["path"])
    for arguments, words in (
        ((), "give a name of 'subsecond list', or --all"),
        (("x", "--all"), "leave one of them out"),
        (("../..",), "the cache has no model '../..'"),
        (("",), "name is missing"),
    ):
        done = inline("rm", *arguments)
        assert done.returncode == 2
        assert words in done.stderr
    assert path.exists()
    assert inline("rm", "--all").returncode == 0
    assert not path.exists()


def test_generate_names_the_place_once(inline: Run, model: Path) -> None:
    command = ("generate", "x", "-m", str(model), "--max-tokens", "1")
    (own,) = (inline(*command), listed(inline))[1]
    shutil.rmtree(str(own["path"]))
    first, second = inline(*command), inline(*command)
    line = f"subsecond: converted once, kept at {own['path']}\n"
    assert first.stderr.count(line) == 1
    assert "kept at" not in second.stderr


def test_a_changed_source_leaves_nothing_behind(inline: Run, model: Path) -> None:
    for weights in ("int4", "int8"):
        inline("pull", str(model), "--weights", weights)
    tiny.write("llama", model, 1, tokenizer=True)
    inline("pull", str(model), "--weights", "int8")
    assert [own["weights"] for own in listed(inline)] == ["int8"]


def test_verify_takes_what_pull_takes(inline: Run, model: Path) -> None:
    done = inline("verify", str(model), "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outcome"] == "holds"
    assert result["artifact"] == str(model)
    assert [own["path"] for own in listed(inline)] == [result["path"]]
    assert any(claim["kind"] == "canary" for claim in result["claims"])
    absent = inline("verify", "smollm2-135m")
    assert absent.returncode == 2
    assert "smollm2-135m is not here yet" in absent.stderr
