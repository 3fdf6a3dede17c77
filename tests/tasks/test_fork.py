"""A forked child gets a clear error from its parent's model at once, and ends as it should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

SCRIPT = """
import os, sys, threading, time
from subsecond import LLM, RequestError, SamplingParams
llm = LLM(sys.argv[1], threads=2)
params = SamplingParams(max_tokens=400, ignore_eos=True)
stream = llm.stream("x", params)
next(stream)
busy, over = threading.Event(), threading.Event()
run = llm._parts.engine.runner.run
def watched(*sizes):
    busy.set()
    return run(*sizes)
llm._parts.engine.runner.run = watched
def work():
    while not over.is_set():
        llm.generate("the sky", params)
thread = threading.Thread(target=work)
thread.start()
busy.wait()
child = os.fork()
if child == 0:
    messages = []
    for call in (lambda: llm.generate("x"), lambda: llm.logits([1]), lambda: next(stream),
                 lambda: llm.tokenizer):
        try:
            call()
        except RequestError as error:
            messages.append(str(error))
    llm.close()
    print(len(messages), all("before the process forked" in m for m in messages), flush=True)
    with LLM(sys.argv[1], threads=2) as own:
        print(own.generate("x", params)[0].finish_reason, flush=True)
    sys.exit(7)
status = os.waitpid(child, 0)[1]
over.set()
thread.join()
print(os.waitstatus_to_exitcode(status), len(list(stream)) > 0, flush=True)
"""


def test_a_child_of_a_busy_parent_says_so_and_may_load_its_own(tiny_artifact: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tiny_artifact)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ended.stdout.split(), ended.stderr) == (["4", "True", "length", "7", "True"], "")
