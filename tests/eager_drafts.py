"""Drafts as no controller would make them: of any length, right and wrong, in every step that may
hold some.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from subsecond.engine.drafting import Drafting, TextDrafts
from subsecond.engine.engine import Engine


class Oracle:
    """Knows what texts will be, and spoils some of its guesses at a random place."""

    def __init__(self, texts: Sequence[Sequence[int]], vocab_size: int, seed: int) -> None:
        self._texts = [list(text) for text in texts]
        self._vocab_size = vocab_size
        self._random = random.Random(seed)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        length = len(tokens)
        known = [text for text in self._texts if text[:length] == tokens and len(text) > length]
        draft = known[0][length : length + most] if known else [0]
        if self._random.random() < 0.6:
            place = self._random.randrange(len(draft))
            draft[place] = self._random.randrange(self._vocab_size)
        return draft


class EagerDrafting(Drafting):
    """Checks drafts of random lengths, whatever they cost."""

    seed = 0

    def _rows(
        self, drafts: TextDrafts, texts: int, most: int, before: int, spent: float
    ) -> tuple[int, float]:
        self.seed += 1
        return random.Random(self.seed).randint(0, max(0, most)), 0.0

    def _is_free(self, step: object, now_s: float) -> bool:
        return True


def make_eager(engine: Engine, texts: Sequence[Sequence[int]], seed: int = 0) -> EagerDrafting:
    """The engine's steps have drafts from now on. texts: what prompts with their answers will
    be.
    """
    vocab_size = engine.runner.vocab_size
    drafting = EagerDrafting(lambda: Oracle(texts, vocab_size, seed), engine.scheduler)
    drafting.seed = 1000 * seed
    engine.drafting = drafting
    return drafting
