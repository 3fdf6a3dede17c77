"""One engine process as the front holds it: the child, its socket, the messages on it.

Owns: the start and the end of the process, its signs of life, bytes to messages. Does not know:
what other messages mean, what happens after the end.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from subsecond.engine.framing import FrameReader, frame
from subsecond.engine.health import WatchOptions
from subsecond.engine.messages import EngineMessage, FrontMessage, Ping, Pong, engine_decoder
from subsecond.errors import ProtocolError

CLOSED = "it closed its connection"


def module_command(module: str) -> list[str]:
    """Runs a module with this interpreter. The working directory is not searched for modules: it
    may hold files of others.
    """
    return [sys.executable, "-P", "-m", module]


@dataclass
class Launched:
    """A process that was started and that nobody listens to yet. As a context manager it ends one
    that nobody has taken by then.
    """

    process: subprocess.Popen[bytes]
    connection: socket.socket
    taken: bool = False

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.taken:
            self.connection.close()
            self.process.kill()
            self.process.wait()


def launch(command: Sequence[str]) -> Launched:
    """Starts `command` with the number of its end of a socket pair as the last argument. OSError if
    that is impossible.

    To be called in a thread that lives as long as the process may: Linux kills the process with the
    thread that started it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
    return Launched(process, ours)


class Child(asyncio.Protocol):
    """A running engine process. on_message: called with each of its messages but Pong, in the
    loop's thread. `answered`: it has given a sign of life. `lost` is done, with the reason, when
    nothing more will come.
    """

    def __init__(self, on_message: Callable[[EngineMessage], None]) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.answered = asyncio.Event()
        self._pong = 0
        self._on_message = on_message
        self._reader = FrameReader(engine_decoder())
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    async def start(self, launched: Launched) -> None:
        """Takes a process over, from `launch`. OSError if nothing can be said to it."""
        launched.taken = True
        self._process = launched.process
        try:
            launched.connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: self, sock=launched.connection)
        except BaseException:
            launched.connection.close()
            raise

    @property
    def pid(self) -> int | None:
        """Of the process; None before it was started."""
        return None if self._process is None else self._process.pid

    def send(self, message: FrontMessage) -> None:
        """Sends a message, or forgets it if the connection has ended. ProtocolError if it is too
        long.
        """
        data = frame(message)
        if self._transport is not None and not self.lost.done():
            self._transport.write(data)

    async def watch(self, options: WatchOptions) -> None:
        """Asks for signs of life until the process is lost, which it is when it gives none."""
        loop = asyncio.get_running_loop()
        sent = seen = 0
        silent_s, last_s = 0.0, loop.time()
        while not self.lost.done():
            if self._pong == sent:
                sent += 1
                self.send(Ping(sent))
            await asyncio.sleep(options.ping_s)
            now_s = loop.time()
            # If this process itself stood still, the other one isn't to blame for all of that time.
            silent_s += min(now_s - last_s, 2 * options.ping_s)
            last_s = now_s
            if self._pong != seen:
                seen, silent_s = self._pong, 0.0
            if silent_s > (options.hang_s if seen else options.start_s):
                self._lose(f"it gave no sign of life for {silent_s:.1f} s and was killed")

    async def drained(self) -> None:
        """Returns when the process reads what it is sent, or has ended."""
        await self._writable.wait()

    async def end(self) -> str:
        """Kills the process if it still runs; how it ended, in words."""
        self._lose("it was ended")
        if self._transport is not None:
            self._transport.abort()
        process = self._process
        if process is None:
            return "it was never started"
        if process.poll() is None:
            process.kill()
        return _ending(await asyncio.to_thread(process.wait))

    async def exit_code(self, timeout_s: float) -> int | None:
        """The exit code, waiting for it so long; None if the process still runs."""
        process = self._process
        if process is None:
            return None
        try:
            return await asyncio.to_thread(process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol."""
        try:
            for message in self._reader.feed(data):
                if self.lost.done():
                    return
                if isinstance(message, Pong):
                    self._pong = message.n
                    self.answered.set()
                else:
                    self._on_message(message)
        except ProtocolError as error:
            self._lose(f"it sent what is no message ({error})")

    def connection_lost(self, error: Exception | None) -> None:
        """Of asyncio.Protocol."""
        self._lose(CLOSED)

    def pause_writing(self) -> None:
        """Of asyncio.Protocol."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Of asyncio.Protocol."""
        self._writable.set()

    def give_up(self, reason: str) -> None:
        """Nothing more is expected of the process."""
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        self._writable.set()
        if not self.lost.done():
            self.lost.set_result(reason)


def _ending(code: int) -> str:
    if code < 0:
        try:
            return f"it was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"it was killed by signal {-code}"
    return f"it exited with code {code}"
