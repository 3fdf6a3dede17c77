"""Programs: what a Program refuses, its JSON, and that no damaged file becomes one."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond import models
from subsecond.errors import ModelError
from subsecond.program import rewrites
from subsecond.program.builder import Builder
from subsecond.program.program import Program, TensorSpec


def program(family: str = "llama", **changes: Any) -> Program:
    config = tiny.config(family, **changes)
    return models.build(config, tiny.shapes(family, config)).program


SMALL = rewrites.fuse(program(num_hidden_layers=1))
JSON = SMALL.to_json()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_json_round_trip(family: str) -> None:
    for p in (program(family), rewrites.fuse(program(family))):
        assert Program.from_json(p.to_json()) == p


def mutated(**changes: Any) -> Any:
    document = json.loads(JSON)
    document.update(changes)
    return json.dumps(document)


def edited(*path: Any, value: Any) -> str:
    document = json.loads(JSON)
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (mutated(version=2), "version"),
        (mutated(extra=1), "extra"),
        (mutated(vocab_size=321), "vocab_size|output"),
        (mutated(vocab_size=1 << 60), "vocab_size"),
        (mutated(max_positions=0), "max_positions"),
        (mutated(max_positions="512"), "max_positions"),
        (mutated(output=99), "output"),
        (mutated(output=0), "output"),
        (mutated(ops=[]), "ops"),
        (edited("values", 1, "width", value=129), "value 1"),
        (edited("values", 1, "rows", value="Q"), "rows"),
        (edited("ops", 1, "kind", value="conv"), "conv"),
        (edited("ops", 1, "inputs", value=[5]), "not made"),
        (edited("ops", 1, "inputs", value=[-1]), "not made"),
        (edited("ops", 1, "output", value=0), "made twice"),
        (edited("ops", 1, "weights", 0, value="nothing"), "nothing"),
        (edited("ops", 1, "attributes", "eps", value="1"), "eps"),
        (edited("ops", 1, "attributes", "eps", value=1e300), "eps"),
        (edited("ops", 1, "attributes", "fast", value=True), "fast"),
        (edited("ops", 2, "attributes", "group", value=1), "cache group"),
        (edited("ops", 2, "attributes", "window", value=5), "window"),
        (edited("ops", 2, "attributes", "layer", value=1), "layer"),
        (edited("tensors", 0, "n", value=0), "outside"),
        (edited("tensors", 1, "n", value=1 << 40), "outside"),
        (edited("tensors", 1, "n", value=319), "vocab_size|fewer"),
        (edited("tensors", 1, "k", value=63), "embed: value 0"),
        (edited("tensors", 1, "role", value="vector"), "role"),
        (edited("tensors", 1, "name", value="rope.inv_freq"), "twice"),
        (edited("groups", 0, "window", value=7), "window"),
        (edited("groups", 0, "layers", 0, "kv_heads", value=4), "kv_heads"),
        ("[" * 100000, "program"),
        ("", "program"),
        ("null", "program"),
        (JSON[:-40].decode(), "program"),
        ('{"family": "\\ud800"}', "program"),
    ],
)
def test_damaged_json_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Program.from_json(text)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_damage_never_crashes(data: st.DataObject) -> None:
    """Any edit of any place is refused with ModelError, or leaves a checked Program."""
    document = json.loads(JSON)
    target: Any = document
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = data.draw(st.sampled_from(keys))
        child = target[key]
        if not isinstance(child, dict | list) or not child or data.draw(st.integers(0, 4)) == 0:
            break
        target = child
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-(1 << 70), 1 << 70)
        | st.floats()
        | st.text(max_size=5)
    )
    target[key] = data.draw(scalars | st.lists(scalars, max_size=3))
    try:
        p = Program.from_json(json.dumps(document))
    except ModelError:
        return
    assert Program.from_json(p.to_json()) == p


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(JSON) - 1), st.integers(0, 255))
def test_flipped_bytes_never_crash(place: int, byte: int) -> None:
    damaged = JSON[:place] + bytes([byte]) + JSON[place + 1 :]
    with contextlib.suppress(ModelError):
        Program.from_json(damaged)


def test_unused_tensor_and_cache_layer_are_refused() -> None:
    with pytest.raises(ModelError, match="not used"):
        msgspec.structs.replace(
            SMALL, tensors=(*SMALL.tensors, TensorSpec("spare", "vector", 3, 0, "vector"))
        )
    group = SMALL.groups[0]
    with pytest.raises(ModelError, match="no attention uses"):
        msgspec.structs.replace(
            SMALL, groups=(msgspec.structs.replace(group, layers=group.layers * 2),)
        )


def test_builder_refuses_what_does_not_fit() -> None:
    b = Builder("test", 8, 16)
    x = b.embed(b.matrix("table", 8, 6, "embedding"))
    with pytest.raises(ModelError, match="not declared"):
        b.linear(x, "missing")
    with pytest.raises(ModelError, match="width 6"):
        b.linear(x, b.matrix("m", 4, 5))
    with pytest.raises(ModelError, match="declared"):
        b.matrix("table", 8, 7)
    with pytest.raises(ModelError, match="differ"):
        b.add(x, b.slice(x, 0, 3))


def test_text_names_every_tensor_and_op() -> None:
    text = SMALL.text()
    assert all(f"tensor {spec.name} " in text for spec in SMALL.tensors)
    assert text.count("= ") >= len(SMALL.ops)
    assert "decode -> %" in text
    assert SMALL.tensor("model.norm.weight").shape == (64,)
    with pytest.raises(ModelError, match="no tensor"):
        SMALL.tensor("absent")
