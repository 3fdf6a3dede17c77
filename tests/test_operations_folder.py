"""What operators install: every figure that a rule or a panel reads is one that a server gives."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from subsecond.engine.cost import StepShape
from subsecond.engine.messages import StepStats
from subsecond.serve.ledger import Ledger
from subsecond.serve.metrics import Answer, Metrics
from subsecond.serve.schema.shared import Promise
from subsecond.serve.snapshot import ModelNow, Snapshot

OPS = Path(__file__).resolve().parent.parent / "ops"
NAME = re.compile(r"\b(?:subsecond|process)_[a-z0-9_]+")


def given() -> set[str]:
    """The names of all samples of a server that has done something."""
    ledger = Ledger()
    ledger.promise("k", "m").keep()
    metrics = Metrics(ledger)
    promise = Promise(deadline_ms=9.0, on_deadline="full", promised_tokens=2, kept=True,
                      queue_ms=1.0, prefill_ms=1.0, decode_ms=1.0, total_ms=3.0)  # fmt: skip
    metrics.answered(Answer("m", 2, 2, 0, ["stop"], promise))
    metrics.tokens("m", 1, 0.1)
    metrics.request("chat", 200)
    metrics.asked_cache("m", hit=True)
    metrics.step("m", StepStats(StepShape(1, 1, 1, 1, 1), 0.1, 1, 1, 0, 1, 2, 0))
    own = ModelNow(
        name="m", certificate="converted", weights="int4", executor="x", context=8, running=0,
        waiting=0, pages={"used": 0, "cached": 0, "free": 1}, margin=1.0, limits={1: 1.0},
        capacity_per_s=1.0, within_s=1.0,
    )  # fmt: skip
    now = Snapshot(version="0", unready="", lag_s=0.0, connections=0, restarts=0, engine_pid=None,
                   audit_lost=0, ledger_problem=None, models=[own])  # fmt: skip
    text = metrics.text(now).decode()
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"}
    engine = {f"subsecond_engine_{name}" for name in names if name.startswith("process_")}
    histograms = {name.removesuffix("_bucket") for name in names}
    return names | engine | histograms


def expressions(name: str) -> list[str]:
    text = (OPS / name).read_text("utf-8")
    if name.endswith(".json"):
        board = json.loads(text)
        return [
            *(target["expr"] for panel in board["panels"] for target in panel["targets"]),
            *(own["query"]["query"] for own in board["templating"]["list"][1:]),
            *(own["expr"] for own in board["annotations"]["list"]),
        ]
    return [text]


@pytest.mark.parametrize(
    "name", ["grafana.json", "alerts.yml", "alerts_test.yml", "../docs/serving.md"]
)
def test_every_name_is_one_that_is_given(name: str) -> None:
    used = {found for own in expressions(name) for found in NAME.findall(own)}
    assert len(used) > 8
    assert used <= given(), used - given()


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads((OPS / "grafana.json").read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 15
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_promtool_accepts_the_rules_the_dashboard_and_the_configuration() -> None:
    rules = {"groups": [{"name": "panels", "rules": [
        {"record": "x", "expr": re.sub(r"\$__(?:rate_interval|range)", "5m", own)}
        for own in expressions("grafana.json") if not own.startswith("label_values")
    ]}]}  # fmt: skip
    for words, text in (
        (["check", "rules", "alerts.yml"], None),
        (["test", "rules", "alerts_test.yml"], None),
        (["check", "config", "--syntax-only", "prometheus.yml"], None),
        (["check", "rules", "/dev/stdin"], json.dumps(rules)),
    ):
        run = subprocess.run(
            ["promtool", *words], cwd=OPS, input=text, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit() -> None:
    run = subprocess.run(
        ["systemd-analyze", "verify", str(OPS / "subsecond.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in run.stderr.splitlines() if "subsecond.service" in line]
    assert not told, told


def test_the_container_starts_with_a_shell_that_every_image_has() -> None:
    subprocess.run(["sh", "-n", str(OPS / "container-start")], check=True)
    docker = (OPS.parent / "Dockerfile").read_text("utf-8")
    assert "USER subsecond" in docker and "ops/container-start" in docker
