"""The packed layout: positions as formats.h documents them, and exact round trips."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond.errors import ModelError
from subsecond.formats.layout import FORMATS, GROUP_INT, TILE_CHANNELS
from subsecond.formats.pack import (
    Grid,
    from_bf16,
    pack_float,
    pack_grid,
    to_bf16,
    unpack,
    unpack_float,
    unpack_grid,
)

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "kernels" / "formats.h"


def random_grid(name: str, n: int, k: int, seed: int = 0) -> Grid:
    rng = np.random.default_rng(seed)
    groups = -(-k // GROUP_INT)
    scale = rng.standard_normal((n, groups)).astype(np.float16)
    minimum = rng.standard_normal((n, groups)).astype(np.float16) if name == "int4" else None
    return Grid(
        name, scale, minimum, rng.integers(0, 16 if minimum is not None else 256, (n, k), np.uint8)
    )


def test_constants_are_those_of_formats_h() -> None:
    text = HEADER.read_text()
    assert int(re.search(r"tile_channels = (\d+)", text)[1]) == TILE_CHANNELS  # type: ignore[index]
    assert int(re.search(r"group_int = (\d+)", text)[1]) == GROUP_INT  # type: ignore[index]
    sizes = {n: int(b) for n, b in re.findall(r"sizeof\(block_(\w+)\) == (\d+)", text)}
    sizes["int8_split"] = sizes.pop("split_upper") + sizes.pop("split_lower")
    assert sizes == {f.name: f.block_bytes for f in FORMATS.values()}
    groups = dict(re.findall(r'\{"(\w+)", (\w+), sizeof', text))
    assert {n: GROUP_INT if g == "group_int" else int(g) for n, g in groups.items()} == {
        f.name: f.group for f in FORMATS.values()
    }


@pytest.mark.parametrize(("n", "k"), [(16, 32), (33, 96), (5, 40)])
@pytest.mark.parametrize("name", ["int4", "int8"])
def test_integer_blocks_lie_as_documented(name: str, n: int, k: int) -> None:
    """Every value is looked up by the formula in formats.h, written out here byte by byte."""
    grid = random_grid(name, n, k)
    data = pack_grid(grid)
    layout = FORMATS[name]
    groups = layout.groups(k)
    assert data.nbytes == layout.matrix_bytes(n, k)
    for row in range(-(-n // 16) * 16):
        tile, channel = divmod(row, 16)
        for group in range(groups):
            block = data[(tile * groups + group) * layout.block_bytes :][: layout.block_bytes]
            scale = block[:32].view(np.float16)[channel]
            assert scale == (grid.scale[row, group] if row < n else 0)
            quant = block[32:]
            if grid.minimum is not None:
                assert block[32:64].view(np.float16)[channel] == (
                    grid.minimum[row, group] if row < n else 0
                )
                quant = block[64:]
            for place in range(32):
                quad, i = divmod(place, 4)
                if name == "int8":
                    value = quant[64 * quad + 4 * channel + i]
                else:
                    byte = quant[64 * (quad % 4) + 4 * channel + i]
                    value = byte >> 4 if quad >= 4 else byte & 15
                inside = row < n and 32 * group + place < k
                padding = 128 if name == "int8" else 0
                assert value == (grid.quant[row, 32 * group + place] if inside else padding)


@pytest.mark.parametrize("name", ["f32", "bf16"])
def test_float_blocks_lie_as_documented(name: str) -> None:
    n, k = 19, 7
    values = np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)
    data = pack_float(values, name)
    layout = FORMATS[name]
    groups = layout.groups(k)
    assert data.nbytes == layout.matrix_bytes(n, k)
    stored = data.view(np.uint16 if name == "bf16" else np.float32)
    wanted = to_bf16(values) if name == "bf16" else values
    for row in range(32):
        for place in range(groups * layout.group):
            tile, channel = divmod(row, 16)
            group, i = divmod(place, layout.group)
            at = (tile * groups + group) * 16 * layout.group + layout.group * channel + i
            assert stored[at] == (wanted[row, place] if row < n and place < k else 0)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["int4", "int8"]), st.integers(1, 50), st.integers(1, 130), st.integers(0, 9)
)
def test_grids_come_back(name: str, n: int, k: int, seed: int) -> None:
    grid = random_grid(name, n, k, seed)
    back = unpack_grid(pack_grid(grid), name, n, k)
    np.testing.assert_array_equal(back.quant, grid.quant)
    np.testing.assert_array_equal(back.scale, grid.scale)
    np.testing.assert_array_equal(unpack(pack_grid(grid), name, n, k), grid.values())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 50), st.integers(1, 40))
def test_floats_come_back(n: int, k: int) -> None:
    values = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    np.testing.assert_array_equal(unpack_float(pack_float(values, "f32"), "f32", n, k), values)
    rounded = from_bf16(to_bf16(values))
    np.testing.assert_array_equal(unpack_float(pack_float(values, "bf16"), "bf16", n, k), rounded)


def test_bf16_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xFF800000], np.uint32)
    expected = [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xFF80]
    np.testing.assert_array_equal(to_bf16(bits.view(np.float32)), np.array(expected, np.uint16))
    assert np.isnan(from_bf16(to_bf16(np.array([np.nan, -np.nan], np.float32)))).all()


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(ModelError, match="int4"):
        unpack(np.zeros(319, np.uint8), "int4", 16, 32)


def test_rows_of_a_grid() -> None:
    grid = random_grid("int4", 8, 64)
    order = np.array([7, 0, 3])
    np.testing.assert_array_equal(grid.rows(order).values(), grid.values()[order])
