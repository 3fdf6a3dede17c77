"""The real engine process with a real model: the same answers as LLM, and no way to outlive or to
disturb the process that started it.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import tiny

from subsecond import LLM, SamplingParams
from subsecond.engine.child import module_command
from subsecond.engine.messages import Event, LoadOptions, SamplingFields
from subsecond.engine.remote import RemoteEngine
from subsecond.errors import InputError
from subsecond.formats.convert import convert

PATIENCE_S = 60  # no test waits so long unless it fails
COMMAND = module_command("subsecond.serve.engine_process")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    tiny.write("llama", folder / "checkpoint", tokenizer=True)
    return convert(folder / "checkpoint", folder / "artifact", "int4").path


@asynccontextmanager
async def running(artifact: Path, **options: int) -> AsyncIterator[RemoteEngine]:
    engine = RemoteEngine(COMMAND)
    async with asyncio.timeout(PATIENCE_S):
        await engine.start()
        try:
            await engine.load("m", os.fspath(artifact), LoadOptions(**options))
            yield engine
        finally:
            await engine.close()


async def read(
    engine: RemoteEngine, prompt: list[int], params: SamplingFields, deadline_s: float = math.inf
) -> list[Event]:
    stream = await engine.submit("m", prompt, params, deadline_s=deadline_s)
    return [event async for event in stream]


def texts(events: list[Event], n: int) -> list[list[int]]:
    return [
        [token for event in events if event.choice == choice for token in event.tokens]
        for choice in range(n)
    ]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("steps_per_call", [1, 8])
def test_the_answers_are_llms(artifact: Path, steps_per_call: int) -> None:
    prompts = [[(7 * i + j) % 256 for j in range(1, 3 + 9 * i)] for i in range(12)]
    with LLM(artifact, threads=1, max_sequences=4) as llm:
        alone = [
            llm.generate(
                prompt,
                SamplingParams(max_tokens=24, temperature=0.9, seed=i, n=1 + i % 3, logprobs=2),
            )[0]
            for i, prompt in enumerate(prompts)
        ]
        stop_ids = list(llm._parts.settings.stop_ids)

    async def main() -> None:
        async with running(
            artifact, threads=1, max_sequences=4, max_tokens_per_step=32,
            steps_per_call=steps_per_call,
        ) as engine:  # fmt: skip
            answers = await asyncio.gather(
                *(
                    read(
                        engine,
                        prompt,
                        SamplingFields(
                            24, stop_ids, temperature=0.9, seed=i, n=1 + i % 3, logprobs=2
                        ),
                    )
                    for i, prompt in enumerate(prompts)
                )
            )
            for events, expected in zip(answers, alone, strict=True):
                assert texts(events, len(expected.outputs)) == [
                    list(output.token_ids) for output in expected.outputs
                ]
                assert [e.finish_reason for e in events if e.finish_reason] != []
                first = [
                    entry.logprob
                    for event in events
                    if event.choice == 0
                    for entry in event.logprobs or []
                ]
                assert first == [entry.logprob for entry in expected.outputs[0].logprobs or ()]

    asyncio.run(main())


def test_a_deadline_ends_the_answer(artifact: Path) -> None:
    async def main() -> None:
        async with running(artifact, threads=1) as engine:
            prompt = [1, 2, 3]
            (past,) = await read(engine, prompt, SamplingFields(8), time.monotonic() - 1.0)
            assert (past.finish_reason, past.tokens) == ("deadline", [])
            ample = await read(engine, prompt, SamplingFields(8), time.monotonic() + PATIENCE_S)
            assert ample[-1].finish_reason == "length"

    asyncio.run(main())


def test_loading_refuses_what_llm_refuses(artifact: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(artifact) as engine:
            with pytest.raises(InputError, match="no such file"):
                await engine.load("none", os.fspath(tmp_path / "nothing"))
            with pytest.raises(InputError, match="max_sequences"):
                await engine.load("bad", os.fspath(artifact), LoadOptions(max_sequences=0))
            assert texts(await read(engine, [1], SamplingFields(4)), 1)[0]

    asyncio.run(main())


def test_an_interrupt_from_the_terminal_is_the_fronts_affair(artifact: Path) -> None:
    async def main() -> None:
        async with running(artifact) as engine:
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGINT)
            assert texts(await read(engine, [1, 2], SamplingFields(4)), 1)[0]
            assert engine.health.restarts == 0

    asyncio.run(main())


FRONT = """
import asyncio, sys
from subsecond.engine.remote import RemoteEngine

async def main():
    engine = RemoteEngine(sys.argv[1:])
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a stopped process sees no closed connection")
def test_not_even_a_stopped_process_outlives_its_front() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FRONT, *COMMAND], stdout=subprocess.PIPE, text=True
    ) as front:
        assert front.stdout is not None
        pid = int(front.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        front.kill()
        front.wait(PATIENCE_S)
        give_up_s = time.monotonic() + PATIENCE_S
        while alive(pid) and time.monotonic() < give_up_s:
            time.sleep(0.01)
        assert not alive(pid)
