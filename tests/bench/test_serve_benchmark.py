"""benchmarks/serve.py from end to end, on scripted servers in processes of their own."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("httptools", reason="extra [bench]")

import serve

STAND_IN = f"{shlex.quote(sys.executable)} {Path(__file__).with_name('stand_in.py')} {{port}}"
QUICK = [
    *("--seconds", "0.2", "--rates", "50,20", "--deadline-ms", "60000"),
    *("--streams", "3", "--stream-tokens", "5"),
]


def test_rounds_of_two_systems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "serve.json"
    systems = ["--system", f"subsecond={STAND_IN}", "--system", f"other, 1 slot={STAND_IN}"]
    assert serve.main([*systems, *QUICK, "--rounds", "2", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["failures"] == []
    seen = {(cell["system"], cell["round"], cell["rate"]) for cell in found["cells"]}
    expected = {
        (name, number, rate)
        for name in ("subsecond", "other, 1 slot")
        for number in (1, 2)
        for rate in (20.0, 50.0, None)
    }
    assert seen == expected and len(found["cells"]) == len(expected)
    for cell in found["cells"]:
        counts = cell["summary"]["all"]
        assert counts["on_time"] == counts["requests"]
        if cell["rate"] is None:
            assert counts["requests"] == 3 and cell["summary"]["tokens"] == 15
    printed = capsys.readouterr().out
    assert "best of ours over best of other:" in printed and "in 2 rounds" in printed


def test_a_system_that_fails_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "serve.json"
    broken = f"{shlex.quote(sys.executable)} -c 'raise SystemExit(\"no model\")' {{port}}"
    systems = ["--system", f"subsecond={STAND_IN}", "--system", f"other={broken}"]
    assert serve.main([*systems, *QUICK, "--rounds", "1", "--out", str(out)]) == 0
    (failure,) = json.loads(out.read_text())["failures"]
    assert failure["system"] == "other" and "no model" in failure["reason"]
    assert "other: no answer on time in 1 rounds" in capsys.readouterr().out
    missing = "subsecond=/nonexistent/program {port}"
    assert serve.main(["--system", missing, *QUICK, "--rounds", "1"]) == 1


def test_the_loads_of_all_rounds_share_no_prompt() -> None:
    options = serve.parsed(["--system", "a=b {port}", "--rates", "4,2,8", "--seconds", "5"])
    prompts = [
        arrival.body["prompt"]
        for number in (1, 2)
        for _, schedule in serve.loads(options.system[0], options, number)
        for arrival in schedule.arrivals
    ]
    assert len(prompts) > 100
    assert len({tuple(prompt.split()[:8]) for prompt in prompts}) == len(prompts)


def test_a_command_needs_its_port() -> None:
    with pytest.raises(SystemExit):
        serve.main(["--system", "subsecond=serve"])
