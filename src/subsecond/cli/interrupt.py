"""Ctrl-C: what it does to a command, and that it does it at once.

Owns: the handlers of SIGINT while a command runs. Does not know: the commands.

Python's own handler runs only between two steps of the interpreter, so a long call into native code
delays it, and work in other threads delays the end. The watch is told of the signal by the system
itself, on a pipe, and ends the process where the orderly end takes too long. That is safe at any
moment: whatever Subsecond writes appears whole or not at all.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import RawIOBase
from types import FrameType
from typing import Literal

INTERRUPTED = 130  # what a shell reports for SIGINT
NOTICE_S = 0.4  # until the interpreter must have raised KeyboardInterrupt
END_S = 3.0  # from there until files are closed and half-written folders removed


@contextmanager
def watched(say: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in the block; if the block then doesn't end soon, or Ctrl-C
    comes again, the process ends with INTERRUPTED after `say` was given the last line.

    Does nothing where Ctrl-C is ignored (nohup) or where this is not the main thread.
    """
    if not _is_ours():
        yield
        return
    noticed = threading.Event()

    def raise_it(*_: object) -> None:
        noticed.set()
        raise KeyboardInterrupt

    inlet, outlet = os.pipe()
    os.set_blocking(outlet, False)
    watch = threading.Thread(target=_watch, args=(inlet, noticed, say), daemon=True)
    try:
        watch.start()
    except RuntimeError:  # no thread can be had: Ctrl-C then waits for the block to notice
        unwatched: int | None = inlet
    else:
        unwatched = None
    before = signal.signal(signal.SIGINT, raise_it)
    wakeup_before = signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)
    try:
        yield
        if noticed.is_set():  # raised where Python only reports exceptions: a weakref's callback
            raise KeyboardInterrupt
    except Exception:
        if noticed.is_set():  # what fails because it was interrupted is no error of its own
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.set_wakeup_fd(wakeup_before)
        signal.signal(signal.SIGINT, before)
        os.close(outlet)  # ends the watch
        if unwatched is not None:
            os.close(unwatched)


@contextmanager
def calling(act: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `act`, between two steps of the interpreter, and raises nothing in the block."""
    if not _is_ours():
        yield
        return

    def call(_number: int, _frame: FrameType | None) -> None:
        act()

    before = signal.signal(signal.SIGINT, call)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_ours() -> bool:
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def _watch(inlet: int, noticed: threading.Event, say: Callable[[str], None]) -> None:
    """Waits for the first SIGINT, then for the end of the block."""
    with os.fdopen(inlet, "rb", buffering=0) as signals:
        if _next(signals, None) == "end":
            return
        if noticed.wait(NOTICE_S) and _next(signals, END_S) == "end":
            return
        say("subsecond: interrupted")
        os._exit(INTERRUPTED)


def _next(signals: RawIOBase, seconds: float | None) -> Literal["interrupt", "end", "late"]:
    """What comes first: SIGINT, the end of the block, or the end of the time."""
    while select.select([signals], [], [], seconds)[0]:
        numbers = signals.read(64)
        if not numbers:
            return "end"
        if signal.SIGINT in numbers:
            return "interrupt"
    return "late"
