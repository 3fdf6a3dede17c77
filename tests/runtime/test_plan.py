"""Plans and descriptions that are out of bounds are refused by a typed error before a kernel sees
them.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from native_driver import MAX_PAGES, Driver, Packed, pack

from subsecond.errors import ModelError, RequestError, RuntimeFailure
from subsecond.program.builder import Builder
from subsecond.program.ops import op_table
from subsecond.program.program import Program
from subsecond.runtime import native

VOCAB, WIDTH = 40, 48


def program(window: int = 0) -> Program:
    """One attention over embedded rows, then logits."""
    b = Builder("plan", VOCAB, 256)
    table = b.matrix("table", VOCAB, WIDTH, "embedding")
    x = b.linear(b.embed(table), b.matrix("qkv", 3 * WIDTH, WIDTH))
    x = b.attention(x, heads=2, kv_heads=2, head_dim=WIDTH // 2, scale=0.2, window=window)
    return b.build(b.linear(b.gather(x), table))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    rng = np.random.default_rng(0)
    weights = {
        spec.name: rng.standard_normal(spec.shape).astype(np.float32) / 7
        for spec in program().tensors
    }
    return pack(tmp_path_factory.mktemp("plan") / "weights.bin", program(), weights, {})


@pytest.fixture(scope="module")
def driver(packed: Packed) -> Driver:
    return Driver(program(), packed, tokens=200, pages=32)


def _fill(driver: Driver) -> native.Plan:
    """A good plan: two sequences of 3 and 1 tokens at positions 0 and 70."""
    first, second = driver.sequence(0), driver.sequence(0)
    first.pages, second.pages, second.length = [3, 4, 5], [6, 7, 8], 70
    driver.fill([(first, [1, 2, 3]), (second, [4])])
    for row in range(2):
        driver.plan.set_sampler(row, None)
    return driver.plan


def _set(field: str, index: int, value: int) -> Callable[[native.Plan], None]:
    def change(plan: native.Plan) -> None:
        getattr(plan, field)[index] = value

    return change


def _page(index: int, value: int) -> Callable[[native.Plan], None]:
    def change(plan: native.Plan) -> None:
        plan.page_table(0)[index] = value

    return change


BAD = {
    "negative token": (_set("tokens", 1, -1), (4, 2, 2, 1), r"tokens\[1\]"),
    "token beyond the table": (_set("tokens", 3, VOCAB), (4, 2, 2, 1), r"tokens\[3\]"),
    "row beyond the tokens": (_set("row", 1, 4), (4, 2, 2, 1), r"row\[1\]"),
    "negative row": (_set("row", 0, -1), (4, 2, 2, 1), r"row\[0\]"),
    "negative position": (_set("position", 0, -1), (4, 2, 2, 1), r"position\[0\]"),
    "huge position": (_set("position", 0, 2**31 - 1), (4, 2, 2, 1), r"position\[0\]"),
    "position without pages": (_set("position", 1, 64 * MAX_PAGES), (4, 2, 2, 1), "page"),
    "start not zero": (_set("sequence_start", 0, 1), (4, 2, 2, 1), "sequence_start"),
    "start decreases": (_set("sequence_start", 1, 0), (4, 2, 2, 1), "sequence_start"),
    "start beyond the end": (_set("sequence_start", 1, 9), (4, 2, 2, 1), "sequence_start"),
    "end differs": (_set("sequence_start", 2, 3), (4, 2, 2, 1), "sequence_start"),
    "negative page": (_page(0, -1), (4, 2, 2, 1), r"page_table\(0\)\[0\]\[0\]"),
    "page beyond the pool": (_page(MAX_PAGES, 32), (4, 2, 2, 1), r"page_table\(0\)\[1\]\[0\]"),
    "page written twice": (_page(MAX_PAGES + 1, 3), (4, 2, 2, 1), "written twice"),
    "no tokens": (_page(9, 0), (0, 2, 2, 1), "n_tokens"),
    "too many tokens": (_page(9, 0), (201, 2, 2, 1), "n_tokens"),
    "no sequences": (_page(9, 0), (4, 0, 2, 1), "n_sequences"),
    "more sequences than tokens": (_page(9, 0), (4, 5, 2, 1), "n_sequences"),
    "negative rows": (_page(9, 0), (4, 2, -1, 1), "n_rows"),
    "too many rows": (_page(9, 0), (4, 2, 201, 1), "n_rows"),
    "no steps": (_page(9, 0), (4, 2, 2, 0), "max_steps"),
    "too many steps": (_page(9, 0), (4, 2, 2, 99), "max_steps"),
    "steps without samplers": (_page(9, 0), (4, 2, 2, 2), "sampler"),
    "steps without a row each": (_page(9, 0), (4, 2, 1, 2), "one row a sequence"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_plans_are_refused(driver: Driver, name: str) -> None:
    change, sizes, message = BAD[name]
    plan = _fill(driver)
    change(plan)
    with pytest.raises(RequestError, match=message):
        driver.model.run(plan, *sizes)
    plan = _fill(driver)  # the model still works
    assert driver.model.run(plan, 4, 2, 2, 1) == 1


def test_pages_below_the_window_may_hold_anything(packed: Packed) -> None:
    driver = Driver(program(window=10), packed, pages=32)
    sequence = driver.sequence(0)
    sequence.pages, sequence.length = [-1, 99, 5], 150
    driver.step([(sequence, [1])])
    sequence.length = 133  # position 124 is in block 1
    with pytest.raises(RequestError, match=r"page_table\(0\)\[0\]\[1\]"):
        driver.step([(sequence, [1])])


def test_one_sampler_in_two_rows_is_refused(driver: Driver) -> None:
    plan, sampler = _fill(driver), native.Sampler()
    plan.set_sampler(0, sampler)
    plan.set_sampler(1, sampler)
    with pytest.raises(RequestError, match="two rows"):
        driver.model.run(plan, 4, 2, 2, 1)
    with pytest.raises(RequestError, match="row"):
        plan.set_sampler(-1, None)


def test_a_plan_belongs_to_its_model(driver: Driver, packed: Packed) -> None:
    other = Driver(program(), packed)
    with pytest.raises(RequestError, match="another model"):
        other.model.run(_fill(driver), 4, 2, 2, 1)


def test_logits_and_pages_check_their_arguments(driver: Driver) -> None:
    driver.model.run(_fill(driver), 4, 2, 2, 1)
    with pytest.raises(RequestError, match="2 x 40"):
        driver.model.logits(np.empty(79, np.float32))
    for group, source, target in ((1, 0, 0), (-1, 0, 0), (0, 32, 0), (0, 0, -1)):
        with pytest.raises(RequestError):
            driver.model.copy_page(group, source, target)


def test_copied_pages_hold_the_same(driver: Driver) -> None:
    first, second = driver.sequence(0), driver.sequence(0)
    first.pages, second.pages = [10], [11]
    driver.step([(first, [1, 2, 3])])
    driver.model.copy_page(0, 10, 11)
    second.length = first.length
    ours, theirs = driver.step([(first, [4])]), driver.step([(second, [4])])
    assert (ours.view(np.uint32) == theirs.view(np.uint32)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 1}, "multiple of 64"),
        ({"offset": -64}, "offset"),
        ({"offset": 1 << 40}, "ends beyond"),
        ({"size": 64}, "bytes"),
        ({"n": 1 << 40}, "n 1099511627776"),
        ({"k": 0}, "k 0"),
        ({"k": 1 << 40}, "k 1099511627776"),
        ({"format": "int3"}, "int3"),
    ],
)
def test_damaged_tensors_are_refused(
    packed: Packed, change: dict[str, object], message: str
) -> None:
    place = replace(packed.places[0], **change)  # type: ignore[arg-type]
    model = native.Model("generic", 1, 8, 1, 1)
    weights = native.Weights(str(packed.path))
    with pytest.raises(ModelError, match=message):
        model.add_tensor(
            place.name, place.format, place.n, place.k, weights, place.offset, place.size
        )


def test_files_that_cannot_be_mapped_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", "/dev/null"):
        for kind in (native.Weights, native.MappedFile):
            with pytest.raises(ModelError, match=re.escape(str(path))):
                kind(str(path))
    empty = tmp_path / "empty"
    empty.touch()
    assert native.Weights(str(empty)).size == 0 == len(memoryview(native.Weights(str(empty))))


def test_a_mapped_file_is_a_buffer(packed: Packed) -> None:
    weights = native.Weights(str(packed.path))
    view = memoryview(weights)
    assert view.readonly and bytes(view) == packed.path.read_bytes()
    assert weights.size == packed.path.stat().st_size


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_a_name_that_is_not_unicode_is_a_name(packed: Packed, tmp_path: Path) -> None:
    path = tmp_path / "weights\udcff.bin"
    path.write_bytes(packed.path.read_bytes())
    assert bytes(memoryview(native.MappedFile(str(path)).weights)) == packed.path.read_bytes()
    os.truncate(path, 0)
    assert native.MappedFile(str(path)).weights.size == 0


def test_a_mapped_file_that_becomes_shorter_is_named(packed: Packed, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(packed.path.read_bytes())
    mapped = native.MappedFile(str(path))
    size = mapped.weights.size
    with path.open("ab") as file:
        file.write(b"longer")
    mapped.check_whole()
    os.truncate(path, size - 1)
    message = rf"weights\.bin: was cut to {size - 1} bytes, of {size}, while"
    with pytest.raises(RuntimeFailure, match=message):
        mapped.check_whole()
    descriptor = mapped._descriptor
    gc.collect()  # what else is waiting to be closed
    del mapped
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)


BAD_OPS = {
    "unknown op": ("fold", [0], 1, [], {}, "unknown op"),
    "missing attribute": ("scale", [0], 1, [], {}, "factor"),
    "foreign attribute": ("add", [0, 0], 1, [], {"x": 1}, "attributes"),
    "wrong type": ("scale", [0], 1, [], {"factor": "2"}, "factor must be a float"),
    "infinite": ("scale", [0], 1, [], {"factor": 1e300}, "finite"),
    "value of the future": ("scale", [1], 1, [], {"factor": 2.0}, "not made"),
    "value that does not exist": ("scale", [7], 1, [], {"factor": 2.0}, "not made"),
    "output that does not exist": ("scale", [0], 9, [], {"factor": 2.0}, "does not exist"),
    "made twice": ("scale", [0], 0, [], {"factor": 2.0}, "made twice"),
    "wrong width": ("slice", [0], 1, [], {"start": 0, "size": 5}, "declared"),
    "slice outside": ("slice", [0], 1, [], {"start": 40, "size": 48}, "start"),
    "weight missing": (
        "norm",
        [0],
        1,
        ["", "gone"],
        {"kind": "layer", "eps": 0.1, "groups": 1},
        "gone",
    ),
    "too few inputs": ("add", [0], 1, [], {}, "inputs"),
    "on its input": ("concat", [0, 0], 2, [], {}, "memory plan"),
}


@pytest.mark.parametrize("name", BAD_OPS)
def test_bad_ops_are_refused(packed: Packed, name: str) -> None:
    kind, inputs, output, weights, attributes, message = BAD_OPS[name]
    table = packed.places[0]
    model = native.Model("generic", 1, 8, 1, 8)
    model.add_tensor("t", "f32", table.n, table.k, native.Weights(str(packed.path)), 0, table.size)
    for width, offset in ((WIDTH, 0), (WIDTH, 64), (2 * WIDTH, 32)):
        model.add_value(width, "T", offset)
    model.add_op("embed", [], 0, ["t"], {"ids": "tokens", "scale": 1.0})
    model.add_op(kind, inputs, output, weights, attributes)
    with pytest.raises(ModelError, match=message):
        model.finish(0, "f32", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("sse9", 1, 8, 1, 1),
        ("generic", 0, 8, 1, 1),
        ("generic", 1, 0, 1, 1),
        ("generic", 1, 8, -1, 1),
    ],
)
def test_bad_models_are_refused(arguments: tuple[str, int, int, int, int]) -> None:
    with pytest.raises(ModelError):
        native.Model(*arguments)


def test_an_unfinished_model_does_not_run() -> None:
    model = native.Model("generic", 1, 8, 1, 1)
    with pytest.raises(RequestError, match="finish"):
        native.Plan(model, 4, 1)


def test_host_and_op_table() -> None:
    host = native.host()
    assert host["best"] in host["isas"] and host["cpus"] >= 1
    assert native.choose_isa(None) == host["best"]
    with pytest.raises(ModelError, match="sse9"):
        native.choose_isa("sse9")
    from subsecond import _native

    assert _native.op_table() == op_table()
