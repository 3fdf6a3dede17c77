"""Spans: whose they are, when they began and ended, and what is never in them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from running import serving

from subsecond.errors import InputError
from subsecond.serve import traces
from subsecond.serve.server import Server

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def test_nothing_is_loaded_unless_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert traces.open_traces() is None
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    assert traces.configured()
    monkeypatch.setattr(traces, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"subsecond\[tracing\]"):
        traces.open_traces()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert traces.open_traces() is None


def test_a_request_and_its_stages_are_spans(artifact: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind, StatusCode

    memory = InMemorySpanExporter()
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

    async def main() -> None:
        async with serving(artifact, within_s=20.0) as running:
            running.server.traces = traces.Traces(SimpleSpanProcessor(memory))
            begun_ns = time.time_ns()
            header = {"traceparent": f"00-{trace}-{parent}-01", "user-agent": "canary-of-a-header"}
            reply = await running.chat("canary-of-a-prompt", headers=header)
            assert reply.status == 200
            ended_ns = time.time_ns()
            assert (await running.ask("/v1/models/canary-of-a-path")).status == 404
            await running.ask("/health/ready")
            spans = {span.name: span for span in memory.get_finished_spans()}
            assert set(spans) == {"queue", "prefill", "decode", "POST chat", "GET model"}
            chat = spans["POST chat"]
            assert f"{chat.context.trace_id:032x}" == trace
            assert f"{chat.parent.span_id:016x}" == parent and chat.kind == SpanKind.SERVER
            assert begun_ns - 5e6 <= chat.start_time < chat.end_time <= ended_ns + 5e6
            stages = [spans[name] for name in ("queue", "prefill", "decode")]
            assert stages[0].start_time == chat.start_time
            for stage, after in zip(stages, [*stages[1:], None], strict=True):
                assert stage.parent.span_id == chat.context.span_id
                assert stage.start_time <= stage.end_time <= chat.end_time + 1e6
                assert after is None or stage.end_time == after.start_time
            given = dict(chat.attributes)
            assert given["http.route"] == "/v1/chat/completions"
            assert given["http.response.status_code"] == 200
            assert given["gen_ai.request.model"] == "m" and given["subsecond.kept"] is True
            assert given["gen_ai.usage.output_tokens"] > 0
            assert chat.status.status_code == StatusCode.UNSET
            for span in spans.values():
                assert "canary" not in span.to_json()

    asyncio.run(main())


def test_a_server_takes_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, artifact: Path
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    made: list[Server] = []

    async def main() -> None:
        async with serving(artifact) as running:
            assert running.server.traces is not None
            made.append(running.server)

    asyncio.run(main())
    assert made
