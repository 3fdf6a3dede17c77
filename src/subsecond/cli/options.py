"""Every option of every command, once: a command is a dataclass, a flag is a field.

Owns: the dataclasses, and the argparse parser that is derived from them. Does not know: what a
command does; its function is imported when it runs, so that one command's start doesn't pay for the
others.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar, dataclass_transform

from subsecond.config import DEFAULT_MODEL, ISAS, KV_FORMATS, WEIGHTS

ANSWER_TOKENS = 1024  # a small model that repeats itself ends here

_Kind = TypeVar("_Kind")


def option(default: Any, help: str, *, type: Any = str, **details: Any) -> Any:
    """A flag; a boolean default makes a switch. details: argparse's choices, metavar, action, and
    short (a letter).
    """
    metadata = {"help": help, "type": type, **details}
    return dataclasses.field(default=default, metadata=metadata)


def positional(help: str, default: Any = dataclasses.MISSING, **details: Any) -> Any:
    """An argument without a flag; optional if it has a default."""
    metadata = {"help": help, "positional": True, **details}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, field_specifiers=(option, positional))
def command(kind: type[_Kind]) -> type[_Kind]:
    """Marks a class that `chosen` makes a dataclass; making all of them costs 10 ms."""
    return kind


@command
class _Model:
    model: str = option(
        DEFAULT_MODEL,
        "alias, Hugging Face id, folder, GGUF file or artifact (default: %(default)s)",
        short="m",
    )
    weights: str | None = option(None, "format of the matrices (default: int4)", choices=WEIGHTS)
    kv: str | None = option(
        None, "format of the KV cache (default: bf16; f32 with f32 weights)", choices=KV_FORMATS
    )
    threads: int | None = option(
        None, "threads (default: as many as the process has processors)", type=int
    )
    isa: str | None = option(
        None, "instruction set (default: the best of this processor)", choices=ISAS
    )
    context: int | None = option(
        None, "most tokens of prompt and answer (default: the model's own)", type=int
    )


@command
class _Sampling:
    max_tokens: int | None = option(
        None,
        f"most tokens of an answer (default: {ANSWER_TOKENS}, or what the context still holds)",
        type=int,
    )
    temperature: float | None = option(
        None, "0 takes the most probable token (default: the model's own, else 0)", type=float
    )
    top_k: int | None = option(None, "only the k most probable tokens", type=int)
    top_p: float | None = option(None, "only the most probable tokens that sum up to p", type=float)
    min_p: float | None = option(
        None, "only tokens at least so probable, relative to the best", type=float
    )
    repetition_penalty: float | None = option(
        None, "above 1: seen tokens become less probable", type=float
    )
    presence_penalty: float | None = option(
        None, "subtracted from the logits of generated tokens", type=float
    )
    frequency_penalty: float | None = option(
        None, "the same, for each time a token was generated", type=float
    )
    seed: int | None = option(None, "makes the answer reproducible", type=int)
    stop: list[str] | None = option(
        None, "text that ends the answer; may be given several times", action="append"
    )
    ignore_eos: bool = option(False, "go on after the model's end of text")


@command
class Generate(_Sampling, _Model):
    """answer a prompt"""

    prompt: str = positional("the prompt; - reads it from standard input")
    raw: bool = option(False, "continue the text as it is, without the model's chat template")
    system: str | None = option(None, "instruction before the prompt")
    json: bool = option(False, "one JSON object at the end instead of a stream of text")


@command
class Chat(_Sampling, _Model):
    """talk with a model, turn by turn"""

    system: str | None = option(None, "instruction before all turns")


@command
class Pull:
    """fetch a model, convert it, and check every byte"""

    model: str = positional("alias, Hugging Face id, folder, GGUF file or artifact", DEFAULT_MODEL)
    weights: str | None = option(None, "format of the matrices (default: int4)", choices=WEIGHTS)
    json: bool = option(False, "the result as one JSON object")


@command
class Convert:
    """write an artifact folder"""

    model: str = positional("Hugging Face folder or GGUF file")
    output: str = option(dataclasses.MISSING, "the folder to write", short="o", metavar="DIR")
    weights: str = option("int4", "format of the matrices (default: %(default)s)", choices=WEIGHTS)
    strict: bool = option(False, "unknown keys of the model's configuration are errors")
    json: bool = option(False, "the result as one JSON object")


@command
class Inspect:
    """show a model's program, sizes, and the speed that this machine allows"""

    model: str = positional("alias, Hugging Face id, folder, GGUF file or artifact", DEFAULT_MODEL)
    weights: str | None = option(None, "format of the matrices (default: int4)", choices=WEIGHTS)
    kv: str | None = option(
        None, "format of the KV cache (default: bf16; f32 with f32 weights)", choices=KV_FORMATS
    )
    threads: int | None = option(
        None, "threads (default: as many as the process has processors)", type=int
    )
    program: bool = option(False, "print the whole program")
    json: bool = option(False, "everything as one JSON object")


@command
class Bench(_Model):
    """measure decoding, prompts and batches beside the machine's limits"""

    prompt: int = option(128, "tokens of a prompt (default: %(default)s)", type=int)
    new: int = option(128, "tokens decoded after it (default: %(default)s)", type=int)
    prefill: int = option(
        512, "tokens of the long prompt that is timed alone (default: %(default)s)", type=int
    )
    sequences: int = option(16, "sequences of the batch (default: %(default)s)", type=int)
    repetitions: int = option(3, "repetitions; the median counts (default: %(default)s)", type=int)
    json: bool = option(False, "the result as one JSON object")


COMMANDS: dict[str, type[Any]] = {
    "generate": Generate,
    "chat": Chat,
    "pull": Pull,
    "convert": Convert,
    "inspect": Inspect,
    "bench": Bench,
}


def chosen(name: str) -> type[Any]:
    """The dataclass of a command."""
    kind = COMMANDS[name]
    for base in reversed(kind.__mro__[:-1]):
        if "__dataclass_fields__" not in vars(base):
            dataclasses.dataclass(kw_only=True, eq=False, repr=False)(base)
    return kind


def parser(names: Collection[str] = ()) -> argparse.ArgumentParser:
    """The command line. The chosen command's name is in `command`.

    names: the only commands whose flags matter, if they are known; empty: all.
    """
    from subsecond import __version__

    top = argparse.ArgumentParser(
        prog="subsecond",
        description="Language models on ordinary processors, answered within a second.",
    )
    top.add_argument("--version", action="version", version=f"subsecond {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, kind in COMMANDS.items():
        own = commands.add_parser(name, help=kind.__doc__, description=kind.__doc__)
        if not names or name in names:
            for entry in dataclasses.fields(chosen(name)):
                _add(own, entry)
    return top


def read(namespace: argparse.Namespace) -> Any:
    """The chosen command's dataclass."""
    kind = COMMANDS[namespace.command]
    return kind(
        **{entry.name: getattr(namespace, entry.name) for entry in dataclasses.fields(kind)}
    )


def given(options: Any, kind: type[Any]) -> dict[str, Any]:
    """The fields of `kind` that were given on the command line, by name."""
    values = {entry.name: getattr(options, entry.name) for entry in dataclasses.fields(kind)}
    return {
        name: value for name, value in values.items() if value is not None and value is not False
    }


def sampling_given(options: _Sampling) -> dict[str, Any]:
    """Sampling options that were given."""
    return given(options, _Sampling)


def model_given(options: _Model) -> dict[str, Any]:
    """Model options that were given."""
    return given(options, _Model)


def _add(own: argparse.ArgumentParser, entry: dataclasses.Field[Any]) -> None:
    details = dict(entry.metadata)
    missing = entry.default is dataclasses.MISSING
    if details.pop("positional", False):
        if not missing:
            details.update(nargs="?", default=entry.default)
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
