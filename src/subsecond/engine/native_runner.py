"""A model on the native runtime, as the engine's Runner.

Owns: the model with its plan, and the order of a sampler's making. Does not know: requests, files.
"""

from __future__ import annotations

import functools
import os
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from subsecond.engine.final_state import FinalState
from subsecond.engine.pages import CacheGroup, page_count
from subsecond.engine.request import Request
from subsecond.program.program import Program
from subsecond.runtime import native

_alive: weakref.WeakSet[NativeRunner] = weakref.WeakSet()


@dataclass(frozen=True)
class Sizes:
    """What buffers are made for: tokens, sequences and logit rows of a step, steps of a call,
    positions of a sequence (`context`), KV pages a cache group.
    """

    max_tokens: int
    max_sequences: int
    max_rows: int
    max_steps: int
    context: int
    pages: int


class NativeRunner:
    """Fulfils `subsecond.engine.runner.Runner`.

    Raises ModelError where program, tensors and file don't fit together.
    """

    def __init__(
        self,
        program: Program,
        tensors: Sequence[native.TensorPlace],
        mapped: native.MappedFile,
        sizes: Sizes,
        *,
        isa: str | None,
        threads: int | None,
        kv: str,
    ) -> None:
        self.isa = native.choose_isa(isa)
        self.threads = threads or int(native.host()["cpus"])
        self.kv = kv
        self.max_tokens = sizes.max_tokens
        self.max_sequences = sizes.max_sequences
        self.max_rows = sizes.max_rows
        self.max_steps = sizes.max_steps
        self.max_pages_per_sequence = page_count(sizes.context)
        self.pages_per_group = sizes.pages
        self.vocab_size = program.vocab_size
        self.groups = tuple(CacheGroup(group.window) for group in program.groups)
        limits = native.Limits(sizes.max_tokens, sizes.max_sequences, sizes.max_rows)
        self._mapped = mapped
        self._model = native.build(
            program,
            tensors,
            mapped.weights,
            isa=self.isa,
            threads=self.threads,
            kv=kv,
            pages=sizes.pages,
            limits=limits,
        )
        self._final_state = functools.cache(lambda: FinalState(program, tensors, mapped.weights))
        self.plan = native.Plan(self._model, self.max_pages_per_sequence, sizes.max_steps)
        _alive.add(self)

    def sampler(self, request: Request, choice: int) -> native.Sampler:
        """A sampler for one text."""
        params, sampling = request.params, request.sampling
        sampler = native.Sampler(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            seed=request.seed,
            choice=choice,
            logit_bias=list(params.logit_bias.items()),
            stop_ids=request.stop_ids,
            min_tokens=params.min_tokens,
            logprobs=-1 if params.logprobs is None else params.logprobs,
        )
        if sampling.repetition_penalty != 1.0:
            sampler.observe_prompt(request.prompt)
        return sampler

    def scorer(self, token: int, top: int) -> native.Sampler:
        """A sampler that takes this token, whatever the logits, for its log probability."""
        sampler = native.Sampler(logprobs=top)
        sampler.force(token)
        return sampler

    def state(self, row: int) -> array[float]:
        """The final state of a row of the last step: float32 [width]. UnsupportedError if this
        model has none that can be read.
        """
        return self._final_state().read(self._model, row)

    def run(self, tokens: int, sequences: int, rows: int, max_steps: int) -> int:
        """Runs the plan; the number of steps done. The interpreter's lock is released meanwhile.
        RuntimeFailure if the file of weights has become shorter.
        """
        self._mapped.check_whole()
        return int(self._model.run(self.plan, tokens, sequences, rows, max_steps))

    def copy_page(self, group: int, source: int, destination: int) -> None:
        """Copies one KV page."""
        self._model.copy_page(group, source, destination)

    def logits(self, out: memoryview[float]) -> int:
        """Logits of the last step's rows: float32 [rows * vocab_size]. The first row that is not
        finite, or -1.
        """
        return int(self._model.logits(out))

    def kv_page_bytes(self) -> int:
        """Bytes of one page in every cache group together."""
        return sum(int(self._model.kv_page_bytes(group)) for group in range(len(self.groups)))

    def leave_in_parent(self) -> None:
        """In a forked child: freeing the model would wait for threads that only the parent has."""
        self._model.leak()


def _after_fork() -> None:
    for runner in list(_alive):
        runner.leave_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
