"""What Prometheus reads: names, units, and that the numbers are those of what happened."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from running import Running, serving

from subsecond.engine.cost import StepShape
from subsecond.engine.messages import StepStats
from subsecond.serve.ledger import Ledger, reasons
from subsecond.serve.metrics import MAX_ROWS, Answer, Metrics
from subsecond.serve.recent import SECONDS, WINDOW_S, Recent, latencies_of, percentiles
from subsecond.serve.schema.shared import Promise
from subsecond.serve.snapshot import ModelNow, Snapshot

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

MODEL = ModelNow(
    name="m", certificate="converted", weights="int4", executor="native", context=64, running=2,
    waiting=1, pages={"used": 3, "cached": 1, "free": 4}, margin=1.25, limits={1: 60.0, 4: 150.5},
    capacity_per_s=5.5, within_s=1.0,
)  # fmt: skip
NOW = Snapshot(
    version="9", unready="", lag_s=0.25, connections=7, restarts=2, engine_pid=None, audit_lost=3,
    ledger_problem=None, models=[MODEL],
)  # fmt: skip


def samples(text: bytes) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"subsecond_{name}", tuple(sorted(labels.items()))]


def promise(**fields: float | None) -> Promise:
    given = {"deadline_ms": 1000.0, "promised_tokens": 4, "kept": True, "queue_ms": 10.0,
             "prefill_ms": 40.0, "decode_ms": 300.0, "total_ms": 400.0, **fields}  # fmt: skip
    return Promise(on_deadline="finish", **given)  # type: ignore[arg-type]


def answer(**fields: float | None) -> Answer:
    return Answer("m", 20, 4, 16, ["stop"], promise(**fields))


def test_answers_are_measured_in_seconds_and_tokens() -> None:
    metrics = Metrics(Ledger())
    metrics.answered(answer())
    metrics.tokens("m", 1, None)
    metrics.tokens("m", 3, 0.125)
    metrics.tokens("m", 0, 99.0)
    metrics.request("chat", 200)
    found = samples(metrics.text(NOW))
    sums = {
        "time_to_first_token_seconds": 0.05, "request_queue_time_seconds": 0.01,
        "request_prefill_time_seconds": 0.04, "request_decode_time_seconds": 0.3,
        "time_per_output_token_seconds": 0.1, "e2e_request_latency_seconds": 0.4,
        "inter_token_latency_seconds": 0.125, "deadline_used_ratio": 0.4,
        "request_prompt_tokens": 20, "request_generation_tokens": 4,
    }  # fmt: skip
    for name, total in sums.items():
        assert value(found, f"{name}_sum", model="m") == pytest.approx(total), name
        assert value(found, f"{name}_count", model="m") == 1
    counters = {
        "prompt_tokens": 20, "generation_tokens": 4, "prefix_cache_queries": 20,
        "prefix_cache_hits": 16,
    }  # fmt: skip
    for name, count in counters.items():
        assert value(found, f"{name}_total", model="m") == count
    assert value(found, "request_success_total", model="m", finished_reason="stop") == 1
    assert value(found, "http_requests_total", route="chat", status="200") == 1


def test_a_single_token_has_no_time_between_tokens_and_no_deadline_no_part_of_it() -> None:
    metrics = Metrics(Ledger())
    without = promise(deadline_ms=None, promised_tokens=None, kept=None)
    metrics.answered(Answer("m", 5, 1, 0, ["length"], without))
    found = samples(metrics.text(NOW))
    assert value(found, "request_generation_tokens_count", model="m") == 1
    for name in ("time_per_output_token_seconds_count", "deadline_used_ratio_count"):
        assert (f"subsecond_{name}", (("model", "m"),)) not in found


def test_steps_and_how_things_stand() -> None:
    metrics = Metrics(Ledger())
    shape = StepShape(tokens=40, rows=3, sequences=3, positions=100, stored=100)
    metrics.step("m", StepStats(shape, 0.04, 2, 3, 0, 1, 8, 1))
    metrics.step("m", StepStats(None, 5.0, 0, 3, 0, 1, 8, 1))  # nothing was computed
    metrics.step("m", StepStats(shape, 0.04, 1, 3, 0, 1, 8, 1, drafted=7, accepted=5))
    found = samples(metrics.text(NOW))
    assert value(found, "step_time_seconds_sum", model="m") == pytest.approx(0.02 + 0.04)
    assert value(found, "batch_size_sum", model="m") == 3 + 3
    assert value(found, "batch_tokens_sum", model="m") == 40 + 40
    assert value(found, "spec_decode_num_draft_tokens_total", model="m") == 7
    assert value(found, "spec_decode_num_accepted_tokens_total", model="m") == 5
    assert value(found, "num_requests_running", model="m") == 2
    assert value(found, "num_requests_waiting", model="m") == 1
    assert value(found, "kv_cache_usage_ratio", model="m") == pytest.approx(3 / 8)
    assert value(found, "kv_cache_pages", model="m", state="cached") == 1
    assert value(found, "limit_tokens_per_second", model="m", answers="4") == 150.5
    assert value(found, "capacity_requests_per_second", model="m") == 5.5
    info = {"model": "m", "certificate": "converted", "weights": "int4", "executor": "native"}
    assert value(found, "model_info", **info) == 1
    assert value(found, "ready") == 1 and value(found, "connections") == 7
    assert (
        value(found, "engine_restarts_total") == 2 and value(found, "audit_lines_lost_total") == 3
    )
    assert value(found, "ledger_writable") == 1 and value(found, "build_info", version="9") == 1
    assert found["process_open_fds", ()] > 0


def test_the_ledger_is_there_with_its_zeros_and_bounded() -> None:
    ledger = Ledger()
    metrics = Metrics(ledger)
    made = [ledger.promise("k", "m") for _ in range(4)]
    made[0].keep()
    made[1].cancel()
    made[2].break_("late")
    ledger.decline("k", "m", "deadline")
    found = samples(metrics.text(NOW))
    own = {"key": "k", "model": "m"}
    assert value(found, "promises_made_total", **own) == 4
    assert value(found, "promises_open", **own) == 1
    assert value(found, "promises_ended_total", **own, outcome="kept", reason="") == 1
    assert value(found, "promises_ended_total", **own, outcome="broken", reason="late") == 1
    for kind, reason in reasons():
        if kind == "declined":
            expected = float(reason == "deadline")
            assert value(found, "declined_total", **own, reason=reason) == expected
    for index in range(2 * MAX_ROWS):
        ledger.decline(f"key{index}", "m", "full")
    found = samples(metrics.text(NOW))
    shown = [v for (name, labels), v in found.items()
             if name == "subsecond_declined_total" and ("reason", "full") in labels]  # fmt: skip
    assert len(shown) == MAX_ROWS + 1 and sum(shown) == 2 * MAX_ROWS


def test_the_window_forgets() -> None:
    now_s = 1000.0
    recent = Recent(lambda: now_s)
    recent.tokens(5)
    recent.answered(0.1, 0.01, 0.5)
    now_s += 1
    recent.tokens(7)
    now_s += 1
    assert recent.tokens_per_s()[-3:] == [0, 5, 7]
    assert len(recent.tokens_per_s()) == SECONDS - 1
    now_s += SECONDS
    assert sum(recent.tokens_per_s()) == 0
    recent.answered(0.2, None, 0.7)
    found = latencies_of(recent.answers())
    assert (found.answers, found.ttft_ms.p50, found.ttft_ms.p99) == (2, 100.0, 200.0)
    assert found.itl_ms.p50 == 10.0
    now_s += WINDOW_S - 1
    assert latencies_of(recent.answers()).answers == 1
    now_s += WINDOW_S
    assert latencies_of(recent.answers()).total_ms.p50 is None


def test_percentiles_are_values_that_occurred() -> None:
    found = percentiles([i / 1000 for i in range(1, 101)])
    assert (found.p50, found.p95, found.p99) == (50.0, 95.0, 99.0)
    assert percentiles([0.003]).p99 == 3.0


def test_a_server_tells_what_it_did(artifact: Path) -> None:
    async def read(running: Running) -> Samples:
        reply = await running.ask("/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        return samples(reply.body)

    async def main() -> None:
        async with serving(artifact, within_s=20.0) as running:
            for stream in (False, True):
                reply = await running.chat(
                    "hello there", max_tokens=200, ignore_eos=True, stream=stream
                )
                assert reply.status == 200
            assert (await running.chat(deadline_ms=1)).status == 429
            found = await read(running)
            assert value(found, "generation_tokens_total", model="m") == 400
            assert value(found, "inter_token_latency_seconds_count", model="m") >= 1
            for name in ("time_to_first_token", "request_queue_time", "e2e_request_latency"):
                assert value(found, f"{name}_seconds_count", model="m") == 2
                assert 0 < value(found, f"{name}_seconds_sum", model="m") < 20
            own = {"key": "", "model": "m"}
            assert value(found, "promises_made_total", **own) == 2
            assert value(found, "declined_total", **own, reason="deadline") == 1
            assert value(found, "batch_size_count", model="m") >= 6
            assert value(found, "http_requests_total", route="chat", status="429") == 1
            assert 0 < value(found, "limit_tokens_per_second", model="m", answers="4") < math.inf
            assert found["subsecond_engine_process_resident_memory_bytes", ()] > 1 << 20
            assert value(found, "connections") == 1
            pages = {name: value(found, "kv_cache_pages", model="m", state=name)
                     for name in ("used", "cached", "free")}  # fmt: skip
            assert pages["used"] == 0 and sum(pages.values()) > 0

    asyncio.run(main())
