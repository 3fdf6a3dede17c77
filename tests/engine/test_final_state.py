"""The state that embeddings are made of, times the output matrix, is the logits: every kind of
model.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from subsecond.config import ModelOptions
from subsecond.engine.final_state import FinalState
from subsecond.engine.request import Request
from subsecond.engine.sampling import SamplingParams
from subsecond.errors import UnsupportedError
from subsecond.formats.convert import convert
from subsecond.formats.pack import unpack
from subsecond.runtime import native
from subsecond.tasks.load import LoadedEngine, load_engine
from subsecond.tasks.logits import empty, flat

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3"]
IDS = [3, 9, 27, 4, 12, 5]


def state_of(loaded: LoadedEngine, ids: list[int]) -> np.ndarray:
    request = Request(ids, SamplingParams(), max_tokens=1, stop_ids=(), embeds=True)
    loaded.engine.submit(request)
    while not request.finished:
        loaded.engine.step()
    assert request.error is None and request.state is not None
    assert request.sequences[0].tokens == ids
    return np.array(request.state, np.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_make_logits(family: str, tmp_path: Path) -> None:
    tiny.write(family, tmp_path / "checkpoint", tokenizer=True)
    path = convert(tmp_path / "checkpoint", tmp_path / "artifact", "f32").path
    loaded = load_engine(ModelOptions(model=str(path), threads=1, max_sequences=2), False)
    vocab = loaded.program.vocab_size
    state = state_of(loaded, IDS)
    assert np.array_equal(state_of(loaded, IDS), state), "cached or not"
    assert not np.array_equal(state_of(loaded, IDS[:-1]), state)

    matrix, after = None, []
    makers = {op.output: op for op in loaded.program.ops}
    op = makers[loaded.program.output]
    while op.kind != "linear":
        after.append(op)
        op = makers[op.inputs[0]]
    place = next(t for t in loaded.artifact.manifest.tensors if t.name == op.weights[0])
    weights = native.Weights(str(loaded.artifact.weights_path))
    data = np.frombuffer(weights, np.uint8)[place.offset : place.offset + place.size]
    matrix = unpack(data, place.format, place.n, place.k)
    logits = matrix @ state
    for own in reversed(after):
        cap = float(own.attributes.get("cap", 0.0))
        logits = np.tanh(logits / cap) * cap if own.kind == "softcap" else logits
    found = empty(len(IDS), vocab)
    loaded.engine.logits(IDS, flat(found))
    np.testing.assert_allclose(logits[:vocab], np.asarray(found)[-1], atol=2e-4, rtol=1e-4)


def test_a_program_without_such_a_state_is_refused(tmp_path: Path) -> None:
    tiny.write("llama", tmp_path / "checkpoint", tokenizer=True)
    path = convert(tmp_path / "checkpoint", tmp_path / "artifact", "f32").path
    loaded = load_engine(ModelOptions(model=str(path), threads=1), False)
    program = loaded.program
    weights = native.Weights(str(loaded.artifact.weights_path))
    gated = [op for op in program.ops if op.kind == "linear" and op.attributes["gate"] != "none"]
    cut = SimpleNamespace(ops=program.ops, output=gated[-1].output, values=program.values)
    with pytest.raises(UnsupportedError, match="can't make embeddings"):
        FinalState(cut, loaded.artifact.manifest.tensors, weights)  # type: ignore[arg-type]
