"""From a model's name to everything that generating needs, with the slow parts side by side.

Owns: the order of loading, what is shown meanwhile, and how large buffers and the KV cache are
made. Does not know: what is generated.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from subsecond.config import ModelOptions
from subsecond.engine.engine import Engine
from subsecond.engine.native_runner import NativeRunner, Sizes
from subsecond.engine.pages import PAGE_POSITIONS, page_count
from subsecond.engine.speculate import PromptLookup
from subsecond.engine.values import short
from subsecond.errors import InputError
from subsecond.formats import artifact, files, text_settings
from subsecond.formats.locate import locate
from subsecond.formats.stored_program import read_program
from subsecond.program.program import Program
from subsecond.runtime import native
from subsecond.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from subsecond.formats.certificate import Trial
    from subsecond.formats.progress import Progress

STEPS_PER_CALL = 8  # decode steps of one call: few enough that a stream flows
SCORED_ROWS = 64  # tokens whose logits `LLM.logits` takes out of one step
KV_SHARE = 4  # the KV cache may take this part of the machine's memory, or one context


@dataclass(frozen=True)
class LoadedEngine:
    """A model that can run, of token ids."""

    artifact: artifact.Artifact
    program: Program
    engine: Engine
    executor: str


@dataclass(frozen=True)
class Loaded(LoadedEngine):
    """A model that can run, of texts. settings: chat template, ids that end a text, suggested
    sampling.
    """

    tokenizer: Tokenizer
    settings: text_settings.TextSettings

    @property
    def vocab_size(self) -> int:
        """Number of logits a token."""
        return self.program.vocab_size


def model_name(model: object) -> str:
    """The name or path as a text; InputError for anything else, None above all."""
    name = model if isinstance(model, str) else None
    if isinstance(model, os.PathLike):
        name = model.__fspath__()
    if not isinstance(name, str) or not name:
        raise InputError(
            f"model must be a name or a path, not {short(model)}; give an alias such as "
            "'smollm2-135m', a Hugging Face id, a folder or a GGUF file"
        )
    return name


def load(options: ModelOptions, progress: Progress | Literal[False] | None = None) -> Loaded:
    """Fetches and converts the model if need be, checks it, and makes it ready. progress: as of
    `LLM`. Memory grows by one context at most for texts that have ended, if options don't say.

    Raises ModelError, FetchError or InputError naming what is wrong.
    """
    with _opened(options, progress) as (opened, mapped):
        again = artifact.again(opened.path)
        with files.named(str(opened.path), fix=again, folder=True):
            tokenizer = Tokenizer(opened.read(artifact.TOKENIZER))
            settings = text_settings.decode(opened.read(artifact.TEXT))
        program = read_program(opened)
    if options.prefix_cache is None:
        options = replace(options, prefix_cache=_context(program, options))
    engine, executor = _engine(opened, program, mapped, options, STEPS_PER_CALL)
    return Loaded(opened, program, engine, executor, tokenizer, settings)


def load_engine(
    options: ModelOptions,
    progress: Progress | Literal[False] | None = None,
    *,
    steps_per_call: int = STEPS_PER_CALL,
) -> LoadedEngine:
    """`load` without what texts need, for a process that sees none, and whose KV cache may fill
    with texts that have ended, if options don't say. steps_per_call: most decode steps of one call
    into the runtime.
    """
    with _opened(options, progress) as (opened, mapped):
        program = read_program(opened)
    engine, executor = _engine(opened, program, mapped, options, steps_per_call)
    return LoadedEngine(opened, program, engine, executor)


@contextmanager
def _opened(
    options: ModelOptions, progress: Progress | Literal[False] | None
) -> Iterator[tuple[artifact.Artifact, native.MappedFile]]:
    """The artifact and its mapped weights. They are checked beside what the block does; its end
    waits for the outcome.
    """
    with _shown(progress) as shown:
        path = locate(
            options.model,
            options.weights,  # type: ignore[arg-type]
            progress=shown,
            trial=_tried,
        )
    opened = artifact.open_artifact(path, check=False)
    mapped = native.MappedFile(os.fspath(opened.weights_path))
    # Checksums are compared without the interpreter's lock, the tokenizer is loaded with it.
    check = _Check(opened, memoryview(mapped.weights))
    try:
        check.start()
    except RuntimeError:  # no thread can be had, or no memory for its stack: now, then
        check.run()
    try:
        yield opened, mapped
    finally:
        check.finish()


def _engine(
    opened: artifact.Artifact,
    program: Program,
    mapped: native.MappedFile,
    options: ModelOptions,
    steps_per_call: int,
) -> tuple[Engine, str]:
    """The engine of checked parts, and what executes it in words."""
    context = _context(program, options)
    kv = options.kv or opened.manifest.kv_default
    sizes = Sizes(
        max_tokens=options.max_tokens_per_step,
        max_sequences=options.max_sequences,
        max_rows=max(options.max_sequences, min(SCORED_ROWS, options.max_tokens_per_step)),
        max_steps=steps_per_call,
        context=context,
        pages=_pages(program, kv, context, options.max_sequences),
    )
    isa = native.choose_isa(options.isa)
    fix = f"check the options, or {artifact.again(opened.path)}"
    with files.named(str(opened.path), fix=fix):
        runner = NativeRunner(
            program,
            opened.manifest.tensors,
            mapped,
            sizes,
            isa=isa,
            threads=options.threads,
            kv=kv,
        )
    kept = options.prefix_cache
    engine = Engine(
        runner,
        context=context,
        steps_per_call=steps_per_call,
        most_idle=None if kept is None else page_count(kept),
        proposer=PromptLookup if options.speculation else None,
    )
    return engine, f"native {runner.isa}, kv {kv}"


@contextmanager
def _shown(progress: Progress | Literal[False] | None) -> Iterator[Progress | None]:
    """What is told how fetching and converting go on."""
    if progress is False or (progress is None and not _on_terminal()):
        yield None
    elif progress is not None:
        if not callable(progress):
            raise InputError(
                f"progress must be a function, False or None, not {type(progress).__name__}"
            )
        yield progress
    else:
        from subsecond.formats.progress import TerminalProgress

        with TerminalProgress() as bars:
            yield bars


def _on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # no standard error, or a closed one
        return False


def _tried(folder: Path) -> Trial:
    from subsecond.tasks.canary import tried  # it uses LLM, which uses this module

    return tried(folder)


def _pages(program: Program, kv: str, context: int, sequences: int) -> int:
    """Pages a cache group: one whole context, or as many as all sequences can use if memory allows.

    Memory is taken from the system when a page is first written, so room that isn't used costs
    nothing.
    """
    layers = [layer for group in program.groups for layer in group.layers]
    values = 2 * PAGE_POSITIONS * sum(layer.kv_heads * layer.head_dim for layer in layers)
    page_bytes = max(1, values * {"f32": 4, "bf16": 2, "int8": 1}[kv])
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    one = page_count(context)
    return max(one, min(one * sequences, memory_bytes // KV_SHARE // page_bytes))


class _Check(threading.Thread):
    """Compares an artifact's checksums; `finish` waits, and raises what was found."""

    def __init__(self, opened: artifact.Artifact, data: memoryview) -> None:
        super().__init__(name="subsecond-check", daemon=True)
        self._opened = opened
        self._data = data
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._opened.check_files()
            self._opened.check_tensors(self._data)
        except BaseException as error:
            self._error = error
        finally:
            self._data.release()

    def finish(self) -> None:
        if self.ident is not None:
            self.join()
        if self._error is not None:
            raise self._error


def _context(program: Program, options: ModelOptions) -> int:
    if options.context is None:
        return program.max_positions
    if options.context > program.max_positions:
        raise InputError(
            f"context is {options.context}, more than the model's own maximum of "
            f"{program.max_positions} tokens; leave it out, or give at most {program.max_positions}"
        )
    return options.context
