"""What Prometheus reads.

Owns: the names, labels, units and buckets, and the registry. Does not know: routes, the engine.
Names follow vLLM's and TGI's where these have one. Labels are our own words, the public ids of keys
and the names of served models, so their number is bounded.

Counters and histograms are kept here; gauges are made of a `Snapshot` when somebody reads, so that
`text` may run in any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from subsecond.engine.messages import StepStats
from subsecond.serve.ledger import OTHERS, Ledger, Row, reasons
from subsecond.serve.recent import Recent
from subsecond.serve.schema.shared import Promise
from subsecond.serve.snapshot import Snapshot

KIND = "text/plain; version=0.0.4; charset=utf-8"
MAX_ROWS = 256
"""Rows of the ledger that are shown apart: each is two dozen lines of every reading."""

_SECONDS = (
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30,
    60,
)  # fmt: skip
_STEP_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1)
_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)
_RATIO = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.1, 1.5, 2.0)


@dataclass(frozen=True)
class Answer:
    """An answer that came to its end. finished: the finish reason of each of its texts."""

    model: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    finished: Sequence[str]
    promise: Promise


class Metrics:
    """Of one server. recent: the last minutes, for the page."""

    def __init__(self, ledger: Ledger) -> None:
        self._registry = registry = CollectorRegistry()
        self._live = _Live(ledger)
        registry.register(self._live)
        ProcessCollector(registry=registry)
        ProcessCollector("subsecond_engine", pid=self._live.engine_pid, registry=registry)
        self.recent = Recent()
        self._by_model: list[Counter | Histogram] = []
        self._requests = Counter(
            "subsecond_http_requests", "Requests by route and status.", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self._success = self._counter(
            "request_success", "Texts that came to their end, by finish reason.", "finished_reason"
        )
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts, cached ones included.")
        self._generated = self._counter("generation_tokens", "Tokens of answers.")
        self._queried = self._counter(
            "prefix_cache_queries", "Tokens of prompts that the prefix cache was asked for."
        )
        self._hits = self._counter("prefix_cache_hits", "Those of them that it had.")
        self._drafted = self._counter(
            "spec_decode_num_draft_tokens", "Tokens of drafts that steps have checked."
        )
        self._accepted = self._counter(
            "spec_decode_num_accepted_tokens", "Those of them that were chosen."
        )
        self._asked = self._counter(
            "answer_cache_queries", "Questions that the cache of answers was asked for."
        )
        self._known = self._counter("answer_cache_hits", "Those that it answered.")
        self._first = self._seconds("time_to_first_token", "From the first byte to the first token")
        self._between = self._seconds(
            "inter_token_latency", "Between two events of a text that have tokens"
        )
        self._each = self._seconds(
            "time_per_output_token", "Mean of an answer, after its first token"
        )
        self._queue = self._seconds("request_queue_time", "From the first byte to the first step")
        self._prefill = self._seconds("request_prefill_time", "From there to the first token")
        self._decode = self._seconds("request_decode_time", "From there to the last token")
        self._total = self._seconds("e2e_request_latency", "From the first byte to the last")
        self._used = self._histogram(
            "deadline_used_ratio", "Part of a promised deadline that the answer took.", _RATIO
        )
        self._in = self._histogram("request_prompt_tokens", "Tokens of a request.", _TOKENS)
        self._out = self._histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self._steps = self._histogram("step_time_seconds", "A step of the engine.", _STEP_SECONDS)
        self._sequences = self._histogram("batch_size", "Sequences of a step.", _BATCH)
        self._step_tokens = self._histogram("batch_tokens", "Tokens that a step computes.", _TOKENS)

    def request(self, route: str, status: int) -> None:
        """A request has ended."""
        self._requests.labels(route, str(status)).inc()

    def tokens(self, model: str, count: int, gap_s: float | None) -> None:
        """A text has grown. gap_s: since it grew last; None for its beginning."""
        if not count:
            return
        self._generated.labels(model).inc(count)
        self.recent.tokens(count)
        if gap_s is not None:
            self._between.labels(model).observe(gap_s)

    def answered(self, answer: Answer) -> None:
        """An answer was given."""
        model, shown = answer.model, answer.promise
        self._prompt.labels(model).inc(answer.prompt_tokens)
        self._queried.labels(model).inc(answer.prompt_tokens)
        self._hits.labels(model).inc(answer.cached_tokens)
        self._in.labels(model).observe(answer.prompt_tokens)
        self._out.labels(model).observe(answer.completion_tokens)
        for reason in answer.finished:
            self._success.labels(model, reason).inc()
        first_s, decode_s = (shown.queue_ms + shown.prefill_ms) / 1e3, shown.decode_ms / 1e3
        total_s = shown.total_ms / 1e3
        self._queue.labels(model).observe(shown.queue_ms / 1e3)
        self._prefill.labels(model).observe(shown.prefill_ms / 1e3)
        self._first.labels(model).observe(first_s)
        self._decode.labels(model).observe(decode_s)
        self._total.labels(model).observe(total_s)
        later = answer.completion_tokens / max(1, len(answer.finished)) - 1
        each_s = decode_s / later if later >= 1 else None
        if each_s is not None:
            self._each.labels(model).observe(each_s)
        if shown.deadline_ms and shown.promised_tokens is not None:
            self._used.labels(model).observe(shown.total_ms / shown.deadline_ms)
        self.recent.answered(first_s, each_s, total_s)

    def asked_cache(self, model: str, *, hit: bool) -> None:
        """The cache of answers was asked."""
        self._asked.labels(model).inc()
        self._known.labels(model).inc(hit)

    def step(self, model: str, stats: StepStats) -> None:
        """A turn of the engine."""
        if stats.shape is None or not stats.steps:
            return
        self._steps.labels(model).observe(stats.elapsed_s / stats.steps)
        self._sequences.labels(model).observe(stats.shape.sequences)
        self._step_tokens.labels(model).observe(stats.shape.tokens)
        self._drafted.labels(model).inc(stats.drafted)
        self._accepted.labels(model).inc(stats.accepted)

    def forget(self, model: str) -> None:
        """A model is gone: its series end, so that names that come and go don't pile up."""
        for own in self._by_model:
            own.remove_by_labels({"model": model})

    def text(self, now: Snapshot) -> bytes:
        """All of it in Prometheus' text form."""
        self._live.now = now
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        own = Counter(f"subsecond_{name}", what, ["model", *labels], registry=self._registry)
        self._by_model.append(own)
        return own

    def _seconds(self, name: str, what: str) -> Histogram:
        return self._histogram(f"{name}_seconds", f"{what}.", _SECONDS)

    def _histogram(self, name: str, what: str, buckets: Sequence[float]) -> Histogram:
        own = Histogram(
            f"subsecond_{name}", what, ["model"], buckets=buckets, registry=self._registry
        )
        self._by_model.append(own)
        return own


class _Live(Collector):
    """What is read when somebody asks: the ledger, and how things stand."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.now: Snapshot | None = None

    def engine_pid(self) -> str:
        """Of the engine process; no process where there is none."""
        pid = None if self.now is None else self.now.engine_pid
        return "none" if pid is None else str(pid)

    def describe(self) -> list[Metric]:
        """Of Collector: nothing is known before somebody reads."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Of Collector."""
        yield from _promises(self._ledger)
        if self.now is not None:
            yield from _server(self.now)
            yield from _models(self.now)


def _promises(ledger: Ledger) -> Iterator[Metric]:
    names = ["key", "model"]
    made = CounterMetricFamily("subsecond_promises_made", "Deadlines promised.", labels=names)
    ended = CounterMetricFamily(
        "subsecond_promises_ended",
        "What became of them: kept, cancelled (the client left), or broken and why.",
        labels=[*names, "outcome", "reason"],
    )
    declined = CounterMetricFamily(
        "subsecond_declined", "Requests that were declined at once.", labels=[*names, "reason"]
    )
    held = GaugeMetricFamily(
        "subsecond_promises_open", "Promises that have not ended.", labels=names
    )
    for row in _bounded(ledger.rows()):
        own = [row.key, row.model]
        made.add_metric(own, row.promised)
        held.add_metric(own, row.open)
        ended.add_metric([*own, "kept", ""], row.kept)
        ended.add_metric([*own, "cancelled", ""], row.cancelled)
        for kind, reason in reasons():  # zeros too: a rate needs the value before the first
            if kind == "broken":
                ended.add_metric([*own, kind, reason], row.broken.get(reason, 0))  # type: ignore[call-overload]
            else:
                declined.add_metric([*own, reason], row.declined.get(reason, 0))  # type: ignore[call-overload]
    yield from (made, ended, declined, held)


def _bounded(rows: list[Row]) -> list[Row]:
    """The first rows, which stay the first, and the sum of the others."""
    if len(rows) <= MAX_ROWS:
        return rows
    rest = Row(key=OTHERS, model=OTHERS)
    for row in rows[MAX_ROWS:]:
        rest.add(row)
    return [*rows[:MAX_ROWS], rest]


def _server(now: Snapshot) -> Iterator[Metric]:
    yield _gauge("ready", "1 if requests are taken.", float(not now.unready))
    yield _gauge("event_loop_lag_seconds", "How long what was read last had waited.", now.lag_s)
    yield _gauge("connections", "Open connections.", now.connections)
    yield _gauge("ledger_writable", "0 if the ledger can't be written now.", not now.ledger_problem)
    yield _total("engine_restarts", "Starts of the engine process after the first.", now.restarts)
    yield _total("audit_lines_lost", "Lines that could not be written.", now.audit_lost)
    build = GaugeMetricFamily("subsecond_build_info", "1; the version.", labels=["version"])
    build.add_metric([now.version], 1)
    yield build


def _models(now: Snapshot) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "subsecond_model_info", "1; what the model is.",
        labels=["model", "certificate", "weights", "executor"],
    )  # fmt: skip
    one = {
        name: GaugeMetricFamily(f"subsecond_{name}", what, labels=["model"])
        for name, what in (
            ("num_requests_running", "Requests in the engine that have begun."),
            ("num_requests_waiting", "Requests in the engine that have not."),
            ("kv_cache_usage_ratio", "Part of the KV pages that requests hold."),
            ("cost_margin_ratio", "What promises add to predicted times."),
            ("capacity_requests_per_second", "Of 128 tokens in and 48 out, within the deadline."),
        )
    }
    pages = GaugeMetricFamily("subsecond_kv_cache_pages", "KV pages.", labels=["model", "state"])
    limit = GaugeMetricFamily(
        "subsecond_limit_tokens_per_second",
        "What this machine can do at most, by its measured steps, with so many answers at once.",
        labels=["model", "answers"],
    )
    for own in now.models:
        info.add_metric([own.name, own.certificate, own.weights, own.executor], 1)
        one["num_requests_running"].add_metric([own.name], own.running)
        one["num_requests_waiting"].add_metric([own.name], own.waiting)
        one["kv_cache_usage_ratio"].add_metric([own.name], own.kv_usage)
        one["cost_margin_ratio"].add_metric([own.name], own.margin)
        if own.capacity_per_s is not None:
            one["capacity_requests_per_second"].add_metric([own.name], own.capacity_per_s)
        for state, count in own.pages.items():
            pages.add_metric([own.name, state], count)
        for answers, rate in own.limits.items():
            limit.add_metric([own.name, str(answers)], rate)
    yield from (info, *one.values(), pages, limit)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"subsecond_{name}", what, value=value)


def _total(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(f"subsecond_{name}", what, value=value)
