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

import msgspec
import pytest
import tiny

from subsecond import LLM, SamplingParams
from subsecond.engine.child import launch
from subsecond.engine.messages import Event, LoadOptions, SamplingFields
from subsecond.engine.remote import RemoteEngine
from subsecond.errors import InputError, ModelError
from subsecond.formats.convert import convert
from subsecond.serve import engine_command, engine_process
from subsecond.serve.engine_command import Begin, command_of

PATIENCE_S = 60  # no test waits so long unless it fails
COMMAND = command_of(Begin())


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


def test_a_process_that_was_started_before_is_taken_and_has_loaded(artifact: Path) -> None:
    """It is another one after a crash, which loads nothing that nobody asks for."""

    async def main() -> None:
        options = LoadOptions(threads=1, max_sequences=4)
        begin = Begin(path=os.fspath(artifact), options=options)
        with launch(command_of(begin)) as launched:
            engine = RemoteEngine(COMMAND, launched=launched)
            async with asyncio.timeout(PATIENCE_S):
                await engine.start()
                assert engine.pid == launched.process.pid
                await engine.load("m", os.fspath(artifact), options)
                first = await read(engine, [1, 2, 3], SamplingFields(6))
                os.kill(launched.process.pid, signal.SIGKILL)
                while engine.pid in (None, launched.process.pid) or engine.health.state != "ready":
                    await asyncio.sleep(0.01)
                again = await read(engine, [1, 2, 3], SamplingFields(6))
                assert texts(again, 1) == texts(first, 1)
                await engine.close()

    asyncio.run(main())


def test_a_process_that_nobody_takes_ends() -> None:
    with launch(COMMAND) as launched:
        assert alive(launched.process.pid)
    assert launched.process.returncode is not None
    assert launched.connection.fileno() == -1
    missing = ["/no/such/program"]
    with pytest.raises(OSError, match="No such file"):
        launch(missing)


def test_what_was_loaded_ahead_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def load(path: str, options: LoadOptions) -> tuple[object, str]:
        calls.append(path)
        if path == "bad":
            raise ModelError("it is bad")
        return object(), path

    monkeypatch.setattr(engine_process, "load", load)
    options = LoadOptions()
    ahead = engine_process.Ahead("m", options)
    other, _ = ahead.load("m", LoadOptions(threads=1))  # not what was begun
    first, second = ahead.load("m", options)[0], ahead.load("m", options)[0]
    assert calls.count("m") == 3 and len({id(own) for own in (other, first, second)}) == 3
    bad = engine_process.Ahead("bad", options)
    for _ in range(2):
        with pytest.raises(ModelError, match="it is bad"):
            bad.load("bad", options)
    assert calls.count("bad") == 2


def test_a_path_that_json_cannot_say_is_not_loaded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[str]] = []
    monkeypatch.setattr(engine_command, "launch", said.append)
    for path in (Path("/models/\udcff"), Path("/models/m")):
        engine_command.launch_for(path, LoadOptions(), "json")
    begins = [msgspec.json.decode(words[-1], type=Begin) for words in said]
    assert begins == [Begin("json"), Begin("json", "/models/m")]
