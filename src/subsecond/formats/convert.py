"""convert: a checkpoint becomes an artifact, one tensor at a time.

Owns: the choice of the stored format of each matrix, taking exact grids over, the refusal of NaN
and infinity, and the order of the steps. Knows nothing of checkpoint file formats, of families or
of the packed layout's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from subsecond.errors import InputError, ModelError, UnsupportedError
from subsecond.formats import artifact, artifact_write, certificate, files, text_settings
from subsecond.formats.artifact import MatrixFormat, WeightFormat
from subsecond.formats.artifact_write import Writer
from subsecond.formats.certificate import Certificate, LogitsDifference, Trial
from subsecond.formats.checkpoint import Checkpoint
from subsecond.formats.compare import StoredTensors, compare
from subsecond.formats.grid import find_grid
from subsecond.formats.pack import Grid, pack_float, pack_grid, pack_split, to_bf16
from subsecond.formats.progress import Progress
from subsecond.formats.quantize import quantize
from subsecond.models import Built, Recipe, build
from subsecond.program.ops import linear_count
from subsecond.program.program import Program, TensorSpec
from subsecond.program.rewrites import fuse
from subsecond.text import gguf_tokenizer
from subsecond.text.tokenizer import Tokenizer

# Gets the folder of a complete artifact whose certificate has no canaries yet.
TrialHook = Callable[[Path], Trial]


@dataclass(frozen=True)
class Conversion:
    """The artifact that was written, and what the user should know about it."""

    path: Path
    warnings: list[str]
    tensors: int
    tensors_exact: int
    replaced: bool = False  # an artifact that stood at `path` before


# What to do about a damaged file, and about a contradiction between a model's files.
_AGAIN = "download it again"
_CORRECT = "correct it, or download the whole model again"


def open_checkpoint(
    path: str | os.PathLike[str], *, name: str = "", revision: str = "", label: str = ""
) -> Checkpoint:
    """Opens a Hugging Face folder or a GGUF file. Raises ModelError for anything else.

    name, revision: where a downloaded model came from, for the artifact's record; label: what the
    user calls it, for messages.
    """
    path = Path(path)
    with files.named(label or str(path), path, fix=_AGAIN):
        return _open(path, name, revision, label)


def _open(path: Path, name: str, revision: str, label: str) -> Checkpoint:
    if files.is_folder(path):
        from subsecond.formats.safetensors_in import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path, name=name, revision=revision, label=label)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise UnsupportedError(
            f"{path}: pickled weights can run code and are not read; get safetensors or a GGUF file"
        )
    files.refuse_half(path)
    if path.suffix in (".safetensors", ".json"):
        raise ModelError(f"{path}: is one file of a model; give its folder, with config.json")
    from subsecond.formats.gguf_in import GgufCheckpoint

    return GgufCheckpoint(path, name=name, revision=revision, label=label)


def convert(
    source: str | os.PathLike[str] | Checkpoint,
    out: str | os.PathLike[str],
    weights: WeightFormat = "int4",
    *,
    strict: bool = False,
    progress: Progress | None = None,
    trial: TrialHook | None = None,
) -> Conversion:
    """Writes the artifact folder `out` from a model that `locate` knows by name (folder, GGUF file,
    alias, hub id) or from an open Checkpoint.

    weights: `int4` (group 32; embedding and output int8), `int8`, `bf16` or `f32`. A matrix that
    lies on an int4 or int8 grid already is taken over exactly by either of these two. strict: an
    unknown config key or tensor is an error. Peak memory is about the largest tensor in float32 and
    its packed form. An artifact that stands at `out` is replaced in one step at the end. Raises
    ModelError for a damaged or unsupported model, InputError for an output that cannot be written.
    """
    if weights not in get_args(WeightFormat):
        raise InputError(
            f"weights must be one of {', '.join(get_args(WeightFormat))}, not {weights!r}"
        )
    artifact_write.check_output(Path(out))  # before anything is fetched
    artifact_write.check_place(Path(out))
    if isinstance(source, (str, os.PathLike)):
        from subsecond.formats.locate import open_source

        checkpoint = open_source(source, progress)
    else:
        checkpoint = source
    try:
        with files.named(checkpoint.label, fix=_AGAIN):
            return _convert(
                checkpoint, Path(out), weights, strict=strict, report=progress, hook=trial
            )
    finally:
        if checkpoint is not source:
            checkpoint.close()


def _convert(
    checkpoint: Checkpoint,
    out: Path,
    weights: WeightFormat,
    *,
    strict: bool,
    report: Progress | None,
    hook: TrialHook | None,
) -> Conversion:
    with files.named(checkpoint.config_label, fix=_CORRECT):
        built = build(checkpoint.config, checkpoint.shapes, strict)
        _check_tied(checkpoint, built)
    warnings = list(built.warnings)
    folder = checkpoint.config_label != checkpoint.label
    with files.named(checkpoint.label, fix=_CORRECT, folder=folder):
        tokenizer, settings = _texts(checkpoint, built, warnings)
    program = fuse(built.program)
    with artifact_write.writing(out, weights, checkpoint.source()) as writer:
        writer.warnings = warnings
        exact = _write_tensors(checkpoint, built, weights, writer, report, _output_matrix(program))
        total = len(built.program.tensors)
        writer.add_file(artifact.PROGRAM, program.to_json())
        writer.add_file(artifact.TOKENIZER, tokenizer)
        writer.add_file(artifact.TEXT, settings.to_json())
        record = Certificate(
            version=certificate.VERSION,
            kind="converted",
            weights_sha256=writer.weights_sha256(),
            program_sha256=writer.files[artifact.PROGRAM].sha256,
            tokenizer_sha256=writer.files[artifact.TOKENIZER].sha256,
            source_files=writer.source.files,
            tensors=total,
            tensors_exact=exact,
            logits=_logits_difference(checkpoint, built, writer, exact == total),
            canaries=[],
            text_sha256=writer.files[artifact.TEXT].sha256,
        )
        writer.add_file(artifact.CERTIFICATE, record.to_json())
        if hook is not None:
            writer.finish()
            found = hook(writer.folder)
            writer.kv = found.kv
            record = msgspec.structs.replace(record, canaries=found.canaries)
            writer.add_file(artifact.CERTIFICATE, record.to_json())
    return Conversion(out, warnings, total, exact, writer.replaces)


def _texts(
    checkpoint: Checkpoint, built: Built, warnings: list[str]
) -> tuple[bytes, text_settings.TextSettings]:
    """tokenizer.json and text.json; refuses now what the model could not be run with."""
    texts = checkpoint.texts
    tokenizer = (
        gguf_tokenizer.build(texts.gguf or {})
        if texts.tokenizer_json is None
        else texts.tokenizer_json
    )
    settings = text_settings.gather(
        texts, tokenizer, checkpoint.config, built.program.vocab_size, warnings
    )
    Tokenizer(tokenizer)
    return tokenizer, settings


def _check_tied(checkpoint: Checkpoint, built: Built) -> None:
    """A tied matrix may be stored twice, but not as two different ones."""
    if built.tied is not None and not checkpoint.same(*built.tied):
        raise ModelError(
            f"tie_word_embeddings is true, but the tensors {built.tied[0]!r} and "
            f"{built.tied[1]!r} differ; set tie_word_embeddings to false to use both"
        )


def _write_tensors(  # noqa: PLR0917
    checkpoint: Checkpoint,
    built: Built,
    weights: WeightFormat,
    writer: Writer,
    progress: Progress | None,
    output: str | None,
) -> int:
    """Writes every tensor of the program; returns how many hold the source's values unchanged.

    `output`: the matrix that is stored in two parts if it is int8.
    """
    exact = 0
    specs = built.program.tensors
    sizes = [spec.n * max(spec.k, 1) for spec in specs]
    done = 0
    for size, spec in zip(sizes, specs, strict=True):
        if progress is not None:  # by weights: time goes with them, and the bar tells what is left
            progress("converting", done, sum(sizes), "weights")
        done += size
        recipe = built.recipes[spec.name]
        if spec.kind == "vector":
            values = _values(checkpoint, recipe, spec)
            writer.add_vector(spec.name, spec.n, np.ascontiguousarray(values, "<f4").data)
            exact += 1
            continue
        format, packed, unchanged = _matrix(checkpoint, recipe, spec, weights, spec.name == output)
        writer.add_matrix(spec.name, format, spec.n, spec.k, packed.data)
        exact += unchanged
    if progress is not None:
        progress("converting", sum(sizes), sum(sizes), "weights")
    return exact


def _matrix(
    checkpoint: Checkpoint, recipe: Recipe, spec: TensorSpec, weights: WeightFormat, split: bool
) -> tuple[MatrixFormat, NDArray[np.uint8], bool]:
    """Format, packed bytes, and whether the values are the source's own."""
    if weights in ("int4", "int8"):
        grid = _stored_grid(checkpoint, recipe, spec)
        if grid is not None:
            return *_packed(grid, split), True
    values = _values(checkpoint, recipe, spec)
    if weights == "f32":
        return "f32", pack_float(values, "f32"), True
    if weights == "bf16":
        unchanged = np.array_equal(
            to_bf16(values).astype(np.uint32) << np.uint32(16), values.view(np.uint32)
        )
        return "bf16", pack_float(values, "bf16"), unchanged
    grid = find_grid(values)
    if grid is not None:
        return *_packed(grid, split), True
    # The embedding and the output matrix feel rounding most, and an int4 table saves little of a
    # large model.
    chosen = "int4" if weights == "int4" and spec.role == "linear" else "int8"
    return *_packed(quantize(values, chosen, recipe.source or spec.name), split), False


def _packed(grid: Grid, split: bool) -> tuple[MatrixFormat, NDArray[np.uint8]]:
    if grid.format == "int4":
        return "int4", pack_grid(grid)
    return ("int8_split", pack_split(grid)) if split else ("int8", pack_grid(grid))


def _output_matrix(program: Program) -> str | None:
    """The matrix whose products are the logits, if they are nothing else: a greedy choice then
    needs only the upper part of it."""
    op = program.ops[-1]
    plain = op.kind == "linear" and op.output == program.output and len(op.inputs) == 1
    if (
        not plain
        or linear_count(op.weights) != 1
        or op.weights[1]
        or op.attributes["gate"] != "none"
    ):
        return None
    return op.weights[0]


def _stored_grid(checkpoint: Checkpoint, recipe: Recipe, spec: TensorSpec) -> Grid | None:
    """The grid that the checkpoint stores the tensor on, if its recipe only chooses rows."""
    if recipe.source is None or recipe.add:
        return None
    grid = checkpoint.grid(recipe.source, transposed=recipe.transpose)
    if grid is None:
        return None
    if recipe.rows is not None:
        grid = grid.rows(np.array(recipe.rows.indices(), np.intp))
    if grid.shape != spec.shape:
        raise ModelError(
            f"{checkpoint.where(recipe.source)} has shape {list(grid.shape)}, not "
            f"{list(spec.shape)}; {_AGAIN}"
        )
    if not grid.finite():
        raise ModelError(
            f"{checkpoint.where(recipe.source)} has scales that are NaN or infinite: the file is "
            f"damaged; {_AGAIN}"
        )
    return grid


def _values(checkpoint: Checkpoint, recipe: Recipe, spec: TensorSpec) -> NDArray[np.float32]:
    """The tensor as float32, finite."""
    source = {} if recipe.source is None else {recipe.source: checkpoint.read(recipe.source)}
    values = recipe.apply(source)
    where = f"tensor {spec.name!r}" if recipe.source is None else checkpoint.where(recipe.source)
    if values.shape != spec.shape:
        raise ModelError(f"{where} came out as {list(values.shape)}, not {list(spec.shape)}")
    # The smallest and the largest value are NaN where any value is.
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise ModelError(
            f"{where} has values that are NaN or infinite: the file is damaged, or its model did "
            f"not survive training; {_AGAIN}, or get another version"
        )
    return values


def _logits_difference(
    checkpoint: Checkpoint, built: Built, writer: Writer, exact: bool
) -> LogitsDifference:
    if exact:
        return LogitsDifference("exact")
    specs = {spec.name: spec for spec in built.program.tensors}
    writer.flush()
    with artifact.mapped(writer.folder / artifact.WEIGHTS) as data:
        stored = StoredTensors(data, writer.tensors)
        return compare(
            built.program,
            lambda name: _values(checkpoint, built.recipes[name], specs[name]),
            stored.read,
        )
