"""What Prometheus reads.

Owns: the names, labels and buckets, and the registry. Does not know: routes, the engine. Labels are
our own words and the names of served models, so their number is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from subsecond.serve.ledger import Ledger

_SECONDS = (
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30,
)  # fmt: skip
_STEP_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1)
KIND = "text/plain; version=0.0.4; charset=utf-8"


class _Promises(Collector):
    """The ledger's counts, read when they are asked for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "subsecond_promises",
            "Promises by key, model, outcome (promised, kept, cancelled, broken, declined) and "
            "reason.",
            labels=["key", "model", "outcome", "reason"],
        )
        for row in self._ledger.rows():
            names = [row.key, row.model]
            for outcome in ("promised", "kept", "cancelled"):
                family.add_metric([*names, outcome, ""], getattr(row, outcome))
            for reason, count in row.broken.items():
                family.add_metric([*names, "broken", reason], count)
            for reason, count in row.declined.items():  # type: ignore[assignment]
                family.add_metric([*names, "declined", reason], count)
        yield family


class Metrics:
    """Of one server."""

    def __init__(self, ledger: Ledger) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_Promises(ledger))
        self._requests = Counter(
            "subsecond_requests", "Requests by route and status.", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "subsecond_tokens", "Tokens by kind (prompt, cached, completion).", ["model", "kind"],
            registry=registry,
        )  # fmt: skip
        self._queue = self._histogram("queue", "From the first byte to the first step.")
        self._first = self._histogram("ttft", "From the first byte to the first token.")
        self._between = self._histogram("itl", "Mean time between an answer's tokens.")
        self._total = self._histogram("request", "From the first byte to the answer's end.")
        self._steps = Histogram(
            "subsecond_step_seconds", "Steps of the engine.", ["model"], buckets=_STEP_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._batch = Gauge(
            "subsecond_requests_now", "Requests in the engine.", ["model", "state"],
            registry=registry,
        )  # fmt: skip
        self._pages = Gauge(
            "subsecond_kv_pages", "KV pages.", ["model", "state"], registry=registry
        )
        self._ready = Gauge("subsecond_ready", "1 if requests are taken.", registry=registry)
        self._lag = Gauge(
            "subsecond_loop_lag_seconds", "How long what arrived last had waited for the loop.",
            registry=registry,
        )  # fmt: skip
        self._restarts = Gauge(
            "subsecond_engine_restarts", "Starts of the engine process after the first.",
            registry=registry,
        )  # fmt: skip

    def watch(
        self, ready: Callable[[], float], lag_s: Callable[[], float], restarts: Callable[[], float]
    ) -> None:
        """What is asked when somebody reads."""
        self._ready.set_function(ready)
        self._lag.set_function(lag_s)
        self._restarts.set_function(restarts)

    def request(self, route: str, status: int) -> None:
        """A request has ended."""
        self._requests.labels(route, str(status)).inc()

    def answered(
        self, model: str, *, prompt: int, cached: int, queue_s: float, first_s: float,
        between_s: float | None, total_s: float,
    ) -> None:  # fmt: skip
        """An answer was given."""
        self._tokens.labels(model, "prompt").inc(prompt)
        self._tokens.labels(model, "cached").inc(cached)
        self._queue.labels(model).observe(queue_s)
        self._first.labels(model).observe(first_s)
        self._total.labels(model).observe(total_s)
        if between_s is not None:
            self._between.labels(model).observe(between_s)

    def tokens(self, model: str, count: int) -> None:
        """Tokens of answers."""
        if count:
            self._tokens.labels(model, "completion").inc(count)

    def step(
        self, model: str, seconds: float, *, running: int, waiting: int, used: int, cached: int,
        free: int,
    ) -> None:  # fmt: skip
        """A turn of the engine. used, cached, free: KV pages."""
        if seconds > 0:
            self._steps.labels(model).observe(seconds)
        self._batch.labels(model, "running").set(running)
        self._batch.labels(model, "waiting").set(waiting)
        self._pages.labels(model, "used").set(used)
        self._pages.labels(model, "cached").set(cached)
        self._pages.labels(model, "free").set(free)

    def text(self) -> bytes:
        """All of it in Prometheus' text form."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(
            f"subsecond_{name}_seconds", what, ["model"], buckets=_SECONDS, registry=self._registry
        )
