"""What a run's outcomes come to: percentiles with the counts behind them, answers in time, ends by
kind, and the same apart for requests that met a stall of the machine.

Owns: the figures and their form for people. Does not know: how they came about. Percentiles are
exact (nearest rank over all samples, nothing binned); one that has no sample beyond it, or fewer
than the quantile needs to mean anything, is not given.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from subsecond.bench.load import Outcome, Run

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
CUT_SHORT = "deadline"  # the finish_reason of an answer that was closed early to be in time


class Percentile(msgspec.Struct, frozen=True):
    """above: samples beyond the value's rank, on which its trustworthiness rests."""

    quantile: float
    value_s: float
    above: int


class Distribution(msgspec.Struct, frozen=True):
    """Exact percentiles of `count` samples."""

    count: int
    mean_s: float | None
    greatest_s: float | None
    percentiles: tuple[Percentile, ...]

    def at(self, quantile: float) -> float | None:
        """None where the samples don't support it."""
        return next((p.value_s for p in self.percentiles if p.quantile == quantile), None)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Requests and their ends: requests = answered + declined + all of failed.

    on_time: whole answers within their deadline. cut_short: in time, but closed early by the server
    (finish_reason "deadline"). late: answered after it. failed: by kind, "status" with its number.
    """

    requests: int
    answered: int
    on_time: int
    cut_short: int
    late: int
    declined: int
    declined_by_status: dict[str, int]
    without_retry_after: int
    failed: dict[str, int]
    finish_reasons: dict[str, int]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run in figures. Latencies are of the requests that met no stall, from their moments.

    span_s: from the start to the end of the schedule or of the last answer in time, whichever is
    later; the rates are over it. stalled: the requests that overlap a stall, not in `steady`.
    late_sending: from a request's moment until it was sent; the generator's own lag.
    per_token: seconds a token after an answer's first piece; its own measure beside the gaps
    because a piece may hold several tokens.
    """

    url: str
    model: str
    what: str
    seed: int
    all: Group
    steady: Group
    stalled: Group
    span_s: float
    requests_per_s: float
    on_time_per_s: float
    prompt_tokens: int
    tokens: int
    tokens_per_s: float
    tokens_counted: bool
    first_text: Distribution
    between_texts: Distribution
    per_token: Distribution
    end_to_end: Distribution
    decline: Distribution
    late_sending: Distribution
    retry_after_s: tuple[float, float] | None
    stalls: int
    stalls_s: float
    longest_beat_s: float
    cpu_s: float
    heartbeat_cpu_s: float
    wall_s: float
    processors: int
    share_of_processor: float
    share_of_machine: float
    connections: int
    reused: int
    failures: dict[str, str]

    def text(self) -> str:
        """The summary for people."""
        return "\n".join(_lines(self))


def distribution(samples: Iterable[float]) -> Distribution:
    """Exact percentiles: the value at rank ceil(q n), where n (1 - q) is at least 1."""
    values = sorted(samples)
    count = len(values)
    found = []
    for quantile in QUANTILES:
        rank = math.ceil(round(quantile * count, 6))
        if count - rank >= 1:
            found.append(Percentile(quantile, values[rank - 1], count - rank))
    return Distribution(
        count=count,
        mean_s=math.fsum(values) / count if count else None,
        greatest_s=values[-1] if count else None,
        percentiles=tuple(found),
    )


def group(outcomes: Sequence[Outcome]) -> Group:
    """Counts the ends."""
    answered = [o for o in outcomes if o.end == "answered"]
    declined = [o for o in outcomes if o.end == "declined"]
    in_time = [o for o in answered if o.in_time]
    cut_short = sum(o.finish_reason == CUT_SHORT for o in in_time)
    failed = Counter(
        f"status {o.status}" if o.end == "status" else o.end
        for o in outcomes
        if o.end not in ("answered", "declined")
    )
    return Group(
        requests=len(outcomes),
        answered=len(answered),
        on_time=len(in_time) - cut_short,
        cut_short=cut_short,
        late=len(answered) - len(in_time),
        declined=len(declined),
        declined_by_status=_counted(str(o.status) for o in declined),
        without_retry_after=sum(o.retry_after_s is None for o in declined),
        failed=dict(sorted(failed.items())),
        finish_reasons=_counted(o.finish_reason or "none" for o in answered),
    )


def summarize(run: Run, processors: int) -> Summary:
    """All figures of a run. processors: how many this process may use."""
    stalled = [o for o in run.outcomes if any(s.overlaps(o.at_s, o.end_s) for s in run.stalls)]
    numbers = {o.number for o in stalled}
    steady = [o for o in run.outcomes if o.number not in numbers]
    whole = [o for o in run.outcomes if o.in_time and o.finish_reason != CUT_SHORT]
    answered = [o for o in run.outcomes if o.end == "answered"]
    shown = [o for o in steady if o.end == "answered"]
    streams = [o for o in shown if o.stream and o.text_s]
    declined = [o for o in steady if o.end == "declined"]
    retries = [o.retry_after_s for o in run.outcomes if o.retry_after_s is not None]
    span_s = max([run.duration_s, *(o.end_s for o in whole)])
    ended_s = max((o.end_s for o in answered), default=0.0)
    tokens = sum(o.tokens for o in answered)
    cost = run.cost
    return Summary(
        url=run.url,
        model=run.model,
        what=run.what,
        seed=run.seed,
        all=group(run.outcomes),
        steady=group(steady),
        stalled=group(stalled),
        span_s=span_s,
        requests_per_s=_ratio(len(run.outcomes), run.duration_s),
        on_time_per_s=_ratio(len(whole), span_s),
        prompt_tokens=sum(o.prompt_tokens or 0 for o in answered),
        tokens=tokens,
        tokens_per_s=_ratio(tokens, ended_s),
        tokens_counted=all(o.tokens_counted for o in answered),
        first_text=distribution(o.text_s[0] - o.at_s for o in streams),
        between_texts=distribution(
            later - earlier
            for o in streams
            for earlier, later in zip(o.text_s, o.text_s[1:], strict=False)
        ),
        per_token=distribution(
            (o.text_s[-1] - o.text_s[0]) / (o.tokens - 1) for o in streams if o.tokens > 1
        ),
        end_to_end=distribution(o.latency_s for o in shown),
        decline=distribution(o.latency_s for o in declined),
        late_sending=distribution(o.sent_s - o.at_s for o in steady if o.sent_s is not None),
        retry_after_s=(min(retries), max(retries)) if retries else None,
        stalls=len(run.stalls),
        stalls_s=math.fsum(s.end_s - s.begin_s for s in run.stalls),
        longest_beat_s=run.longest_beat_s,
        cpu_s=cost.cpu_s,
        heartbeat_cpu_s=cost.heartbeat_cpu_s,
        wall_s=cost.wall_s,
        processors=processors,
        share_of_processor=_ratio(cost.cpu_s, cost.wall_s),
        share_of_machine=_ratio(cost.cpu_s, cost.wall_s * processors),
        connections=cost.connections,
        reused=cost.reused,
        failures=_examples(run.outcomes),
    )


def _ratio(value: float, by: float) -> float:
    return value / by if by > 0 else 0.0


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _examples(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """What the first of each kind of failure said."""
    found: dict[str, str] = {}
    for o in outcomes:
        if o.end not in ("answered", "declined"):
            found.setdefault(f"status {o.status}" if o.end == "status" else o.end, o.detail)
    return dict(sorted(found.items()))


def _lines(summary: Summary) -> list[str]:
    counts = summary.all
    tokens = "" if summary.tokens_counted else " (pieces of text: the server tells no usage)"
    lines = [
        f"{summary.url}, model {summary.model}: {summary.what}, seed {summary.seed}",
        f"{counts.requests} requests, {summary.requests_per_s:.2f}/s: {_ends(counts)}",
        f"{summary.on_time_per_s:.2f} answers/s on time over {summary.span_s:.1f} s; "
        f"{summary.prompt_tokens} tokens in, {summary.tokens} out{tokens}, "
        f"{summary.tokens_per_s:.1f} tok/s",
    ]
    if counts.declined:
        retry = summary.retry_after_s
        after = f"Retry-After {retry[0]:g} to {retry[1]:g} s" if retry else "no Retry-After"
        if retry and counts.without_retry_after:
            after += f", {counts.without_retry_after} without"
        by = ", ".join(f"{status}: {n}" for status, n in counts.declined_by_status.items())
        lines.append(f"declined by {by}; {after}")
    lines += [f"  {kind}: {counts.failed[kind]}, first: {summary.failures[kind] or 'no message'}"
              for kind in counts.failed]  # fmt: skip
    lines += _table(summary)
    if summary.stalls:
        lines.append(
            f"the machine stood still {summary.stalls} times, {summary.stalls_s:.3f} s in all; "
            f"{summary.stalled.requests} requests overlap that and are not in the table: "
            f"{_ends(summary.stalled)}"
        )
    else:
        lines.append(
            "the machine never stood still for 50 ms (longest time between two beats: "
            f"{summary.longest_beat_s * 1e3:.1f} ms)"
        )
    lines.append(
        f"the generator took {summary.cpu_s:.2f} s of CPU in {summary.wall_s:.1f} s "
        f"({summary.share_of_processor:.1%} of one processor, {summary.share_of_machine:.1%} of "
        f"{summary.processors}; heartbeat {summary.heartbeat_cpu_s:.2f} s); "
        f"{summary.connections} connections, {summary.reused} requests on a used one"
    )
    return lines


def _ends(counts: Group) -> str:
    parts = [f"{counts.on_time} on time", f"{counts.late} late"]
    if counts.cut_short:
        parts.append(f"{counts.cut_short} cut short in time")
    parts += [f"{counts.declined} declined", f"{sum(counts.failed.values())} failed"]
    return ", ".join(parts)


def _table(summary: Summary) -> list[str]:
    """A row a measure; behind each percentile the number of samples above it."""
    rows = [
        ("first text", summary.first_text),
        ("between texts", summary.between_texts),
        ("per token", summary.per_token),
        ("whole answer", summary.end_to_end),
        ("decline", summary.decline),
        ("sent after its moment", summary.late_sending),
    ]
    head = "".join(f"{f'p{100 * quantile:g}':>15}" for quantile in QUANTILES)
    lines = [f"  {'ms (samples above)':<22}{'count':>8}{head}{'greatest':>11}"]
    for name, values in rows:
        if not values.count:
            continue
        cells = []
        for quantile in QUANTILES:
            own = next((p for p in values.percentiles if p.quantile == quantile), None)
            cell = f"{own.value_s * 1e3:.1f} ({own.above})" if own else "-"
            cells.append(f"{cell:>15}")
        greatest = f"{(values.greatest_s or 0.0) * 1e3:.1f}"
        lines.append(f"  {name:<22}{values.count:>8}{''.join(cells)}{greatest:>11}")
    return lines
