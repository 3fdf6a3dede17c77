"""The benchmark's figures as one picture: a panel a measure, a bar a system, the machine's limit as
a dashed line.

Owns: drawing. The only module of the benchmark that needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed
import matplotlib.pyplot as plt
from decoder_report import MEASURES, Floor, Sample, Spread, figure, medians

OURS_COLOUR, PEER_COLOUR = "#1b7f5c", "#9aa5b1"
COLUMNS = 2

Model = tuple[str, list[Sample], list[Floor], str]  # shape, samples, floors, our label


def draw_panel(
    axes: Any, samples: list[Sample], floors: list[Floor], ours: str, measure: str
) -> None:
    spreads = medians(samples, measure)
    better_high = MEASURES[measure].higher_is_better
    order = sorted(spreads, key=lambda s: spreads[s].median, reverse=not better_high)  # best on top
    values = [spreads[s].median for s in order]
    errors = [
        [spreads[s].median - spreads[s].least for s in order],
        [spreads[s].greatest - spreads[s].median for s in order],
    ]
    colours = [OURS_COLOUR if s == ours else PEER_COLOUR for s in order]
    axes.barh(order, values, xerr=errors, color=colours, error_kw={"lw": 0.8, "capsize": 2})
    for place, value in enumerate(values):
        axes.text(value, place, f" {figure(value)}", va="bottom", fontsize=7)
    floor = Spread.of(floor.value for floor in floors if floor.measure == measure)
    if floor:
        axes.axvline(floor.median, color="black", lw=0.8, ls="--")
    direction = "more is better" if better_high else "less is better"
    axes.set_title(f"{MEASURES[measure].title}, {MEASURES[measure].unit} ({direction})", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def draw(models: Sequence[Model], path: Path) -> None:
    """Writes a PNG: panels of all measures of all models."""
    panels = [
        (shape, samples, floors, ours, measure)
        for shape, samples, floors, ours in models
        for measure in MEASURES
        if any(sample.measure == measure for sample in samples)
    ]
    if not panels:
        return
    rows = -(-len(panels) // COLUMNS)
    size = (5.4 * COLUMNS, 2.3 * rows)
    chart, grid = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axes, (shape, samples, floors, ours, measure) in zip(grid.flat, panels, strict=False):
        draw_panel(axes, samples, floors, ours, measure)
        if len(models) > 1:
            axes.set_title(f"{shape}: {axes.get_title()}", fontsize=8)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    chart.suptitle(
        "Median of rounds, bars from least to greatest; dashed: the limit of this machine",
        fontsize=8,
    )
    chart.savefig(path, dpi=150)
    plt.close(chart)
