"""From samples to figures: medians, ratios by round, floors; as a table for people and as JSON.

Owns: the statistics. Knows nothing of processes. A round's ratio compares samples of the same
minutes, because the same run differs by tens of per cent from minute to minute on a shared machine;
the figure is the median of the ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """How a measure is shown, and which way is better."""

    title: str
    unit: str
    higher_is_better: bool


MEASURES: Mapping[str, Measure] = {
    "decode": Measure("decode, one sequence", "tok/s", True),
    "prefill": Measure("prompt", "ms", False),
    "batch": Measure("sequences at once", "tok/s", True),
    "cold": Measure("start to first token", "s", False),
    "memory": Measure("peak memory, decode", "MiB", False),
    "context": Measure("cost of context", "ms", False),
    "spin": Measure("beside a spinning process", "of free speed", True),
    "perplexity": Measure("perplexity", "", False),
}


@dataclass(frozen=True)
class Sample:
    """One system's value of one measure in one round (the median of the process's repetitions)."""

    round: int
    system: str
    measure: str
    value: float


@dataclass(frozen=True)
class Floor:
    """The best that this machine allowed in one round, in the measure's unit."""

    round: int
    measure: str
    value: float


@dataclass(frozen=True)
class Spread:
    """A median with its least and greatest value."""

    median: float
    least: float
    greatest: float
    count: int

    @staticmethod
    def of(values: Iterable[float]) -> Spread | None:
        listed = sorted(values)
        if not listed:
            return None
        return Spread(statistics.median(listed), listed[0], listed[-1], len(listed))

    def text(self) -> str:
        if self.count == 1:
            return figure(self.median)
        return f"{figure(self.median)} ({figure(self.least)}–{figure(self.greatest)})"


@dataclass(frozen=True)
class Row:
    """One measure's result. `ratio` is above 1 where we are better; `share` is of the machine's
    limit, at best 1.
    """

    measure: str
    ours: Spread | None
    peer: str  # the peer with the best median
    peers: Spread | None  # its values
    ratio: Spread | None  # over the best peer of each round
    floor: Spread | None
    share: Spread | None


def figure(value: float) -> str:
    """Four digits that matter."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def by_round(samples: Iterable[Sample], measure: str) -> dict[int, dict[str, float]]:
    """round -> system -> value."""
    found: dict[int, dict[str, float]] = {}
    for sample in samples:
        if sample.measure == measure:
            found.setdefault(sample.round, {})[sample.system] = sample.value
    return found


def gain(measure: str, ours: float, other: float) -> float:
    """How many times better ours is: above 1 is better, whichever way the measure goes."""
    return ours / other if MEASURES[measure].higher_is_better else other / ours


def best(measure: str, values: Mapping[str, float]) -> str:
    """The system with the best value."""
    choose = max if MEASURES[measure].higher_is_better else min
    return choose(values, key=lambda system: values[system])


def ratios(samples: Iterable[Sample], measure: str, ours: str) -> list[float]:
    """Ours over the best peer, of every round in which both were measured."""
    found = []
    for values in by_round(samples, measure).values():
        peers = {system: value for system, value in values.items() if system != ours}
        if ours in values and peers:
            found.append(gain(measure, values[ours], peers[best(measure, peers)]))
    return found


def medians(samples: Iterable[Sample], measure: str) -> dict[str, Spread]:
    """system -> its values over all rounds."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        if sample.measure == measure:
            values.setdefault(sample.system, []).append(sample.value)
    spreads = {system: Spread.of(listed) for system, listed in values.items()}
    return {system: spread for system, spread in spreads.items() if spread is not None}


def row_of(samples: list[Sample], floors: list[Floor], measure: str, ours: str) -> Row:
    spreads = medians(samples, measure)
    peers = {system: spread for system, spread in spreads.items() if system != ours}
    peer = best(measure, {s: spread.median for s, spread in peers.items()}) if peers else ""
    own = {
        number: values[ours]
        for number, values in by_round(samples, measure).items()
        if ours in values
    }
    limits = {floor.round: floor.value for floor in floors if floor.measure == measure}
    shares = [gain(measure, own[number], limits[number]) for number in own if number in limits]
    return Row(
        measure=measure,
        ours=spreads.get(ours),
        peer=peer,
        peers=peers.get(peer),
        ratio=Spread.of(ratios(samples, measure, ours)),
        floor=Spread.of(limits.values()),
        share=Spread.of(shares),
    )


def rows_of(samples: list[Sample], floors: list[Floor], ours: str) -> list[Row]:
    """One row a measure that has samples, in the order of MEASURES."""
    measured = {sample.measure for sample in samples}
    return [row_of(samples, floors, m, ours) for m in MEASURES if m in measured]


def contenders(samples: list[Sample], measures: Iterable[str], slack: float) -> set[str]:
    """The systems worth another round: of each library its formats within `slack` of its best in
    any measure.

    A system's name is "library format". What was measured in no sample of the measures is not in
    the answer.
    """
    kept: set[str] = set()
    for measure in measures:
        spreads = medians(samples, measure)
        for library in {system.rsplit(" ", 1)[0] for system in spreads}:
            own = {
                s: spread.median for s, spread in spreads.items() if s.rsplit(" ", 1)[0] == library
            }
            champion = own[best(measure, own)]
            kept |= {s for s, value in own.items() if gain(measure, value, champion) >= 1 - slack}
    return kept


def _cells(spread: Spread | None, unit: str) -> str:
    return f"{spread.text()} {unit}".rstrip() if spread else "–"


def table(rows: list[Row]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| measure | ours | best peer | ratio | machine's limit | reached |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        measure = MEASURES[row.measure]
        peer = f"{row.peer}: {_cells(row.peers, measure.unit)}" if row.peer else "–"
        ratio = (
            f"**{row.ratio.median:.2f}x** ({row.ratio.least:.2f}–{row.ratio.greatest:.2f})"
            if row.ratio
            else "–"
        )
        share = f"{row.share.median:.1%}" if row.share else "–"
        limit = _cells(row.floor, measure.unit)
        cells = (measure.title, _cells(row.ours, measure.unit), peer, ratio, limit, share)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def system_tables(samples: list[Sample]) -> str:
    """Every system's figures, one Markdown table a measure, best first."""
    parts = []
    for name, measure in MEASURES.items():
        spreads = medians(samples, name)
        if not spreads:
            continue
        order = sorted(spreads, key=lambda s: spreads[s].median, reverse=measure.higher_is_better)
        lines = [
            f"| {measure.title} {measure.unit} | median (least–greatest) | rounds |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {s} | {spreads[s].text()} | {spreads[s].count} |" for s in order]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
