"""Ctrl-C at a chosen line, as CPython raises it between one line and the next."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any


def interrupted_at(
    line: int,
    modules: set[ModuleType],
    call: Callable[[], object],
    within: Callable[[FrameType], bool] = lambda _: True,
) -> bool:
    """Raises KeyboardInterrupt at the `line`th line that `call` runs in one of the modules, in
    frames that `within` holds for; False if there are fewer.
    """
    files = {module.__file__ for module in modules}
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files or not within(frame):
            return trace if event == "call" else None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return left <= 0
