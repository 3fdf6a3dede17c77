"""Mistakes in the command line: one line that names the option or value and the fix, code 2."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from subsecond.cli import options
from subsecond.cli.bench_command import fitting

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no command is given; commands: generate, "),
        (["genrate", "x"], "unknown command 'genrate'; did you mean generate?"),
        (["xyzzy"], "unknown command 'xyzzy'; commands: generate, chat"),
        (["--json", "generate"], "unknown option '--json' before the command"),
        (["generate"], "prompt is missing (the prompt; - reads it from standard input)"),
        (["convert"], "model is missing"),
        (["convert", "x"], "--output is missing (the folder to write)"),
        (["verify"], "artifact is missing"),
        (["generate", "x", "y"], "unexpected argument 'y'; quote a text of several words"),
        (["generate", "x", "--temprature", "1"], "unknown option '--temprature'; did you mean --"),
        (["generate", "x", "--temp", "1"], "unknown option '--temp'; did you mean --temperature?"),
        (["generate", "--prompt", "x"], "unknown option '--prompt'"),
        (["generate", "-x"], "unknown option '-x'; a value that begins with '-' is written --OPT"),
        (["generate", "--", "x", "--json"], "unexpected argument '--json' after '--'"),
        (["generate", "x", "--top-k", "many"], "--top-k must be an integer, not 'many'"),
        (["generate", "x", "--top-k", "1_0"], "--top-k must be an integer, not '1_0'"),
        (["generate", "x", "--max-tokens", "1_0"], "--max-tokens must be an integer, not '1_0'"),
        (["generate", "x", "--max-tokens", "\u0663"], "--max-tokens must be an integer, not '"),
        (["generate", "x", "--temperature", "1_0"], "--temperature must be a number, not '1_0'"),
        (["generate", "x", "--min-p", "\u0661"], "--min-p must be a number, not '"),
        (["generate", "x", "--logit-bias=--"], "--logit-bias must be ID=BIAS, such as 42=-100, n"),
        (["generate", "x", "--top-k=--"], "--top-k must be an integer, not '--'"),
        (["generate", "x", "--weights=--"], "--weights must be one of int4, int8, bf16, f32, not"),
        (["generate", "x", "--top-k", "2.5"], "--top-k must be an integer, not '2.5'"),
        (["generate", "x", "--seed", "9" * 5000], "--seed must be an integer of at most 20 digits"),
        (["generate", "x", "--top-p", "y" * 99], f"--top-p must be a number, not '{'y' * 57}...'"),
        (["generate", "x", "--top-p"], "--top-p needs a value (one that begins with '-' is writt"),
        (["generate", "x", "--json=1"], "--json takes no value"),
        (["generate", "x", "--weights", "int5"], "--weights must be one of int4, int8, bf16, f32,"),
        (["inspect", "--kv", ""], "--kv must be one of bf16, int8, f32, not ''"),
        (["chat", "--isa", "\x1b[31m"], r"not '\x1b[31m'"),
    ],
)  # fmt: skip
def test_one_line_names_the_mistake(inline: Run, arguments: list[str], words: str) -> None:
    done = inline(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("subsecond: error: ")
    assert words in line
    known = arguments and arguments[0] in options.COMMANDS
    help = f"subsecond {arguments[0]} --help" if known else "subsecond --help"
    assert line.endswith(f"; see '{help}'")


def test_what_looks_like_an_option_can_be_a_value() -> None:
    for words, name, value in (
        (["--", "-x"], "prompt", "-x"),
        (["-5 + 3"], "prompt", "-5 + 3"),
        (["-"], "prompt", "-"),
        (["x", "--stop=--x"], "stop", ["--x"]),
        (["x", "--stop=--"], "stop", ["--"]),
        (["--system=--", "--", "--"], "system", "--"),
        (["--system=--", "--", "--"], "prompt", "--"),
        (["x", "--presence-penalty", "-1.5"], "presence_penalty", -1.5),
        (["x", "--temperature=-1e5"], "temperature", -1e5),
        (["x", "-mM"], "model", "M"),
    ):
        assert getattr(options.parse(["generate", *words])[1], name) == value


def test_help_is_complete(inline: Run) -> None:
    text = inline("--help")
    assert text.returncode == 0
    assert text.stderr == ""
    for command in options.COMMANDS:
        assert command in text.stdout
        own = inline(*command.split(), "--help")
        assert own.returncode == 0
        assert own.stdout.startswith(f"usage: subsecond {command}")
    assert "is written ./NAME" in " ".join(inline("generate", "--help").stdout.split())
    assert inline("--version").stdout.startswith("subsecond ")


@pytest.mark.parametrize("context", [3, 4, 63, 64, 255, 256, 512, 513, 8192])
def test_the_default_lengths_of_bench_fit_any_context(context: int) -> None:
    from subsecond.bench.decode import Lengths

    lengths = Lengths(**fitting({}, context))
    lengths.check(context)
    if context > 512:
        assert (lengths.prompt, lengths.new, lengths.prefill) == (128, 128, 512)
    assert fitting({"prompt": 1, "new": 2, "prefill": 900}, context) == {
        "prompt": 1, "new": 2, "prefill": 900,
    }  # fmt: skip
    assert fitting({"new": 2}, context)["prompt"] == min(128, context - 2)
