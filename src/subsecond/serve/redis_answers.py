"""Answers that are given again, kept on a Redis that servers may share.

Owns: the client, the bounds of time and size, and the breaker. Does not know: what makes two
questions the same (`answer_cache`), HTTP.

A Redis that is slow, full of garbage or gone costs a miss and nothing else: an answer is waited for
`FIND_S` at most, after a failure it isn't asked at all until it has answered a ping, which is tried
beside all requests. What it gives is believed only if it is an answer to this very key: a value
begins with its key, so that not even a mix-up on a connection could show a text to another tenant.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import ssl
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

from subsecond.errors import InputError
from subsecond.serve.answer_cache import PENDING, KeptText, decode, encode

log = logging.getLogger(__name__)

T = TypeVar("T")

FIND_S = 0.02
"""A promise may have to wait for so long, once, until the breaker is open."""
KEEP_S = 1.0
CONNECT_S = 1.0
PAUSE_S, MOST_PAUSE_S = 0.5, 30.0
"""Between two pings of a Redis that has failed; doubled with every further one."""
SLOW = 3
"""So many answers in a row that are late open the breaker; anything worse does at once."""
LARGEST_BYTES = 1 << 20
KEPT_S = 7 * 24 * 3600
"""An answer is forgotten after a week: what asks for those of an old build is gone by then."""
PREFIX = b"subsecond:answer:"
FINDS, KEEPS = 8, 2  # connections

_DATABASE = re.compile(r"/?|/[0-9]{1,5}")
_SCHEMES = ("redis", "rediss", "unix")
_QUERY = frozenset({"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})


def check_url(url: str) -> None:
    """InputError, which never shows the URL's password, for one that isn't Redis'."""
    try:
        parts = urlsplit(url)
        port = parts.port
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise InputError("the Redis URL can't be read; give redis://HOST:PORT/DB") from None
    if parts.scheme not in _SCHEMES or not (parts.hostname or parts.scheme == "unix") or port == 0:
        raise InputError(
            "the Redis URL must be redis://HOST:PORT/DB, rediss://... for TLS, or unix://PATH"
        )
    if parts.scheme != "unix" and not _DATABASE.fullmatch(parts.path):
        raise InputError("the Redis URL must end with the number of its database, such as .../0")
    for name, value in query:
        if name not in _QUERY or (name == "db" and not _DATABASE.fullmatch(f"/{value}")):
            raise InputError(
                f"the Redis URL has {name!r:.40}; only {', '.join(sorted(_QUERY))} may be there"
            )
    if find_spec("redis") is None:
        raise InputError("answers on Redis need its client; install subsecond[redis]")


def has_password(url: str) -> bool:
    """Whether others, who may see this process's arguments, mustn't see the URL."""
    return urlsplit(url).password is not None


class RedisAnswers:
    """Of one server. problem: why Redis isn't asked now; None if it is."""

    def __init__(self, url: str) -> None:
        """Connects to nothing yet. InputError for a URL that can't be used."""
        check_url(url)
        self.problem: str | None = None
        self._finds, self._keeps = _client(url, FINDS), _client(url, KEEPS)
        self._slow = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._pinging: asyncio.Task[None] | None = None

    async def find(self, key: bytes) -> list[KeptText] | None:
        """The answer of a question, if it was given before and is there in time."""
        if self.problem is not None:
            return None
        # One byte more than may be: what is longer is not taken, and not read either.
        data = await self._try(lambda: self._finds.getrange(PREFIX + key, 0, LARGEST_BYTES), FIND_S)
        if not isinstance(data, bytes) or not data or len(data) > LARGEST_BYTES:
            return None
        if not hmac.compare_digest(data[: len(key)], key):
            log.warning("Redis has another answer than was asked for; it is not used")
            return None
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return decode(data[len(key) :])
        return None

    def keep(self, key: bytes, texts: list[KeptText]) -> None:
        """Keeps an answer, soon. Never waits; what comes too fast or is too long is not kept."""
        if self.problem is not None or len(self._tasks) >= PENDING:
            return
        value = key + encode(texts)
        if len(value) > LARGEST_BYTES:
            return

        async def keep() -> None:
            await self._try(lambda: self._keeps.set(PREFIX + key, value, ex=KEPT_S), KEEP_S)

        task = asyncio.create_task(keep(), name="subsecond-keep-answer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends the connections, after what is on its way or `KEEP_S`."""
        if self._pinging is not None:
            self._pinging.cancel()
        waiting = [*self._tasks, *([self._pinging] if self._pinging is not None else [])]
        if waiting:
            await asyncio.wait(waiting, timeout=KEEP_S)
        for client in (self._finds, self._keeps):
            with contextlib.suppress(Exception):  # whatever it is, it is the end
                async with asyncio.timeout(KEEP_S):
                    await client.aclose()

    async def _try(self, ask: Callable[[], Awaitable[T]], within_s: float) -> T | None:
        """What Redis says in time; None otherwise. Opens the breaker where it must be."""
        try:
            async with asyncio.timeout(within_s):
                found = await ask()
        except TimeoutError:
            self._slow += 1
            if self._slow >= SLOW:
                self._open(f"it gave no answer within {within_s * 1e3:.0f} ms")
            return None
        except Exception as error:
            # What is no Redis makes the client raise whatever its parser stumbles over. Its words
            # may have parts of the URL and of answers.
            self._open(type(error).__name__)
            return None
        self._slow = 0
        return found

    def _open(self, problem: str) -> None:
        if self.problem is None:
            self.problem = problem
            log.warning("the answers on Redis can't be used now: %s", problem)
            self._pinging = asyncio.create_task(self._ping(), name="subsecond-ping-redis")

    async def _ping(self) -> None:
        """Closes the breaker when Redis answers again."""
        pause_s = PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_PAUSE_S)
            # New connections: broken ones needn't be tried one after the other.
            for client in (self._finds, self._keeps):
                with contextlib.suppress(Exception):
                    await client.connection_pool.disconnect(inuse_connections=False)
            answers = False
            with contextlib.suppress(Exception):  # whatever it is, it is no answer
                async with asyncio.timeout(CONNECT_S):
                    answers = bool(await self._finds.ping())
            if answers:
                self._slow, self.problem = 0, None
                log.warning("the answers on Redis are used again")
                return


def _client(url: str, connections: int) -> Any:
    """A client that retries nothing, for so many connections."""
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    tls = {}
    if urlsplit(url).scheme == "rediss":
        tls = {"ssl_check_hostname": True, "ssl_min_version": ssl.TLSVersion.TLSv1_2}
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=None,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_S,
            socket_timeout=KEEP_S,
            decode_responses=False,
            protocol=2,
            **tls,
        )
    except ValueError:
        raise InputError("the Redis URL can't be used; give redis://HOST:PORT/DB") from None
    return Redis.from_pool(pool)
