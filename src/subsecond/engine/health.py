"""How a front watches over its engine process, and what it knows of it.

Owns: the values. Does not know: processes, messages on their way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["starting", "ready", "restarting", "failed", "stopped"]
ModelState: TypeAlias = Literal["loading", "ready", "failed"]


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """When the process counts as hung, and how it is started again.

    ping_s: between two signs of life. hang_s: without one, the process is killed; more than its
    longest step takes. start_s: the same for the first sign of a new process. backoff_s,
    backoff_most_s: before the second start in a row, doubled for every further one. stable_s: a
    process that was ready so long makes the next start the first in a row. failed_after: starts in
    a row without success that make the state "failed"; the attempts go on.
    """

    ping_s: float = 0.5
    hang_s: float = 30.0
    start_s: float = 60.0
    backoff_s: float = 0.1
    backoff_most_s: float = 10.0
    stable_s: float = 60.0
    failed_after: int = 5


@dataclass(frozen=True)
class Health:
    """The truth about the engine process. reason: why it isn't ready, "" if it is. restarts: so
    far. models: state and, where it failed, the reason.
    """

    state: State
    reason: str
    restarts: int
    models: dict[str, tuple[ModelState, str]]
