"""A server in miniature for tests of policy and admission: simulated time, costs that the test
chooses, and a record of what was promised and kept."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from subsecond.engine.admission import Decision, decide
from subsecond.engine.cost import Coefficients, CostModel, StepShape, shape_of
from subsecond.engine.policy import Item, StepLimits, next_step

LIMITS = StepLimits(tokens=512, sequences=64, rows=64)


def cost_model(*, margin: float = 1.0) -> CostModel:
    """About the default model on two cores: 3.4 ms a decode step, 0.4 ms a token more."""
    points = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    curve = tuple((tokens, 0.0033 + 0.0004 * (tokens - 1)) for tokens in points)
    return CostModel(Coefficients(curve, 7e-8, 1.0e-6, 5e-5), max_tokens=512, margin=margin)


def request(id_: int = 0, **fields: float) -> Item:
    """140 tokens in, 48 out, promised in full within a second."""
    given = {"prompt_left": 140, "decode_left": 48, "promised_tokens": 48, "deadline_s": 1.0}
    return Item(id=id_, **{**given, **fields})  # type: ignore[arg-type]


def shape(parts: Sequence[tuple[Item, int]]) -> StepShape:
    return shape_of(
        [
            (count, item.context, item.choices if count >= item.prompt_left else 0)
            for item, count in parts
        ]
    )


class Server:
    """Runs `next_step` with a fake clock. took: a step's seconds over the model's bound."""

    def __init__(
        self, cost: CostModel, limits: StepLimits, took: Callable[[], float] = lambda: 1.0
    ) -> None:
        self.cost, self.limits, self.took = cost, limits, took
        self.now_s = 0.0
        self.items: list[Item] = []
        self.kept: list[int] = []
        self.broken: list[tuple[int, float]] = []
        self.order: list[int] = []  # ids, as their last token comes

    def offer(self, new: Item) -> Decision:
        held = [item for item in self.items if item.promised]
        decision = decide(new, held, self.now_s, self.cost, self.limits)
        if decision.promised:
            self.items.append(new)
        return decision

    def step(self) -> list[tuple[Item, int]]:
        parts = next_step(self.items, self.now_s, self.cost, self.limits)
        if parts:
            self.now_s += self.cost.bound(shape(parts)) * self.took()
        for item, count in parts:
            self._commit(item, count)
        self.items = [item for item in self.items if item.prompt_left or item.decode_left]
        return parts

    def run_until(self, moment_s: float) -> None:
        while self.now_s < moment_s and self.step():
            pass
        if moment_s < math.inf:
            self.now_s = max(self.now_s, moment_s)

    def _commit(self, item: Item, count: int) -> None:
        if item.prompt_left:
            item.prompt_left -= count
            item.context += count
            if item.prompt_left:
                return
        else:
            item.context += 1
        item.decode_left -= 1
        if item.promised_tokens:
            item.promised_tokens -= 1
            if not item.promised_tokens and item.deadline_s < math.inf:
                if self.now_s > item.deadline_s:
                    self.broken.append((item.id, self.now_s - item.deadline_s))
                else:
                    self.kept.append(item.id)
        if not item.decode_left:
            self.order.append(item.id)


def usual(source: random.Random, id_: int, now_s: float) -> Item:
    del source
    return request(id_, deadline_s=now_s + 1.0, arrival_s=now_s)


def mixed(source: random.Random, id_: int, now_s: float) -> Item:
    """Any length, any deadline, promised in full or by half, some with several texts."""
    new = int(2 ** source.uniform(0, 8))
    return Item(
        id=id_,
        prompt_left=int(2 ** source.uniform(0, 10)),
        decode_left=new,
        deadline_s=now_s + source.choice([0.1, 0.25, 0.5, 1, 1, 2, 5, 20]),
        promised_tokens=source.choice([new, max(1, new // 2)]),
        arrival_s=now_s,
        priority=source.choice([-1, 0, 0, 1]),
        choices=source.choice([1, 1, 1, 3]),
    )
