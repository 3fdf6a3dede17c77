"""Every option of every command, once: a command is a dataclass, a flag is a field.

Owns: the dataclasses, and the parsers that are derived from them; those of `serve` and its like are
in server_options, what all who run models share in execution_options. Does not know: what a command
does; its function is imported when it runs, so that one command's start doesn't pay for the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from subsecond import __version__
from subsecond.cli import console
from subsecond.cli.execution_options import NO_SPECULATION, Execution
from subsecond.cli.fields import MODEL, command, option, positional
from subsecond.cli.parser import Parser, bias, integer, number, one_of, shown, suggestion
from subsecond.cli.server_options import BenchServe, Keys, Serve
from subsecond.config import DEFAULT_MODEL, KV_FORMATS, WEIGHTS
from subsecond.errors import InputError


@command
class _Model(Execution):
    model: str = option(
        DEFAULT_MODEL,
        f"{MODEL} (default: %(default)s)",
        short="m",
    )


@command
class _Sampling:
    max_tokens: int | None = option(
        None,
        "most tokens of an answer (default: 1024, or what the context still holds)",
        type=integer,
    )
    temperature: float | None = option(
        None, "0 takes the most probable token (default: the model's own, else 0)", type=number
    )
    top_k: int | None = option(None, "only the k most probable tokens", type=integer)
    top_p: float | None = option(
        None, "only the most probable tokens that sum up to p", type=number
    )
    min_p: float | None = option(
        None, "only tokens at least so probable, relative to the best", type=number
    )
    repetition_penalty: float | None = option(
        None, "above 1: seen tokens become less probable", type=number
    )
    presence_penalty: float | None = option(
        None, "subtracted from the logits of generated tokens", type=number
    )
    frequency_penalty: float | None = option(
        None, "the same, for each time a token was generated", type=number
    )
    seed: int | None = option(None, "makes the answer reproducible", type=integer)
    stop: list[str] | None = option(
        None,
        "text that ends the answer; may be given several times",
        action="append",
        metavar="TEXT",
    )
    stop_token_id: list[int] | None = option(
        None,
        "token id that ends the answer; may be given several times",
        type=integer,
        action="append",
    )
    min_tokens: int | None = option(
        None, "before so many tokens, nothing ends the answer but a stop text", type=integer
    )
    logit_bias: list[tuple[int, float]] | None = option(
        None,
        "added to the logit of a token id, such as 42=-100; may be given several times",
        type=bias,
        action="append",
        metavar="ID=BIAS",
    )
    ignore_eos: bool = option(False, "go on after the model's end of text")


@command
class _Texts:
    n: int | None = option(None, "independent answers to the same prompt", type=integer)
    logprobs: int | None = option(
        None,
        "with --json: log probabilities of each token and of the N most probable ones",
        type=integer,
    )


@command
class Generate(_Texts, _Sampling, _Model):
    """answer a prompt"""

    prompt: str | None = positional("the prompt; - reads it from standard input", None)
    prompt_file: str | None = option(None, "read the prompt from a file (UTF-8)", metavar="FILE")
    raw: bool = option(False, "continue the text as it is, without the model's chat template")
    no_speculation: bool = option(False, NO_SPECULATION)
    control_tokens: bool = option(
        False,
        "the prompt is ready-formatted: as --raw, and <|im_start|> and the like in it are control "
        "tokens; not for text of others, which could forge turns with them",
    )
    system: str | None = option(None, "instruction before the prompt", metavar="TEXT")
    json_schema: str | None = option(
        None, "the answer is JSON that fits the schema in this file", metavar="FILE"
    )
    json: bool = option(
        False, "one JSON object at the end, token ids included, instead of a stream of text"
    )


@command
class Chat(_Sampling, _Model):
    """talk with a model, turn by turn"""

    no_speculation: bool = option(False, NO_SPECULATION)
    system: str | None = option(None, "instruction before all turns", metavar="TEXT")


@command
class Pull:
    """fetch a model, convert it, and check every byte"""

    model: str = positional(f"{MODEL} (default: %(default)s)", DEFAULT_MODEL)
    weights: str | None = option(None, "format of the matrices (default: int4)", choices=WEIGHTS)
    json: bool = option(False, "the result as one JSON object")


@command
class Convert:
    """write an artifact folder"""

    model: str = positional("alias, Hugging Face id, folder or GGUF file")
    output: str = option(dataclasses.MISSING, "the folder to write", short="o", metavar="DIR")
    weights: str = option("int4", "format of the matrices (default: %(default)s)", choices=WEIGHTS)
    strict: bool = option(False, "unknown keys of the model's configuration are errors")
    json: bool = option(False, "the result as one JSON object")


@command
class Inspect:
    """show a model's program, sizes, and the speed that this machine allows"""

    model: str = positional(f"{MODEL} (default: %(default)s)", DEFAULT_MODEL)
    weights: str | None = option(None, "format of the matrices (default: int4)", choices=WEIGHTS)
    kv: str | None = option(
        None, "format of the KV cache (default: the one that conversion chose)", choices=KV_FORMATS
    )
    threads: int | None = option(
        None, "threads (default: as many as the process has processors)", type=integer
    )
    program: bool = option(False, "print the whole program")
    json: bool = option(False, "everything as one JSON object")


@command
class Verify:
    """check an artifact: every checksum, and the answers that its certificate records"""

    artifact: str = positional(MODEL)
    weights: str | None = option(None, "format of the matrices (default: int4)", choices=WEIGHTS)
    threads: int | None = option(
        None, "threads (default: as many as the process has processors)", type=integer
    )
    json: bool = option(False, "every claim as one JSON object")


@command
class List:
    """list the converted models of the cache"""

    json: bool = option(False, "everything as one JSON object")


@command
class Rm:
    """remove converted models from the cache"""

    name: str | None = positional("a name of 'subsecond list', or the model it was made from", None)
    all: bool = option(False, "remove all of them")


@command
class Bench(_Model):
    """measure decoding, prompts and batches beside the machine's limits"""

    prompt: int | None = option(
        None, "tokens of a prompt (default: 128, or what the context holds)", type=integer
    )
    new: int | None = option(
        None, "tokens decoded after it (default: 128, or what the context holds)", type=integer
    )
    prefill: int | None = option(
        None,
        "tokens of the long prompt that is timed alone (default: 512, or what the context holds)",
        type=integer,
    )
    sequences: int = option(16, "sequences of the batch (default: %(default)s)", type=integer)
    repetitions: int = option(
        3, "repetitions; the median counts (default: %(default)s)", type=integer
    )
    json: bool = option(False, "the result as one JSON object")


COMMANDS: dict[str, type[Any]] = {
    "generate": Generate,
    "chat": Chat,
    "pull": Pull,
    "convert": Convert,
    "inspect": Inspect,
    "verify": Verify,
    "list": List,
    "rm": Rm,
    "bench": Bench,
    "bench serve": BenchServe,
    "serve": Serve,
    "keys": Keys,
}


def chosen(name: str) -> type[Any]:
    """The dataclass of a command."""
    kind = COMMANDS[name]
    for base in reversed(kind.__mro__[:-1]):
        if "__dataclass_fields__" not in vars(base):
            dataclasses.dataclass(kw_only=True, eq=False, repr=False)(base)
    return kind


def parse(words: Sequence[str]) -> tuple[str, Any]:
    """The name of the chosen command, and its dataclass. InputError in one line for a bad use;
    SystemExit after --help and --version.
    """
    first = words[0] if words else ""
    if " ".join(words[:2]) in COMMANDS:
        first = " ".join(words[:2])
    if first in COMMANDS:
        parser = command_parser(first)
        read = chosen(first)(**vars(parser.read(words[len(first.split()) :])))
        if first == "generate":
            _one_prompt(parser, read)
        return first, read
    if first in ("-h", "--help"):
        overview().print_help()
        raise SystemExit(0)
    if first == "--version":
        console.write(f"subsecond {__version__}\n")
        raise SystemExit(0)
    if not first:
        problem = "no command is given"
    elif first.startswith("-"):
        problem = f"unknown option {shown(first)} before the command"
    else:
        problem = f"unknown command {shown(first)}{suggestion(first, COMMANDS)}"
    raise InputError(f"{problem}; commands: {', '.join(COMMANDS)}; see 'subsecond --help'")


def _one_prompt(parser: Parser, read: Any) -> None:
    if read.prompt is None and read.prompt_file is None:
        parser.error("prompt is missing (the prompt; - reads it from standard input)")
    if read.prompt is not None and read.prompt_file is not None:
        parser.error("the prompt and --prompt-file are both given; leave one of them out")


def overview() -> Parser:
    """What `subsecond --help` shows."""
    top = Parser(
        prog="subsecond",
        description="Language models on ordinary processors, answered within a second.",
    )
    top.add_argument("--version", action="store_true", help="show the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, kind in COMMANDS.items():
        commands.add_parser(name, help=kind.__doc__)
    return top


def command_parser(name: str) -> Parser:
    """The parser of one command's arguments."""
    own = Parser(prog=f"subsecond {name}", description=COMMANDS[name].__doc__)
    for entry in dataclasses.fields(chosen(name)):
        _add(own, entry)
    return own


def given(options: Any, kind: type[Any]) -> dict[str, Any]:
    """The fields of `kind` that were given on the command line, by name."""
    values = {entry.name: getattr(options, entry.name) for entry in dataclasses.fields(kind)}
    return {
        name: value for name, value in values.items() if value is not None and value is not False
    }


def sampling_given(options: _Sampling) -> dict[str, Any]:
    """Sampling options that were given, as SamplingParams calls them. InputError for two biases of
    one token.
    """
    values = given(options, _Sampling)
    if isinstance(options, _Texts):
        values |= given(options, _Texts)
    if "stop_token_id" in values:
        values["stop_token_ids"] = values.pop("stop_token_id")
    if "logit_bias" in values:
        biases: dict[int, float] = {}
        for token_id, value in values["logit_bias"]:
            if token_id in biases:
                raise InputError(f"--logit-bias is given twice for token {token_id}; leave one out")
            biases[token_id] = value
        values["logit_bias"] = biases
    return values


def model_given(options: _Model) -> dict[str, Any]:
    """Model options that were given."""
    return given(options, _Model)


def _add(own: Parser, entry: dataclasses.Field[Any]) -> None:
    details = dict(entry.metadata)
    missing = entry.default is dataclasses.MISSING
    if details["type"] in (integer, number) and "metavar" not in details:
        details["metavar"] = "N" if details["type"] is integer else "X"
    if choices := details.pop("choices", None):
        details.update(type=one_of(choices), metavar="{" + ",".join(choices) + "}")
    if details.pop("positional", False):
        if not missing:
            details = {"nargs": "?", "default": entry.default, **details}
        own.add_argument(entry.name, **details)
        return
    names = ["--" + entry.name.replace("_", "-")]
    if short := details.pop("short", None):
        names.insert(0, f"-{short}")
    if isinstance(entry.default, bool):
        own.add_argument(*names, action="store_true", help=details["help"])
    elif missing:
        own.add_argument(*names, required=True, **details)
    else:
        own.add_argument(*names, default=entry.default, **details)
