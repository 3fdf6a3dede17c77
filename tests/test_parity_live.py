"""Live comparison with transformers in float32: every logit, of every family, on both executors.

The extra [parity] brings torch and transformers; the recorded goldens (tests/models) cover the
same checkpoints without them.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny

from subsecond import models
from subsecond.program import rewrites
from subsecond.program.interpret import Interpreter

sys.path.insert(0, str(Path(__file__).resolve().parent / "goldens"))
import cases
import record

MISSING = [name for name in ("torch", "transformers") if find_spec(name) is None]
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: pip install '.[parity]'"),
    # transformers and torch announce their own deprecations on import and load.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("checkpoint", cases.CHECKPOINTS, ids=lambda c: c.name)
def test_all_logits_agree_with_transformers(checkpoint: cases.Checkpoint) -> None:
    config = tiny.config(checkpoint.family, **checkpoint.overrides)
    tensors = tiny.tensors(checkpoint.family, checkpoint.seed, config)
    built = models.build(config, {name: array.shape for name, array in tensors.items()})
    weights = {name: recipe.apply(tensors) for name, recipe in built.recipes.items()}
    fused = rewrites.fuse(built.program)
    executors = [Interpreter(built.program, weights), Interpreter(fused, weights)]
    if find_spec("subsecond._native") is not None:
        from native_model import NativeModel

        from subsecond.runtime import native

        executors += [NativeModel(fused, weights, isa=isa) for isa in native.host()["isas"]]
    prompts = [cases.prompt(checkpoint, length) for length in (*cases.LENGTHS, 2, 17)]
    for ids, expected in zip(prompts, record.reference(checkpoint, prompts), strict=True):
        allowed = cases.TOLERANCE * max(1.0, float(expected.std()))
        for executor in executors:
            for chunk in (0, 64):
                assert np.abs(executor.logits(ids, chunk) - expected).max() <= allowed
