"""Answers on Redis: found by every server that shares it, and missed, never waited for, whatever
Redis does.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from certificates import certificate
from command import COMMAND, ENVIRONMENT
from fake_redis import FakeRedis, fake_redis
from running import PATIENCE_S, becomes, rests, serving

from subsecond.engine.messages import TokenLogprob
from subsecond.errors import InputError
from subsecond.serve import redis_answers
from subsecond.serve.answer_cache import KeptText, encode
from subsecond.serve.keys import KeyFile
from subsecond.serve.redis_answers import LARGEST_BYTES, PREFIX, RedisAnswers
from subsecond.serve.settings import ServeSettings

KEY, OTHER = b"k" * 32, b"o" * 32
TEXTS = [KeptText("é", [1, 2], [], "stop"), KeptText("", [], [], "length")]
PASSWORD = "secret-of-the-url"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings come soon."""
    monkeypatch.setattr(redis_answers, "PAUSE_S", 0.02)
    monkeypatch.setattr(redis_answers, "MOST_PAUSE_S", 0.05)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A healthy Redis is waited for on a busy machine."""
    monkeypatch.setattr(redis_answers, "FIND_S", 5.0)


@contextmanager
def real_redis(folder: Path, *words: str) -> Iterator[int]:
    """The port of a real one, PORT among the words. Skips where there is none."""
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on this machine")
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--daemonize", "no",
               "--requirepass", PASSWORD]  # fmt: skip
    options += [word.replace("PORT", str(port)) for word in words]
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as process:
        try:
            end_s = time.monotonic() + PATIENCE_S
            while time.monotonic() < end_s:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.01)
            yield port
        finally:
            process.kill()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with real_redis(tmp_path_factory.mktemp("redis"), "--port", "PORT") as port:
        yield port


async def kept(answers: RedisAnswers, key: bytes, texts: list[KeptText]) -> None:
    answers.keep(key, texts)
    await becomes(lambda: not answers._tasks)


def test_what_one_server_keeps_another_finds(redis: int, patient: None) -> None:
    async def main() -> None:
        one, two = (RedisAnswers(f"redis://:{PASSWORD}@127.0.0.1:{redis}/0") for _ in range(2))
        assert await one.find(KEY) is None
        await kept(one, KEY, TEXTS)
        assert await one.find(KEY) == await two.find(KEY) == TEXTS
        assert await one.find(OTHER) is None
        assert 0 < await one._finds.ttl(PREFIX + KEY) <= redis_answers.KEPT_S
        await kept(one, OTHER, [KeptText("x" * LARGEST_BYTES, [1], [], "stop")])
        assert await one.find(OTHER) is None  # too large to be kept
        await one._finds.set(PREFIX + OTHER, OTHER + b"x" * LARGEST_BYTES)
        assert await one.find(OTHER) is None  # or to be taken, whoever wrote it
        for garbage in (b"\xff", encode([["x"]]), encode([KeptText("", [], [], "bad")])):  # type: ignore[arg-type]
            await one._finds.set(PREFIX + OTHER, OTHER + garbage)
            assert await one.find(OTHER) is None
        found = await asyncio.gather(*(two.find(KEY) for _ in range(50)))
        assert found == [TEXTS] * 50
        assert one.problem is two.problem is None
        await asyncio.gather(one.close(), two.close())

    asyncio.run(main())


def test_tls_is_checked(tmp_path: Path, patient: None) -> None:
    cert, key = certificate(tmp_path, "x")
    words = ["--port", "0", "--tls-port", "PORT", "--tls-cert-file", str(cert),
             "--tls-key-file", str(key), "--tls-auth-clients", "no"]  # fmt: skip

    async def main(port: int) -> None:
        known = f"?ssl_ca_certs={cert}"
        good, foreign, another = (
            RedisAnswers(f"rediss://:{PASSWORD}@{host}:{port}/0{query}")
            for host, query in (("127.0.0.1", known), ("127.0.0.1", ""), ("localhost", known))
        )
        await kept(good, KEY, TEXTS)
        assert await good.find(KEY) == TEXTS
        for own in (foreign, another):  # nobody's certificate, and one of another name
            assert await own.find(KEY) is None
            assert own.problem
        await asyncio.gather(*(own.close() for own in (good, foreign, another)))

    with real_redis(tmp_path, *words) as port:
        asyncio.run(main(port))


def test_questions_are_answered_again_by_another_server(
    artifact: Path, tmp_path: Path, redis: int, patient: None
) -> None:
    file = KeyFile(tmp_path / "keys.json")
    secrets = [file.create(name, ["use"])[0] for name in ("a", "b")]
    url = f"redis://:{PASSWORD}@127.0.0.1:{redis}/1"
    given: dict[str, Any] = {"keys": file.path, "answer_redis": url, "within_s": 30.0}

    async def main() -> None:
        async with serving(artifact, **given) as one, serving(artifact, **given) as two:
            first, second = one.server.engine, two.server.engine
            for running in (one, two):
                running.headers["authorization"] = f"Bearer {secrets[0]}"
            before = (first.submitted, second.submitted)
            said = await one.chat(max_tokens=6, logprobs=True)
            answers = one.server.answers
            assert isinstance(answers, RedisAnswers)
            await becomes(lambda: not answers._tasks)
            again = await two.chat(max_tokens=6, logprobs=True)
            assert (first.submitted, second.submitted) == (before[0] + 1, before[1])
            assert again.json["choices"] == said.json["choices"]
            assert again.json["subsecond"]["kept"] is True
            two.headers["authorization"] = f"Bearer {secrets[1]}"
            assert (await two.chat(max_tokens=6, logprobs=True)).status == 200
            assert second.submitted == before[1] + 1  # another tenant
            # What fits no answer to the question is computed, not shown.
            others = two.server.answers
            assert isinstance(others, RedisAnswers)
            plain = KeptText("x", [1], [TokenLogprob(-1.0, [])], "stop")
            planted = [
                [plain, plain], [], [msgspec.structs.replace(plain, tokens=[10**6])],
                [msgspec.structs.replace(plain, logprobs=[])],
                [msgspec.structs.replace(plain, tokens=[1] * 7, logprobs=plain.logprobs * 7)],
            ]  # fmt: skip
            for count, texts in enumerate(planted, 2):
                await becomes(lambda: not others._tasks)
                for name in await answers._finds.keys(PREFIX + b"*"):
                    await answers._finds.set(name, name.removeprefix(PREFIX) + encode(texts))
                assert (await two.chat(max_tokens=6, logprobs=True)).status == 200
                assert second.submitted == before[1] + count, texts
            await rests(two)

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["hang", "garbage", "cut", "other", "huge", "error"])
def test_every_fault_is_a_miss_and_heals(
    fault: str, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with fake_redis() as own:
            answers = RedisAnswers(f"redis://user:{PASSWORD}@127.0.0.1:{own.port}/0")
            await found(answers, own)
            own.values[PREFIX + OTHER] = OTHER + encode(TEXTS)
            own.fault = fault
            begun_s = time.monotonic()
            misses = [await answers.find(KEY) for _ in range(4)]
            assert misses == [None] * 4
            assert time.monotonic() - begun_s < PATIENCE_S / 10
            if fault != "other":
                assert answers.problem
                count = own.seen.count(b"GETRANGE")
                assert await asyncio.gather(*(answers.find(KEY) for _ in range(99))) == [None] * 99
                assert own.seen.count(b"GETRANGE") == count  # it isn't even asked
                answers.keep(KEY, TEXTS)
                assert not answers._tasks
            own.fault = ""
            await becomes(lambda: answers.problem is None)
            for _ in range(20):  # no connection was lost to the fault
                await found(answers, own)
            await answers.close()

    asyncio.run(main())
    assert PASSWORD not in caplog.text


async def found(answers: RedisAnswers, own: FakeRedis) -> None:
    """An answer is kept and found; on a busy machine it may take some attempts."""
    own.values[PREFIX + KEY] = KEY + encode(TEXTS)
    while await answers.find(KEY) != TEXTS:
        await asyncio.sleep(0.01)


def test_readers_that_leave_cost_no_connection(quick: None) -> None:
    async def main() -> None:
        async with fake_redis() as own:
            answers = RedisAnswers(f"redis://127.0.0.1:{own.port}")
            await found(answers, own)
            own.fault = "hang"
            tasks = [asyncio.create_task(answers.find(KEY)) for _ in range(50)]
            await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            own.fault = ""
            await becomes(lambda: answers.problem is None)
            for _ in range(20):
                await found(answers, own)
            await answers.close()

    asyncio.run(main())


def test_a_server_without_its_redis_answers_and_starts(artifact: Path, quick: None) -> None:
    """The port is bound and nobody listens; later, one does that never answers."""

    async def main() -> None:
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            url = f"redis://127.0.0.1:{own.getsockname()[1]}"
            async with serving(artifact, answer_redis=url, within_s=20.0) as running:
                for _ in range(3):
                    assert (await running.chat()).json["subsecond"]["kept"] is True
                assert running.server.answers is not None and running.server.answers.problem
                own.listen()
                assert (await running.chat()).json["subsecond"]["kept"] is True
                await rests(running)

    asyncio.run(main())


def test_urls_are_checked_and_passwords_stay_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for url in (
        "http://x", "redis://", "redis://h:0", "redis://h:99999", "redis://h:x", "nonsense",
        "redis://h/zero", "redis://h/0/1", "redis://h?db=x",
        f"redis://:{PASSWORD}@h?socket_timeout=1", f"rediss://:{PASSWORD}@h?ssl_cert_reqs=none",
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            redis_answers.check_url(url)
        assert PASSWORD not in str(caught.value)
    for url in ("redis://h", "rediss://u:p@[::1]:7/3?ssl_ca_certs=/c.pem", "unix:///tmp/r.sock"):
        redis_answers.check_url(url)
    settings = ServeSettings(models=(("m", "m"),), answer_redis=f"redis://:{PASSWORD}@h")
    assert PASSWORD not in repr(settings)
    with pytest.raises(InputError, match="on disk or on Redis"):
        ServeSettings(
            models=(("m", "m"),), answer_redis="redis://h", answer_cache_bytes=1 << 20,
            state=tmp_path,
        )  # fmt: skip
    monkeypatch.setattr(redis_answers, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"subsecond\[redis\]"):
        redis_answers.check_url("redis://h")


def test_a_password_among_the_arguments_is_refused(artifact: Path) -> None:
    words = ["--model", f"m={artifact}", "--answer-redis", f"redis://:{PASSWORD}@127.0.0.1:1"]
    run = subprocess.run(
        [*COMMAND, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "SUBSECOND_REDIS_URL" in run.stderr and PASSWORD not in run.stderr
