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


def test_the_text_part_of_a_multimodal_gemma_3_agrees_with_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    from subsecond.formats.safetensors_in import SafetensorsCheckpoint

    text = {k: v for k, v in tiny.config("gemma3").items() if k != "architectures"}
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "image_size": 28,
        "num_attention_heads": 2, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(3)
    settings = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    settings._attn_implementation = "eager"
    model = Gemma3ForConditionalGeneration(settings).float().eval()
    for parameter in model.parameters():  # their own start is too small to tell anything
        parameter.data = torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.12)
    model.tie_weights()
    model.save_pretrained(tmp_path, safe_serialization=True)
    tiny.write_tokenizer(tmp_path)
    checkpoint = SafetensorsCheckpoint(tmp_path)
    built = models.build(checkpoint.config, checkpoint.shapes)
    weights = {
        name: recipe.apply(
            {} if recipe.source is None else {recipe.source: checkpoint.read(recipe.source)}
        )
        for name, recipe in built.recipes.items()
    }
    executor = Interpreter(rewrites.fuse(built.program), weights)
    rng = np.random.default_rng(5)
    for length in (1, 17, 200):
        ids = [int(i) for i in rng.integers(0, 256, length)]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        allowed = cases.TOLERANCE * max(1.0, float(expected.std()))
        assert np.abs(executor.logits(ids, 0) - expected).max() <= allowed
