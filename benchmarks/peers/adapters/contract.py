"""What the decoder benchmark asks of a system under test, and the job that one worker process
carries out.

Owns: the shapes of the conversation, nothing else. Imports no third-party package and little of the
standard library, because the cold start of every system is timed through it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Job(NamedTuple):
    """One worker's work. Lengths are in tokens."""

    adapter: str  # module of this package
    model: str  # the system's model file or folder
    format: str  # a label of the weights, which some adapters also act upon
    options: dict[str, Any]  # the adapter's own options; one that it does not know is an error
    threads: int
    measures: list[str]
    ids: str  # JSON file with "ids" and "text"
    repetitions: int
    prompt: int
    new: int
    prefill: int
    sequences: int
    context: int
    windows: int
    window: int
    spin_new: int
    offset: int  # of the first prompt: another in every round, so that no cache helps

    def positions(self) -> int:
        """Positions that the longest sequence of this job needs."""
        longest = max(self.prompt + self.new, self.prefill + 2 if "prefill" in self.measures else 0)
        if "context" in self.measures:
            longest = max(longest, self.prompt + self.context + self.new)
        return max(longest, self.window if "perplexity" in self.measures else 0)


class Generation(NamedTuple):
    """One greedy generation of a fixed length, timed on the monotonic clock from the call."""

    first_s: float
    last_s: float
    tokens: list[int]


class Adapter(Protocol):
    """A system under test. Greedy, end of text ignored, no speculation. No prompt comes twice, so a
    prefix cache finds nothing.
    """

    def version(self) -> str: ...

    def load(self, job: Job) -> None: ...

    def generate(self, ids: list[int], count: int) -> Generation: ...

    def generate_batch(self, prompts: list[list[int]], count: int) -> list[list[int]]: ...

    def negative_log_likelihood(self, ids: list[int]) -> float:
        """Sum over ids[1:] of -ln p(id | the ids before it)."""
        ...

    def first_text(self, job: Job, text: str) -> str:
        """Text of the first new token after `text`, in a process that has loaded nothing yet."""
        ...


def take_options(job: Job, **defaults: Any) -> dict[str, Any]:
    """The job's options over `defaults`; an unknown one is refused by name."""
    unknown = sorted(set(job.options) - set(defaults))
    if unknown:
        raise ValueError(f"{job.adapter}: unknown options {unknown}; known: {sorted(defaults)}")
    return {**defaults, **job.options}
