"""The decoder benchmark's statistics: ratios by round, contenders, floors, and the forms they are
shown in.
"""

from __future__ import annotations

import json

import pytest
from decoder_report import (
    MEASURES,
    Floor,
    Sample,
    Spread,
    as_json,
    contenders,
    figure,
    gain,
    medians,
    ratios,
    row_of,
    rows_of,
    system_tables,
    table,
)

OURS = "subsecond int4"


def samples(measure: str, values: dict[str, list[float]]) -> list[Sample]:
    return [
        Sample(number, system, measure, value)
        for system, listed in values.items()
        for number, value in enumerate(listed, 1)
    ]


def test_a_ratio_compares_with_the_best_peer_of_the_same_round() -> None:
    found = samples("decode", {OURS: [200, 300], "a q4": [100, 50], "b int4": [80, 150]})
    assert ratios(found, "decode", OURS) == [2.0, 2.0]


def test_less_is_better_turns_the_ratio_round() -> None:
    found = samples("prefill", {OURS: [200.0], "a q4": [300.0], "b int4": [400.0]})
    assert ratios(found, "prefill", OURS) == [1.5]
    assert gain("memory", 100, 150) == 1.5
    assert gain("decode", 100, 150) == pytest.approx(2 / 3)


def test_the_figure_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    # Round 2 ran on a machine twice as fast: the ratio of the medians would be 300 / 100.
    found = samples("decode", {OURS: [200, 400, 300], "a q4": [100, 200, 100]})
    row = row_of(found, [], "decode", OURS)
    assert row.ratio == Spread(2.0, 2.0, 3.0, 3)
    assert row.ours == Spread(300, 200, 400, 3)


def test_rounds_without_ours_or_without_a_peer_have_no_ratio() -> None:
    found = [
        Sample(1, OURS, "decode", 200.0),
        Sample(2, "a q4", "decode", 100.0),
        Sample(3, OURS, "decode", 300.0),
        Sample(3, "a q4", "decode", 100.0),
    ]
    assert ratios(found, "decode", OURS) == [3.0]


def test_without_peers_the_row_still_shows_ours_beside_the_limit() -> None:
    row = row_of([Sample(1, OURS, "decode", 250.0)], [Floor(1, "decode", 500.0)], "decode", OURS)
    assert (row.peer, row.peers, row.ratio) == ("", None, None)
    assert row.share == Spread(0.5, 0.5, 0.5, 1)


@pytest.mark.parametrize(
    ("measure", "value", "floor"), [("decode", 250.0, 500.0), ("prefill", 280.0, 140.0)]
)
def test_the_share_of_the_limit_is_below_one_whichever_way_the_measure_goes(
    measure: str, value: float, floor: float
) -> None:
    row = row_of([Sample(1, OURS, measure, value)], [Floor(1, measure, floor)], measure, OURS)
    assert row.share is not None
    assert row.share.median == 0.5


def test_a_share_uses_the_limit_of_its_own_round() -> None:
    found = samples("context", {OURS: [4.0, 2.0]})
    floors = [Floor(1, "context", 3.0), Floor(2, "context", 1.5)]
    row = row_of(found, floors, "context", OURS)
    assert row.share == Spread(0.75, 0.75, 0.75, 2)


def test_contenders_keep_each_librarys_best_format_of_any_measure() -> None:
    found = samples(
        "decode", {OURS: [300], "a q4": [150], "a q4_1": [110], "b int4": [90], "b int8": [70]}
    )
    found += samples(
        "memory", {OURS: [150], "a q4": [230], "a q4_1": [180], "b int4": [400], "b int8": [390]}
    )
    assert contenders(found, ["decode"], 0.1) == {OURS, "a q4", "b int4"}
    assert contenders(found, ["decode", "memory"], 0.1) == {
        OURS,
        "a q4",
        "a q4_1",
        "b int4",
        "b int8",
    }
    assert contenders(found, ["decode"], 0.3) == {OURS, "a q4", "a q4_1", "b int4", "b int8"}


def test_a_spread_is_median_least_and_greatest() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([]) is None
    assert Spread(2.0, 1.0, 3.0, 3).text() == "2 (1–3)"
    assert Spread(147.3, 147.3, 147.3, 1).text() == "147.3"


def test_figures_keep_the_digits_that_matter() -> None:
    assert [figure(x) for x in (1234.5, 0.7012, 18.53, 2.0)] == ["1234", "0.7012", "18.53", "2"]


def test_tables_hold_every_measure_and_system_best_first() -> None:
    found = samples("decode", {OURS: [300.0], "a q4": [150.0]}) + samples(
        "cold", {OURS: [0.4], "a q4": [0.6]}
    )
    rows = rows_of(found, [Floor(1, "decode", 500.0)], OURS)
    assert [row.measure for row in rows] == ["decode", "cold"]
    text = table(rows)
    assert "**2.00x**" in text
    assert "60.0%" in text
    lines = system_tables(found).splitlines()
    assert lines[2].startswith(f"| {OURS} | 300")
    assert lines[3].startswith("| a q4 | 150")


def test_the_summary_is_json() -> None:
    rows = rows_of(samples("decode", {OURS: [300.0], "a q4": [150.0]}), [], OURS)
    read = json.loads(json.dumps(as_json(rows)))
    assert read[0]["ratio"]["median"] == 2.0
    assert read[0]["floor"] is None


def test_medians_are_by_system() -> None:
    found = samples("decode", {OURS: [1.0, 3.0], "a q4": [5.0]})
    assert medians(found, "decode") == {
        OURS: Spread(2.0, 1.0, 3.0, 2),
        "a q4": Spread(5.0, 5.0, 5.0, 1),
    }


def test_every_measure_has_a_direction_and_a_title() -> None:
    from decoder_config import MEASURES as NAMES

    assert set(NAMES) == set(MEASURES)
