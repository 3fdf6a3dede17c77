"""From settings to a listening server, and to its end.

Owns: the socket, the loop, the signals, uvicorn's configuration, the order of the end. Does not
know: what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from subsecond.engine.child import Launched
from subsecond.errors import InputError
from subsecond.serve import logs
from subsecond.serve.app import App
from subsecond.serve.loop_clock import new_loop
from subsecond.serve.protocol import protocol_of
from subsecond.serve.server import Server
from subsecond.serve.settings import ServeSettings

log = logging.getLogger(__name__)

ENDING_S = 5.0
"""For the last bytes of answers that were cut off by the end of the drain."""
_BACKLOG = 2048

Ready = Callable[[Server, str], Awaitable[None]]
"""Told of the server and its address when it listens, beside the first answers."""


def serve(
    settings: ServeSettings,
    paths: dict[str, Path],
    ready: Ready,
    launched: Launched | None = None,
) -> None:
    """Serves the artifacts until SIGTERM or SIGINT. paths: by the names of `settings.models`.
    launched: the engine process, where it was started before.

    Raises InputError for an address, keys or a state folder that can't be used, and whatever is
    wrong with a model, all before the port is open.
    """
    logs.configure(settings.log_format)
    tls = tls_of(settings)
    listener = bind(settings.host, settings.port)
    with contextlib.closing(listener), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(settings, paths, listener, tls, ready, launched))


async def _serve(  # noqa: PLR0917 (all that `serve` has)
    settings: ServeSettings,
    paths: dict[str, Path],
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    ready: Ready,
    launched: Launched | None,
) -> None:
    try:
        server = Server(settings, launched=launched)
    except OSError as error:
        raise InputError(f"can't write to {settings.state}: {error.strerror}") from None
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for own in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(own, stop.set)
    stopping = asyncio.create_task(stop.wait())
    opening = asyncio.create_task(server.open(paths))
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            return
        await opening
        if tls is not None:
            loop.add_signal_handler(signal.SIGHUP, _renew, tls, settings)
        http = uvicorn_of(server, tls)
        telling = _tell(ready, server, _url(listener, settings))
        await _listen(server, http, listener, stop, telling)
    finally:
        opening.cancel()
        stopping.cancel()
        await server.close()


async def _tell(ready: Ready, server: Server, url: str) -> None:
    try:
        await ready(server, url)
    except Exception:  # a fault in what is said is no reason to stop answering
        log.exception("what the server promises can't be said")


def _renew(tls: ssl.SSLContext, settings: ServeSettings) -> None:
    """SIGHUP: a certificate that was renewed, without a pause. One that can't be used changes
    nothing.
    """
    try:
        load_tls(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), settings)
        load_tls(tls, settings)
    except InputError as error:
        log.error("the old certificate stays: %s", error)


async def _listen(
    server: Server,
    http: uvicorn.Server,
    listener: socket.socket,
    stop: asyncio.Event,
    telling: Coroutine[Any, Any, None],
) -> None:
    """Answers until `stop`, then lets what was begun come to its end. telling: begun when it
    listens.
    """
    running = asyncio.create_task(http.serve([listener]))
    while not http.started and not running.done():
        await asyncio.sleep(0.001)
    told = asyncio.create_task(telling)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in (stopping, told):
        task.cancel()
    if not running.done():
        await server.drain()
        await server.engine.close()  # ends what is left with an error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDING_S):
                await server.idle.wait()
        http.should_exit = True
    await running


def uvicorn_of(server: Server, tls: ssl.SSLContext | None = None) -> uvicorn.Server:
    """The HTTP server, not yet listening. It takes no signals."""
    limits = server.settings.limits
    config = uvicorn.Config(
        App(server),
        http=protocol_of(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=limits.header_bytes,
        timeout_keep_alive=max(1, int(limits.idle_s)),
        timeout_graceful_shutdown=1,
    )
    http = _Uvicorn(config, tls, limits.headers_s)
    server.connections = lambda: len(http.server_state.connections)
    return http


class _Uvicorn(uvicorn.Server):
    """The signals are this server's own, and so is listening: uvicorn would wait a minute for a TLS
    handshake.
    """

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None, greet_s: float) -> None:
        super().__init__(config)
        self._tls = tls
        self._greet_s = greet_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Of uvicorn.Server."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Of uvicorn.Server."""
        config, loop = self.config, asyncio.get_running_loop()

        def connect() -> asyncio.Protocol:
            protocol: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state={}
            )
            return protocol

        self.servers = [
            await loop.create_server(
                connect,
                sock=own,
                backlog=_BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else self._greet_s,
            )
            for own in sockets or []
        ]
        self.started = True


def tls_of(settings: ServeSettings) -> ssl.SSLContext | None:
    """What connections are encrypted with; None: nothing. InputError for a certificate or a key
    that can't be used.
    """
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_tls(context, settings)
    return context


def load_tls(context: ssl.SSLContext, settings: ServeSettings) -> None:
    """Reads certificate and key, for connections from now on. InputError if they can't be used."""
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        return
    for name, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise InputError(f"{name}: can't read {path}: {error.strerror}") from None
    try:  # a password would be asked for on the terminal
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "it needs a password"
        raise InputError(
            f"--tls-cert {cert} and --tls-key {key} can't be used ({reason}); both must be PEM, "
            "the key without a password and of this certificate"
        ) from None


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound and doesn't listen yet."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        own = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"can't use the address {host}: {error.strerror}") from None
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
    except OSError as error:
        own.close()
        raise InputError(
            f"can't bind {host} port {port}: {error.strerror}; give another --port, or end what "
            "uses it"
        ) from None
    return own


def _url(listener: socket.socket, settings: ServeSettings) -> str:
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http{'' if settings.tls_cert is None else 's'}://{host}:{port}"
