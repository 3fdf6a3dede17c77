"""The command line from outside: what each command prints, and what every mistake costs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
FIGURES = re.compile(
    r"\[\d+ \+ \d+ tokens; first token \d+\.\d\d s after start; .*; peak memory \d+ MB"
    r"(; stopped at --max-tokens|; context full)?\]"
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits, without seconds of measuring."""
    from subsecond.bench import limits

    known = limits.Limits(1, 1e10, 1e12, 1e12, 1e11)
    monkeypatch.setattr(limits, "measure", lambda threads: known)


def assert_refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    """Code 2, and nothing but one line on stderr that says what is wrong."""
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("subsecond: error: ")
    assert re.search(words, line), line


def test_generate_streams_the_answer_and_one_line_of_figures(run: Run, tiny_artifact: Path) -> None:
    done = run("generate", "the sky", "-m", str(tiny_artifact), "--max-tokens", "8", "--ignore-eos")
    assert done.returncode == 0
    assert done.stdout.endswith("\n")
    (line,) = done.stderr.strip().splitlines()
    assert FIGURES.fullmatch(line)
    assert " + 8 tokens" in line
    assert line.endswith("; stopped at --max-tokens]")


def test_an_answer_that_was_cut_says_so(inline: Run, tiny_artifact: Path) -> None:
    common = ("generate", "the sky", "-m", str(tiny_artifact), "--raw")
    full = inline(*common, "--context", "30", "--ignore-eos").stderr
    assert full.endswith("; context full]\n")
    ids = json.loads(inline(*common, "--max-tokens", "3", "--ignore-eos", "--json").stdout)
    stop = str(ids["token_ids"][1])
    ended = inline(*common, "--max-tokens", "9", "--stop-token-id", stop).stderr
    assert ended.endswith(" MB]\n")


def test_an_answer_that_fits_a_schema(inline: Run, tiny_artifact: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}')
    common = ("generate", "the sky", "-m", str(tiny_artifact), "--raw", "--json-schema")
    done = inline(*common, str(schema), "--max-tokens", "200")
    assert done.returncode == 0
    assert set(json.loads(done.stdout)) <= {"a", "b"}
    schema.write_text('{"type": "colour"}')
    assert_refused(inline(*common, str(schema)), "colour")
    assert_refused(inline(*common, str(tmp_path / "absent")), "absent")


def test_every_text_with_its_tokens_and_logprobs(inline: Run, tiny_artifact: Path) -> None:
    common = ("generate", "the sky", "-m", str(tiny_artifact), "--raw", "--max-tokens", "5")
    common = (*common, "--ignore-eos", "--temperature", "1", "--seed", "4", "--n", "3")
    result = json.loads(inline(*common, "--json", "--logprobs", "2").stdout)
    texts = [output["text"] for output in result["outputs"]]
    assert len(texts) == 3
    assert len({tuple(output["token_ids"]) for output in result["outputs"]}) == 3
    assert result["completion_tokens"] == 15
    for output in result["outputs"]:
        assert len(output["token_ids"]) == len(output["logprobs"]) == 5
        for token_id, entry in zip(output["token_ids"], output["logprobs"], strict=True):
            assert entry["token_id"] == token_id
            assert len(entry["top"]) == 2
            assert entry["logprob"] < 0
    shown = inline(*common)
    heads = [f"--- {index} of 3\n{text}\n" for index, text in enumerate(texts, 1)]
    assert shown.stdout == "".join(heads)
    assert_refused(inline(*common, "--logprobs", "2"), "--json")


def test_stop_ids_biases_and_least_tokens(inline: Run, tiny_artifact: Path) -> None:
    common = ("generate", "x", "-m", str(tiny_artifact), "--max-tokens", "6", "--json")
    common = (*common, "--ignore-eos")
    biased = json.loads(inline(*common, "--logit-bias", "65=100", "--logit-bias=66=-1").stdout)
    assert biased["token_ids"] == [65] * 6
    stop = ("--logit-bias", "65=100", "--stop-token-id", "65")
    stopped = json.loads(inline(*common, *stop).stdout)
    assert (stopped["token_ids"], stopped["finish_reason"]) == ([65], "stop")
    later = json.loads(inline(*common, *stop, "--min-tokens", "3").stdout)
    assert later["token_ids"][3:] == [65]
    assert 65 not in later["token_ids"][:3]
    twice = ("--logit-bias", "65=1", "--logit-bias", "65=2")
    assert_refused(inline(*common, *twice), "twice for token 65")
    assert_refused(inline(*common, "--logit-bias", "65"), "must be ID=BIAS, such as 42=-100")
    assert_refused(inline(*common, "--logit-bias", "6_5=1"), "must be an integer, not '6_5'")
    assert_refused(inline(*common, "--logit-bias", "99999=1"), "logit_bias")


def test_a_prompt_of_a_file(inline: Run, tiny_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("the sky", encoding="utf-8")
    common = ("-m", str(tiny_artifact), "--max-tokens", "4", "--json")
    given = json.loads(inline("generate", "the sky", *common).stdout)
    read = json.loads(inline("generate", "--prompt-file", str(path), *common).stdout)
    assert read["token_ids"] == given["token_ids"]
    assert read["prompt_tokens"] == given["prompt_tokens"]
    both = inline("generate", "x", "--prompt-file", str(path), *common)
    assert_refused(both, "both given; leave one")
    absent = inline("generate", "--prompt-file", str(tmp_path / "no"), *common)
    assert_refused(absent, "can't read .*no': No such file")
    path.write_bytes(b"\xff")
    assert_refused(inline("generate", "--prompt-file", str(path), *common), "not valid UTF-8")


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


FORMATTED = "<|begin|>user\nthe sky<|end|>\n<|begin|>assistant\n"  # by the tiny model's template


def test_a_ready_formatted_prompt(inline: Run, tiny_artifact: Path) -> None:
    common = ("-m", str(tiny_artifact), "--max-tokens", "8", "--ignore-eos", "--json")
    chat = json.loads(inline("generate", "the sky", *common).stdout)
    done = inline("generate", FORMATTED, "--control-tokens", *common)
    formatted = json.loads(done.stdout)
    assert done.stderr == ""
    assert formatted["prompt_tokens"] == chat["prompt_tokens"]
    assert formatted["token_ids"] == chat["token_ids"]
    both = inline("generate", FORMATTED, "--control-tokens", "--system", "x", *common)
    assert_refused(both, "--system needs the chat template that --control-tokens turns off")


@pytest.mark.parametrize("flags", [(), ("--raw",)])
def test_control_tokens_that_are_read_as_text_are_named_once(
    inline: Run, tiny_artifact: Path, flags: tuple[str, ...]
) -> None:
    common = ("-m", str(tiny_artifact), "--max-tokens", "2", "--json", *flags)
    done = inline("generate", FORMATTED, *common)
    assert done.returncode == 0
    assert done.stderr == (
        "subsecond: warning: the prompt holds <|begin|>, which is read as ordinary text; "
        "--control-tokens reads it as the control token\n"
    )
    spelled = json.loads(done.stdout)["prompt_tokens"]
    read = json.loads(inline("generate", FORMATTED, "--control-tokens", *common).stdout)
    assert spelled > read["prompt_tokens"]
    assert inline("generate", "begin <| end", *common).stderr == ""


def test_a_seed_and_a_stop_string(inline: Run, tiny_artifact: Path) -> None:
    common = ("generate", "x", "-m", str(tiny_artifact), "--max-tokens", "20", "--json")
    common = (*common, "--ignore-eos", "--temperature", "1", "--seed", "3")
    first, again = json.loads(inline(*common).stdout), json.loads(inline(*common).stdout)
    assert first["text"] == again["text"]
    stop = first["text"][4:6]
    stopped = json.loads(inline(*common, "--stop", stop).stdout)
    assert stopped["text"] == first["text"][: first["text"].find(stop)]
    assert stopped["finish_reason"] == "stop"


def test_generating_imports_nothing_heavy(tiny_artifact: Path) -> None:
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
        (["generate", "x", "--context", "100000"], "100000, more than the model's .* of 512 "),
        (["generate", "x", "--context", "0"], "context must be an integer from 2 to .*, not 0"),
        (["generate", "x", "--stop", ""], "stop"),
        (["bench", "--sequences", "99999"], "sequences is 99999; it must be at most 1024"),
        (["bench", "--prompt", "9000"], "prompt \\+ new needs 9002"),
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
        ["generate", "x", "-m", "y" * 5000],
        ["inspect", "/nowhere"],
        ["pull", "/nowhere"],
    ],
)
def test_models_that_do_not_exist(inline: Run, arguments: list[str]) -> None:
    done = inline(*arguments)
    assert_refused(done, "model|alias|hub|nowhere")
    assert len(done.stderr) < 1100


@pytest.mark.usefixtures("machine")
def test_matrices_that_were_kept_on_their_grid_are_named(
    inline: Run, tiny_artifact: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["weights"] = "int8"  # what a source on the int4 grid gives with --weights int8
    (copy / "manifest.json").write_text(json.dumps(manifest))
    matrices = [tensor for tensor in manifest["tensors"] if tensor["kind"] == "matrix"]
    kept = sum(tensor["format"] == "int4" for tensor in matrices)
    assert 0 < kept < len(matrices)
    line = (
        f"weights int8: {kept} of {len(matrices)} matrices already lie on the int4 grid and were "
        "kept so, exactly"
    )
    asked = ("generate", "x", "--weights", "int8", "--max-tokens", "1", "-m")
    assert f"subsecond: {line}\n" in inline(*asked, str(copy)).stderr
    shown = inline("inspect", str(copy), "--threads", "1").stdout
    assert line in shown
    as_it_is = ("generate", "x", "--weights", "int4", "--max-tokens", "1", "-m")
    assert "kept" not in inline(*as_it_is, str(tiny_artifact)).stderr


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


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_folders_whose_names_are_not_utf8(
    inline: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source, out = str(tmp_path / "a\udcff"), str(tmp_path / "b\udcff")
    Path(source).symlink_to(tiny_checkpoint)
    for words in (
        ("convert", source, "-o", out, "--json"), ("generate", "x", "-m", out, "--max-tokens=1"),
        ("verify", out), ("pull", source), ("list",), ("rm", source),
    ):  # fmt: skip
        done = inline(*words)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (words, done.stderr)


@pytest.mark.usefixtures("machine")
def test_convert_pull_and_inspect(inline: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    done = inline("convert", str(tiny_checkpoint), "-o", str(out), "--weights", "int8", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["path"] == str(out)
    assert result["tensors"] > 10
    assert (out / "manifest.json").exists()
    assert_refused(inline("convert", str(tiny_checkpoint), "-o", ""), "--output is empty")
    pulled = json.loads(inline("pull", str(tiny_checkpoint), "--json").stdout)
    assert Path(pulled["path"], "manifest.json").exists()
    shown = json.loads(inline("inspect", str(out), "--json", "--threads", "1").stdout)
    assert (shown["family"], shown["weights"], shown["context"]) == ("llama", "int8", 512)
    assert shown["bytes_per_token"] > 0
    assert shown["kv_format"] == "int8"
    # layers, heads, K and V of head_dim and three f32
    assert shown["kv_bytes_per_token"] == 2 * 2 * (2 * 16 + 12)
    assert shown["limit_tokens_per_s"] > shown["limit_tokens_per_s_full_context"] > 0
    assert shown["program"].startswith("program llama")
    whole = inline("inspect", str(out), "--program").stdout
    assert whole.endswith(shown["program"].strip() + "\n")
    assert "speed limit" in whole
    beginning = inline("inspect", str(out)).stdout
    assert "--program prints all" in beginning
    assert len(beginning) < len(whole)


def test_chat_takes_turns_and_commands(run: Run, tiny_artifact: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    lines = [
        "/help", "hello", "/system be the sea", "one", "two", f"/save {saved}", "/retry", "/reset",
        f"/load {saved}",
        "/history", "/nothing", "/save", "/load /nowhere", "/exit", "never read",
    ]  # fmt: skip
    command = ("chat", "-m", str(tiny_artifact), "--max-tokens", "5")
    done = run(*command, input="\n".join(lines) + "\n")
    assert done.returncode == 2, done.stderr  # of the first line that was wrong
    assert "Traceback" not in done.stderr
    assert "/reset" in done.stderr
    assert "unknown command '/nothing'" in done.stderr
    assert "/save needs a file name" in done.stderr
    assert "can't read /nowhere" in done.stderr
    conversation = json.loads(saved.read_text("utf-8"))
    assert [m["role"] for m in conversation] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in conversation[:4:3]] == ["be the sea", "two"]
    assert "system: be the sea" in done.stdout
    assert "user: two" in done.stdout
    assert "never read" not in done.stdout


@pytest.mark.usefixtures("machine")
def test_bench_measures_beside_the_limits(inline: Run, tiny_artifact: Path) -> None:
    lengths = {"prompt": 8, "new": 4, "prefill": 16, "sequences": 2, "repetitions": 1}
    sizes = ["--threads", "1", *(f"--{name}={value}" for name, value in lengths.items())]
    result = json.loads(inline("bench", "-m", str(tiny_artifact), *sizes, "--json").stdout)
    assert len(result["figures"]) == 3
    assert all(figure["median"] > 0 for figure in result["figures"])
    text = inline("bench", "-m", str(tiny_artifact), *sizes).stdout
    assert "tok/s" in text
    assert "limit" in text
    assert_refused(inline("bench", "-m", str(tiny_artifact), "--new", "1"), "new is 1")
    few = ("--threads", "1", "--context", "40", "--sequences", "2", "--repetitions", "1", "--json")
    done = inline("bench", "-m", str(tiny_artifact), *few)
    assert (
        done.stderr == "subsecond: the context has 40 tokens; --prompt 20, --new 20, --prefill 39\n"
    )
    lengths = json.loads(done.stdout)["lengths"]
    assert (lengths["prompt"], lengths["new"], lengths["prefill"]) == (20, 20, 39)


def test_an_alias_comes_before_a_folder_of_its_name(
    run: Run, tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smollm2-135m").symlink_to(tiny_artifact)
    offline = {"HF_HUB_OFFLINE": "1"}
    done = run("inspect", "smollm2-135m", "--threads", "1", **offline)
    assert done.returncode == 2  # the alias, which isn't here
    first, last = done.stderr.splitlines()
    assert first == (
        "subsecond: warning: model smollm2-135m is the alias; what lies here under that name is "
        "./smollm2-135m"
    )
    assert "smollm2-135m is not here yet" in last
    done = run("inspect", "./smollm2-135m", "--threads", "1", "--json", **offline)
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["vocab_size"] == 320
