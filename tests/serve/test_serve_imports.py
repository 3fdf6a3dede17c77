"""What requests say and who may send them is known without an HTTP framework."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import subsecond

PROGRAM = """
import sys
from subsecond.serve import audit, errors, keys, ledger, limits
from subsecond.serve.schema import (
    chat, completions, embeddings, models, responses, responses_events, shared, tokens, wire
)
print(" ".join(name for name in sys.modules if "." not in name))
"""


def test_no_framework_and_nothing_heavy_is_imported() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(subsecond.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    names = set(run.stdout.split())
    assert not names & {
        "starlette", "uvicorn", "h11", "anyio", "asyncio", "numpy", "torch", "tokenizers", "jinja2",
    }  # fmt: skip
