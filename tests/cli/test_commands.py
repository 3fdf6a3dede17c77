"""The command line from outside: what each command prints, and what every mistake costs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from subsecond.cli.inspect_command import _show

Run = Callable[..., "subprocess.CompletedProcess[str]"]
FIGURES = re.compile(
    r"\[\d+ \+ \d+ tokens; first token \d+\.\d\d s after start; .*; peak memory \d+ MB\]"
)


def assert_refused(done: subprocess.CompletedProcess[str], words: str, code: int = 2) -> None:
    """One line on stderr that says what is wrong; no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("subsecond") and "error: " in last
    assert re.search(words, last), last


def test_generate_streams_the_answer_and_one_line_of_figures(run: Run, tiny_artifact: Path) -> None:
    done = run("generate", "the sky", "-m", str(tiny_artifact), "--max-tokens", "8", "--ignore-eos")
    assert done.returncode == 0
    assert done.stdout.endswith("\n")
    assert len(done.stdout) > 4
    (line,) = done.stderr.strip().splitlines()
    assert FIGURES.fullmatch(line)
    assert " + 8 tokens" in line


def test_generate_json_and_stdin(run: Run, tiny_artifact: Path) -> None:
    common = ("-m", str(tiny_artifact), "--max-tokens", "6", "--ignore-eos", "--raw", "--json")
    done = run("generate", "the sky", *common)
    result = json.loads(done.stdout)
    assert done.stderr == ""
    assert (result["completion_tokens"], result["finish_reason"]) == (6, "length")
    assert result["first_token_s"] > 0
    assert result["peak_memory_mb"] > 10
    piped = json.loads(run("generate", "-", *common, input="the sky").stdout)
    assert piped["text"] == result["text"]
    assert piped["prompt_tokens"] == result["prompt_tokens"]


def test_the_chat_template_is_used_unless_raw(inline: Run, tiny_artifact: Path) -> None:
    common = ("-m", str(tiny_artifact), "--max-tokens", "2", "--json")
    plain = json.loads(inline("generate", "the sky", *common, "--raw").stdout)
    chat = json.loads(inline("generate", "the sky", *common).stdout)
    system = json.loads(inline("generate", "the sky", *common, "--system", "be brief").stdout)
    assert plain["prompt_tokens"] < chat["prompt_tokens"] < system["prompt_tokens"]


def test_a_seed_and_a_stop_string(inline: Run, tiny_artifact: Path) -> None:
    common = (
        "generate",
        "x",
        "-m",
        str(tiny_artifact),
        "--max-tokens",
        "20",
        "--json",
        "--ignore-eos",
    )
    first = json.loads(inline(*common, "--temperature", "1", "--seed", "3").stdout)
    again = json.loads(inline(*common, "--temperature", "1", "--seed", "3").stdout)
    assert first["text"] == again["text"]
    stop = first["text"][4:6]
    stopped = json.loads(
        inline(*common, "--temperature", "1", "--seed", "3", "--stop", stop).stdout
    )
    assert stopped["text"] == first["text"][: first["text"].find(stop)]
    assert stopped["finish_reason"] == "stop"


def test_generating_imports_nothing_heavy(run: Run, tiny_artifact: Path) -> None:
    code = (
        "import sys; from subsecond.cli import main\n"
        f"assert main(['generate', 'x', '-m', {str(tiny_artifact)!r}, '--max-tokens', '3']) == 0\n"
        "heavy = ['numpy', 'torch', 'transformers', 'ray', 'gguf', 'huggingface_hub', 'tqdm', "
        "'asyncio']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", ""], "prompt is empty"),
        (["generate", "x", "--temperature", "-1"], "temperature must be a number from 0"),
        (["generate", "x", "--temperature", "nan"], "temperature.*nan"),
        (["generate", "x", "--top-p", "0"], "top_p must be a number above 0"),
        (["generate", "x", "--top-k", "-5"], "top_k"),
        (["generate", "x", "--max-tokens", "0"], "max_tokens must be an integer from 1"),
        (["generate", "x", "--max-tokens", "99999"], "max_tokens is 99999.*context of 512"),
        (["generate", "x", "--seed", "-1"], "seed"),
        (["generate", "x", "--threads", "0"], "threads must be an integer from 1"),
        (["generate", "x", "--context", "100000"], "context is 100000, more than the 512"),
        (["generate", "x", "--stop", ""], "stop"),
        (["generate", "x", "--raw", "--system", "y"], "--system"),
        (["generate", "y " * 600], "doesn't fit the context of 512"),
        (["generate", "x", "--weights", "int8"], "int4, not int8"),
    ],
)  # fmt: skip
def test_bad_values_cost_one_line_and_exit_code_2(
    inline: Run, tiny_artifact: Path, arguments: list[str], words: str
) -> None:
    assert_refused(inline(*arguments, "-m", str(tiny_artifact)), words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "x", "-m", "no/such/place/at/all"],
        ["generate", "x", "-m", ""],
        ["inspect", "/nowhere"],
        ["pull", "/nowhere"],
    ],
)
def test_models_that_do_not_exist(inline: Run, arguments: list[str]) -> None:
    assert_refused(inline(*arguments), "model|alias|hub|nowhere")


def test_bad_use_is_exit_code_2(inline: Run) -> None:
    for arguments in (
        [],
        ["nothing"],
        ["generate"],
        ["generate", "x", "--top-k", "many"],
        ["convert", "x"],
    ):
        done = inline(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "usage:" in done.stderr
    assert inline("--version").stdout.startswith("subsecond ")
    for command in ("generate", "chat", "pull", "convert", "inspect", "bench"):
        assert inline(command, "--help").stdout.startswith(f"usage: subsecond {command}")


def test_standard_input_is_bounded_and_must_be_utf8(run: Run, tiny_artifact: Path) -> None:
    command = ("generate", "-", "-m", str(tiny_artifact))
    assert_refused(run(*command, input="x" * 10_000_000), "more than 1,048,576 bytes")
    assert_refused(run(*command, input=b"\xff\xfe"), "not valid UTF-8")
    assert_refused(run(*command, input=""), "prompt is empty")


def test_arguments_that_are_not_utf8(inline: Run, tiny_artifact: Path) -> None:
    assert_refused(
        inline("generate", "x\udcff", "-m", str(tiny_artifact)), "lone surrogate U\\+DCFF"
    )


def test_a_damaged_artifact_is_named(inline: Run, tiny_artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_artifact.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-64])
    assert_refused(inline("generate", "x", "-m", str(copy)), "weights.bin")
    (copy / "weights.bin").unlink()
    assert_refused(inline("generate", "x", "-m", str(copy)), "weights.bin")


def test_convert_pull_and_inspect(
    inline: Run, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    done = inline("convert", str(tiny_checkpoint), "-o", str(out), "--weights", "int8", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["path"] == str(out)
    assert result["tensors"] > 10
    assert (out / "manifest.json").exists()
    pulled = json.loads(inline("pull", str(tiny_checkpoint), "--json").stdout)
    assert Path(pulled["path"], "manifest.json").exists()
    shown = json.loads(inline("inspect", str(out), "--json", "--threads", "1").stdout)
    assert (shown["family"], shown["weights"], shown["context"]) == ("llama", "int8", 512)
    assert shown["bytes_per_token"] > 0
    assert (
        shown["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2
    )  # layers, K and V, heads, head_dim, bf16
    assert shown["limit_tokens_per_s"] > shown["limit_tokens_per_s_full_context"] > 0
    assert shown["program"].startswith("program llama")
    _show(shown, whole=True)
    text = capfd.readouterr().out
    assert "= attention(" in text
    assert "speed limit" in text
    _show(shown, whole=False)
    assert "--program prints all" in capfd.readouterr().out


def test_chat_takes_turns_and_commands(run: Run, tiny_artifact: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    lines = [
        "/help", "hello", "/system be the sea", "one", "two", f"/save {saved}", "/retry", "/reset",
        f"/load {saved}",
        "/history", "/nothing", "/save", "/load /nowhere", "/exit", "never read",
    ]  # fmt: skip
    command = ("chat", "-m", str(tiny_artifact), "--max-tokens", "5")
    done = run(*command, input="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "/reset" in done.stderr
    assert "unknown command /nothing" in done.stderr
    assert "/save needs a file name" in done.stderr
    assert "can't read /nowhere" in done.stderr
    conversation = json.loads(saved.read_text("utf-8"))
    assert [m["role"] for m in conversation] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in conversation[:4:3]] == ["be the sea", "two"]
    assert "system: be the sea" in done.stdout
    assert "user: two" in done.stdout
    assert "never read" not in done.stdout


def test_standard_output_that_is_full_or_closed(tiny_artifact: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m subsecond generate x -m {tiny_artifact} --max-tokens 3"
    for redirection, code, words in ((">/dev/full", 1, "No space left"), (">&-", 0, "tokens;")):
        done = subprocess.run(
            ["sh", "-c", f"{command} {redirection}"],
            capture_output=True,
            text=True,
            env={**os.environ, "SUBSECOND_HOME": str(tmp_path)},
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_bench_measures_beside_the_limits(
    inline: Run, tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from subsecond.bench import limits

    machine = limits.Limits(1, 1e10, 1e12, 1e12, 1e11)
    monkeypatch.setattr(limits, "measure", lambda threads: machine)
    lengths = {"prompt": 8, "new": 4, "prefill": 16, "sequences": 2, "repetitions": 1}
    sizes = ["--threads", "1", *(f"--{name}={value}" for name, value in lengths.items())]
    result = json.loads(inline("bench", "-m", str(tiny_artifact), *sizes, "--json").stdout)
    assert len(result["figures"]) == 3
    assert all(figure["median"] > 0 for figure in result["figures"])
    text = inline("bench", "-m", str(tiny_artifact), *sizes).stdout
    assert "tok/s" in text
    assert "limit" in text
    assert_refused(inline("bench", "-m", str(tiny_artifact), "--new", "1"), "new is 1")


def start(arguments: list[str], home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "subsecond", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SUBSECOND_HOME": str(home)},
    )


def endless(tiny_artifact: Path) -> list[str]:
    return [
        "generate",
        "x",
        "-m",
        str(tiny_artifact),
        "--ignore-eos",
        "--temperature",
        "1.5",
        "--seed",
        "1",
    ]


def test_ctrl_c_ends_cleanly(tiny_artifact: Path, tmp_path: Path) -> None:
    process = start(["chat", "-m", str(tiny_artifact), "--max-tokens", "3"], tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    while process.stdout.read(1) not in (b"\n", b""):  # the answer: it now waits for the next line
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.decode().strip() == "subsecond: interrupted"


def test_a_reader_that_leaves_is_no_error(tiny_artifact: Path, tmp_path: Path) -> None:
    process = start(endless(tiny_artifact), tmp_path)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdin is not None
    process.stdin.close()
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) in (0, 141)  # 0: it had written all before
    assert b"Traceback" not in errors
    assert b"rror" not in errors


@pytest.mark.parametrize("arguments", [("generate", "-"), ("chat",)])
def test_a_closed_standard_input_is_refused(tiny_artifact: Path, arguments: tuple[str]) -> None:
    command = 'exec "$0" -m subsecond "$@" <&-'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, *arguments, "-m", str(tiny_artifact)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert_refused(done, "standard input is closed")
