"""The decoder benchmark's configuration, processes and rounds, with fake systems that need nothing
but Python.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import decoder
import decoder_process
import pytest
from decoder_config import ConfigError, Lengths, System, check_systems, parse_peer, read_systems
from decoder_floors import Machine
from decoder_process import ProcessError, job_of, run_command, run_measures, time_cold

FAKE_WORKER = """
import json, sys, time
job = json.load(open(sys.argv[1]))
if sys.argv[2:] == ["cold"]:
    print("noise of a library")
    print("@first " + json.dumps(" the"), flush=True)
    time.sleep(60)
speed = {"subsecond": 300.0, "llamacpp": 100.0}.get(job["adapter"], 50.0)
if job["format"] == "broken":
    sys.exit("no such kernel")
if job["format"] == "stuck":
    time.sleep(60)
print("noise of a library")
print("@result " + json.dumps({"measure": "load", "values": [0.1], "version": "fake 1"}))
for measure in job["measures"]:
    print("@result " + json.dumps({"measure": measure, "values": [speed]}))
    if measure == "decode":
        print("@result " + json.dumps({"measure": "memory", "values": [100.0]}))
"""


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps({"ids": list(range(2000)), "text": "one two three"}))
    return path


@pytest.fixture(autouse=True)
def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fake_worker.py"
    path.write_text(FAKE_WORKER)
    monkeypatch.setattr(decoder_process, "WORKER", path)


def system(name: str = "llama.cpp", kind: str = "q4_0", **more: Any) -> System:
    return System(name, sys.executable, str(Path(__file__)), kind, **more)


def job(of: System, ids: Path, *measures: str) -> dict[str, Any]:
    return job_of(of, measures, ids=ids, threads=2, lengths=Lengths(), offset=0)


def test_a_worker_reports_its_measures(ids: Path) -> None:
    reports = run_measures(system(), job(system(), ids, "decode", "memory", "prefill"), 20)
    assert reports["decode"]["values"] == [100.0]
    assert set(reports) == {"load", "decode", "memory", "prefill"}


def test_a_failing_worker_is_an_error_with_its_complaint(ids: Path) -> None:
    with pytest.raises(ProcessError, match="exit status 1: no such kernel"):
        run_measures(system(kind="broken"), job(system(kind="broken"), ids, "decode"), 20)


def test_a_worker_that_hangs_is_ended(ids: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(ProcessError, match=r"not done after 0\.5 s"):
        run_measures(system(kind="stuck"), job(system(kind="stuck"), ids, "decode"), 0.5)
    assert time.monotonic() - begin < 30


def test_an_interpreter_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ProcessError, match="cannot start"):
        run_command(["/nonexistent/python"], 5)


def test_a_measure_that_was_not_reported_is_an_error(ids: Path, tmp_path: Path) -> None:
    (tmp_path / "fake_worker.py").write_text("print('nothing')")
    with pytest.raises(ProcessError, match="did not report decode"):
        run_measures(system(), job(system(), ids, "decode"), 20)


def test_the_cold_start_ends_at_the_first_token(ids: Path) -> None:
    report = time_cold(system(), job(system(), ids, "cold"), 20)
    assert report["text"] == " the"
    assert 0 < report["values"][0] < 20


def run_of(
    ids: Path, systems: list[System], measures: tuple[str, ...], rounds: int = 2
) -> decoder.Run:
    return decoder.Run(
        "smollm2", systems, measures, rounds, ids, 2, Lengths(), 20.0, all_formats=False
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Machine({"read_bytes_per_s": 4e10}, {"decode": 400.0})
    monkeypatch.setattr(decoder, "measure_machine", lambda *_: found)


@pytest.mark.usefixtures("machine")
def test_rounds_compare_all_systems_and_leave_out_a_failed_one(ids: Path) -> None:
    systems = [
        system("subsecond", "int4"),
        system(),
        system("transformers", "broken"),
        System("onnxruntime-genai", sys.executable, "/nonexistent/model", "int4"),
    ]
    run = run_of(ids, systems, ("decode", "memory"))
    saved: list[int] = []
    decoder.run_rounds(run, lambda: saved.append(len(run.samples)))
    assert saved == [4, 8]  # 2 systems, 2 measures, 2 rounds
    reasons = {failure["system"]: failure["reason"] for failure in run.failures}
    assert reasons == {
        "onnxruntime-genai int4": "no model at model",
        "transformers broken": "exit status 1: no such kernel",
    }
    result = decoder.result_of(run)
    assert result["summary"][0]["ratio"]["median"] == 3.0
    assert result["summary"][0]["share"]["median"] == 0.75
    assert result["versions"]["llama.cpp q4_0"] == "fake 1"
    text = decoder.text_of(run)
    assert "**3.00x**" in text
    assert "no such kernel" in text
    json.dumps(result)


@pytest.mark.usefixtures("machine")
def test_perplexity_is_measured_once_and_held_against_the_reference(ids: Path) -> None:
    reference = system("transformers", "float32", reference=True)
    run = run_of(ids, [system("subsecond", "int4"), reference], ("perplexity", "decode"))
    decoder.run_rounds(run, lambda: None)
    assert [s.system for s in run.samples if s.measure == "perplexity"] == ["subsecond int4"]
    assert [f.value for f in run.floors if f.measure == "perplexity"] == [50.0]
    assert not [s for s in run.samples if s.system == reference.label]


def test_limits_that_cannot_be_measured_are_one_failure(
    ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Machine:
        raise ProcessError("no native module")

    monkeypatch.setattr(decoder, "measure_machine", fail)
    run = run_of(ids, [system("subsecond", "int4"), system()], ("decode",))
    decoder.run_rounds(run, lambda: None)
    assert [failure["system"] for failure in run.failures] == [decoder.LIMITS]
    assert len(run.samples) == 4


def test_the_example_configuration_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUBSECOND", "PEERS", "MODELS"):
        monkeypatch.setenv(name, f"/opt/{name.lower()}")
    path = Path(decoder.__file__).parent / "peers.example.toml"
    systems = read_systems(path, "smollm2")
    check_systems(systems)
    assert {s.name for s in systems} == set(decoder.config.ADAPTERS)
    assert systems[0].model == "/opt/models/smollm2-subsecond"
    assert len(read_systems(path, "llama-3.2-1b")) == len(systems) - 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[system]]\nname = "llama.cpp"', "python must be a text"),
        ('[[system]]\nname = "other"\n', "name 'other' is not one of"),
        ('[[system]]\nname = "llama.cpp"\nspeed = 1', "unknown key 'speed'"),
        ('[[system]]\nname = "llama.cpp"\npython = "$NO_SUCH_NAME/p"', "NO_SUCH_NAME is not set"),
        ("[[system]\n", "Expected"),
        ("[peers]\n", "unknown key 'peers'"),
        (
            '[[system]]\nname="llama.cpp"\npython="p"\nmodel="m"\nformat="f"\nmeasures=["x"]',
            "measure 'x'",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_systems(path, "smollm2")


def test_peers_on_the_command_line() -> None:
    peer = parse_peer("llama.cpp=/p/bin/python:/m/a=b.gguf:q4_0")
    assert (peer.name, peer.python, peer.model, peer.format) == (
        "llama.cpp",
        "/p/bin/python",
        "/m/a=b.gguf",
        "q4_0",
    )
    with pytest.raises(ConfigError, match="must be NAME=PYTHON:MODEL:FORMAT"):
        parse_peer("llama.cpp=/p/bin/python")
    with pytest.raises(ConfigError, match="exactly one must be"):
        check_systems([peer])


def test_bad_use_is_exit_code_2(ids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert decoder.main(["--ids", str(ids), "--measure", "decode,speed"]) == 2
    assert "--measure 'speed'" in capsys.readouterr().err
    assert decoder.main(["--ids", "/nonexistent/ids.json"]) == 2
    assert decoder.main(["--ids", str(ids)]) == 2  # no system at all


@pytest.mark.usefixtures("machine")
def test_slow_peers_are_held_beside_a_spinning_process_once(ids: Path) -> None:
    run = run_of(ids, [system("subsecond", "int4"), system()], ("spin",), rounds=3)
    decoder.run_rounds(run, lambda: None)
    assert [s.round for s in run.samples if s.system == "llama.cpp q4_0"] == [1]
    assert [s.round for s in run.samples if s.system == "subsecond int4"] == [1, 2, 3]


@pytest.mark.usefixtures("machine")
def test_kept_results_name_no_folder(ids: Path, tmp_path: Path) -> None:
    gone = System("transformers", sys.executable, str(tmp_path / "gone"), "bfloat16")
    run = run_of(ids, [system("subsecond", "int4"), gone], ("decode",))
    decoder.run_rounds(run, lambda: None)
    kept = json.dumps(decoder.result_of(run))
    assert str(tmp_path) not in kept
    assert str(Path(__file__).parent) not in kept
    assert "no model at gone" in kept
