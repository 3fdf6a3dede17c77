"""What the engine needs of a runtime: one plan of preallocated arrays, one call that runs it.

Owns: the protocols alone. `subsecond.runtime.native` fulfils them; tests fulfil them with a fake
model.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Protocol

from subsecond.engine.pages import CacheGroup
from subsecond.engine.request import Request


class Sampler(Protocol):
    """Chooses the tokens of one text, and counts them for its penalties. In one row of a plan at a
    time.
    """

    def logprobs(self, step: int) -> tuple[float, list[tuple[int, float]]]:
        """(log probability of the chosen token, the best tokens) of a step of the last run."""
        ...

    def allow(self, bits: bytes) -> None:
        """Forbids all tokens but those whose bits are set, until it is told otherwise: one bit a
        token, little-endian words of 32; b"" allows all.
        """
        ...


class Plan(Protocol):
    """One step, preallocated. Writable views of int32; S sequences, R rows that get logits, T
    tokens.

    tokens [T]; sequence_start [S + 1]: where each sequence's tokens begin; position [S]: of its
    first token; row [R]: index of a token in the step. sampled [steps * R]: -1 where the row had
    already ended; finish [R]: 0 the text goes on, 1 it chose one of its stop ids, 3 its logits are
    NaN or infinite, 4 every token is forbidden to it; in the last two cases no token was chosen.
    """

    @property
    def tokens(self) -> memoryview: ...
    @property
    def sequence_start(self) -> memoryview: ...
    @property
    def position(self) -> memoryview: ...
    @property
    def row(self) -> memoryview: ...
    @property
    def sampled(self) -> memoryview: ...
    @property
    def finish(self) -> memoryview: ...

    def page_table(self, group: int) -> memoryview:
        """[S * max pages a sequence]: the page of each block of 64 positions."""
        ...

    def set_sampler(self, row: int, sampler: Any) -> None:
        """The sampler of a row, of `Runner.sampler`; None: its logits are wanted, no token."""
        ...

    def stop(self) -> None:
        """Ends a run of several steps after the current one, or the next run after its first;
        callable from any thread.
        """
        ...


class Runner(Protocol):
    """A model that runs plans. Limits are those that its buffers were made for."""

    @property
    def max_tokens(self) -> int: ...
    @property
    def max_sequences(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def max_pages_per_sequence(self) -> int: ...
    @property
    def pages_per_group(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def groups(self) -> Sequence[CacheGroup]: ...
    @property
    def plan(self) -> Plan: ...

    def sampler(self, request: Request, choice: int) -> Sampler:
        """A sampler for one text of a request. Random numbers are a function of the request's seed,
        the choice and the position; stop ids are forbidden before `min_tokens`.
        """
        ...

    def scorer(self, token: int, top: int) -> Sampler:
        """A sampler that takes this token, whatever the logits: its log probability, and those of
        the `top` best, are all that is wanted of it.
        """
        ...

    def state(self, row: int) -> array[float]:
        """The model's final state, normed, at a row of the last step: float32 [width]."""
        ...

    def run(self, tokens: int, sequences: int, rows: int, max_steps: int) -> int:
        """Runs the plan's first `tokens`, `sequences` and `rows`; the number of steps done."""
        ...

    def copy_page(self, group: int, source: int, destination: int) -> None:
        """Copies one KV page."""
        ...

    def logits(self, out: memoryview[float]) -> int:
        """Logits of the last step: float32 [rows * vocab_size]. The first row with a NaN, +inf or
        nothing but -inf; -1 if there is none.
        """
        ...
