"""Records the goldens of this folder.

    python tests/goldens/record.py logits      # from transformers in float32: extra [parity]
    python tests/goldens/record.py programs    # the text form of every family's program

Run it when a checkpoint or a prompt of cases.py changes, or when a program changes on purpose;
read the difference before committing it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE.parent.parent / "src")]

import cases  # noqa: E402
import tiny  # noqa: E402


def reference(
    checkpoint: cases.Checkpoint, prompts: list[list[int]]
) -> list[npt.NDArray[np.float32]]:
    """Logits [T, vocabulary] of each prompt from transformers, float32, eager attention."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        path = tiny.write(checkpoint.family, Path(folder), checkpoint.seed, **checkpoint.overrides)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    problems = {kind: names for kind, names in loading.items() if names}
    if problems:
        raise SystemExit(f"{checkpoint.name}: transformers did not load it cleanly: {problems}")
    model.eval()
    torch.set_num_threads(1)  # small matrices: threads cost more than they bring
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].numpy() for ids in prompts]


def record_logits() -> None:
    """Writes the chosen logits, and the standard deviation of all logits, of every checkpoint."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for checkpoint in cases.CHECKPOINTS:
        prompts = [cases.prompt(checkpoint, length) for length in cases.LENGTHS]
        for length, logits in zip(cases.LENGTHS, reference(checkpoint, prompts), strict=True):
            chosen = logits[np.ix_(cases.rows(length), cases.columns(checkpoint))]
            arrays[f"{checkpoint.name}/{length}"] = chosen
            arrays[f"{checkpoint.name}/{length}/std"] = np.array(logits.std(), np.float32)
    np.savez_compressed(cases.FILE, **arrays)
    sys.stdout.write(f"{cases.FILE}: {cases.FILE.stat().st_size} bytes\n")


def program_text(family: str) -> str:
    """The plain and the fused program of one layer of that family (two where layers differ)."""
    from subsecond import models
    from subsecond.program import rewrites

    changes = {"n_layer": 1} if family == "gpt2" else {"num_hidden_layers": 1}
    if family.startswith("gemma"):
        changes = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    config = tiny.config(family, **changes)
    plain = models.build(config, tiny.shapes(family, config)).program
    return f"# plain\n{plain.text()}\n# fused\n{rewrites.fuse(plain).text()}"


def record_programs() -> None:
    """Writes one text file a family."""
    cases.PROGRAMS.mkdir(exist_ok=True)
    for family in tiny.FAMILIES:
        (cases.PROGRAMS / f"{family}.txt").write_text(program_text(family))


if __name__ == "__main__":
    actions = {"logits": record_logits, "programs": record_programs}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        raise SystemExit(__doc__)
    actions[sys.argv[1]]()
