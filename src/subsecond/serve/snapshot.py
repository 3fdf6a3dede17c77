"""How a server stands at one moment: plain values, read in the event loop's thread and shown by
metrics and page.

Owns: the shape. Does not know: where the values come from, how they are shown.
"""

from __future__ import annotations

import msgspec


class ModelNow(msgspec.Struct, frozen=True, kw_only=True):
    """A served model. pages: KV pages by state (used, cached, free), of all cache groups together.
    limits: tokens a second that this machine can do at most, by how many answers it gives at once.
    capacity_per_s: requests of 128 tokens in and 48 out that can be promised; null without a
    deadline for all. margin: what promises add to predicted times.
    """

    name: str
    certificate: str
    weights: str
    executor: str
    context: int
    running: int
    waiting: int
    pages: dict[str, int]
    margin: float
    limits: dict[int, float]
    capacity_per_s: float | None
    within_s: float | None

    @property
    def kv_usage(self) -> float:
        """Part of the KV pages that requests hold."""
        return self.pages["used"] / max(1, sum(self.pages.values()))


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A server. unready: why no requests are taken; "" if they are. lag_s: of the event loop."""

    version: str
    unready: str
    lag_s: float
    connections: int
    restarts: int
    engine_pid: int | None
    audit_lost: int
    ledger_problem: str | None
    models: list[ModelNow]
