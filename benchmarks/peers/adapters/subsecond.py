"""Subsecond, through its public Python API. The model is an artifact folder, or anything else that
`LLM` takes.

The time to the first token is the library's own figure, because `generate` returns only when all
tokens are there.
"""

from __future__ import annotations

import time
from typing import Any

from .contract import Generation, Job, take_options


class Adapter:
    def version(self) -> str:
        import subsecond

        return f"subsecond {subsecond.__version__}"

    def load(self, job: Job) -> None:
        from subsecond import LLM, SamplingParams

        options = take_options(job, kv=None, isa=None)
        self.params: Any = SamplingParams
        self.llm: Any = LLM(
            job.model,
            threads=job.threads,
            max_sequences=job.sequences,
            prefix_cache=0,  # no more memory than the running texts need
            speculation=False,  # as the peers
            **options,
        )

    def greedy(self, count: int) -> Any:
        return self.params(temperature=0.0, max_tokens=count, ignore_eos=True)

    def generate(self, ids: list[int], count: int) -> Generation:
        params = self.greedy(count)
        start = time.perf_counter()
        completion = self.llm.generate([ids], params)[0]
        last_s = time.perf_counter() - start
        first_s = completion.timing.queue_s + completion.timing.prefill_s
        return Generation(first_s, last_s, list(completion.token_ids))

    def generate_batch(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        completions = self.llm.generate(prompts, self.greedy(count))
        return [list(completion.token_ids) for completion in completions]

    def negative_log_likelihood(self, ids: list[int]) -> float:
        from .scoring import negative_log_likelihood

        return negative_log_likelihood(self.llm.logits(ids), ids)

    def first_text(self, job: Job, text: str) -> str:
        self.load(job)
        return str(self.llm.generate(text, self.greedy(1))[0].text)
