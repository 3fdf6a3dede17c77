"""OpenTelemetry spans, where they are configured.

Owns: the spans of a request, their names and attributes (the conventions for HTTP and for
generative models), and that they begin and end when it did. Does not know: where they are sent;
OpenTelemetry's own environment variables say that, and its own thread sends them. Prompts and
answers are never in them.
"""

from __future__ import annotations

import os
import threading
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from subsecond.errors import InputError
from subsecond.serve.audit import Entry

if TYPE_CHECKING:
    from subsecond.serve.exchange import Exchange

_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SERVER_FAULT = 500
CLOSING_S = 2.0


def configured() -> bool:
    """Whether the environment names a place to send spans to."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    off = os.environ.get("OTEL_TRACES_EXPORTER", "") == "none"
    return not disabled and not off and any(os.environ.get(name) for name in _VARIABLES)


def open_traces() -> Traces | None:
    """None where nothing is configured; InputError where the packages for it are missing."""
    if not configured():
        return None
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise InputError(
            f"{_VARIABLES[0]} is set, but OpenTelemetry is not installed; install "
            "subsecond[tracing], or unset it"
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return Traces(BatchSpanProcessor(OTLPSpanExporter()))


class Traces:
    """Spans of one server. processor: takes each when it has ended."""

    def __init__(self, processor: Any) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        name = os.environ.get("OTEL_SERVICE_NAME", "subsecond")
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": name}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("subsecond")
        self._extract, self._within = extract, set_span_in_context
        self._server_kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    def record(self, exchange: Exchange, entry: Entry) -> None:
        """The spans of a request that has ended."""
        to_wall_ns = time.time_ns() - time.monotonic_ns()
        start_ns = int(exchange.start_s * 1e9) + to_wall_ns
        carrier = {}
        for own in ("traceparent", "tracestate"):
            values = [v for k, v in exchange.scope["headers"] if k == own.encode()]
            if len(values) == 1:
                carrier[own] = bytes(values[0]).decode("latin-1")
        span = self._tracer.start_span(
            f"{exchange.method} {entry.action}",
            context=self._extract(carrier),
            kind=self._server_kind,
            start_time=start_ns,
            attributes=_attributes(exchange, entry),
        )
        if entry.status >= _SERVER_FAULT:
            span.set_status(self._failed)
        stages = exchange.stages
        if stages is not None:
            at_ns = start_ns
            context = self._within(span)
            for name in ("queue", "prefill", "decode"):
                end_ns = at_ns + int(getattr(stages, f"{name}_ms") * 1e6)
                stage = self._tracer.start_span(name, context=context, start_time=at_ns)
                stage.end(end_ns)
                at_ns = end_ns
        span.end(time.monotonic_ns() + to_wall_ns)

    def close(self) -> None:
        """Sends what waits, if it is taken soon."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(CLOSING_S)


def _attributes(exchange: Exchange, entry: Entry) -> dict[str, Any]:
    given = {
        "http.request.method": exchange.method,
        "http.route": exchange.scope.get("subsecond.route"),
        "http.response.status_code": entry.status,
        "client.address": entry.client,
        "gen_ai.operation.name": entry.action,
        "gen_ai.provider.name": "subsecond",
        "gen_ai.request.model": entry.model,
        "gen_ai.usage.input_tokens": entry.prompt_tokens,
        "gen_ai.usage.output_tokens": entry.completion_tokens,
        "subsecond.request.id": entry.request,
        "subsecond.key.id": entry.key,
        "subsecond.outcome": entry.outcome,
        "subsecond.deadline_ms": entry.deadline_ms,
        "subsecond.promised": entry.promised,
        "subsecond.kept": entry.kept,
    }
    return {name: value for name, value in given.items() if value is not None}
