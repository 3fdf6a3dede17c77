"""A run as one picture: every request at its moment, and how many ended within how long.

Owns: drawing. The only module of the package that needs matplotlib (extra [bench]).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subsecond.bench.load import Outcome, Run
from subsecond.bench.load_summary import CUT_SHORT
from subsecond.errors import InputError

STALL_COLOUR = "#f0d9b5"
LIMIT_COLOUR = "#7a7a7a"
ENDS = {
    "on time": "#1b7f5c",
    "cut short in time": "#7bc2a5",
    "late": "#d08c1d",
    "declined": "#9aa5b1",
    "failed": "#b3261e",
}


def backend() -> Any:
    """pyplot without a display. InputError where matplotlib isn't installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise InputError("a plot needs matplotlib; pip install 'subsecond[bench]'") from None
    return pyplot


def draw(run: Run, path: Path) -> None:
    """Writes a picture; the file's ending says its format. InputError if it can't be written."""
    plt = backend()
    chart, (moments, shares) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for stall in run.stalls:
        moments.axvspan(stall.begin_s, stall.end_s, color=STALL_COLOUR)
    for name, colour in ENDS.items():
        own = [o for o in run.outcomes if end_of(o) == name]
        if not own:
            continue
        label = f"{name}: {len(own)}"
        moments.scatter(
            [o.at_s for o in own], [o.latency_s for o in own], s=6, color=colour, label=label
        )
        values = sorted(o.latency_s for o in own)
        reached = [(place + 1) / len(run.outcomes) for place in range(len(values))]
        shares.step(values, reached, where="post", color=colour, label=label)
    deadlines = {o.deadline_s for o in run.outcomes if o.deadline_s is not None}
    if len(deadlines) == 1:
        limit_s = deadlines.pop()
        moments.axhline(limit_s, color=LIMIT_COLOUR, lw=0.8, ls="--")
        shares.axvline(limit_s, color=LIMIT_COLOUR, lw=0.8, ls="--")
    moments.set_xlabel("scheduled moment, s")
    moments.set_ylabel("from there to the end, s")
    shares.set_xlabel("from the scheduled moment to the end, s")
    shares.set_ylabel("share of all requests that ended within")
    shares.set_ylim(0, 1)
    for axes in (moments, shares):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    if run.outcomes:
        shares.legend(fontsize=8, frameon=False, loc="upper left")
    dashed = "; dashed: the deadline; shaded: the machine stood still"
    chart.suptitle(f"{run.model}: {run.what}{dashed}", fontsize=9)
    try:
        chart.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no format
        raise InputError(f"can't write the plot {str(path)!r:.200}: {error}") from None
    finally:
        plt.close(chart)


def end_of(outcome: Outcome) -> str:
    """The end's kind in the picture."""
    if outcome.end == "answered":
        if not outcome.in_time:
            return "late"
        return "cut short in time" if outcome.finish_reason == CUT_SHORT else "on time"
    return "declined" if outcome.end == "declined" else "failed"
