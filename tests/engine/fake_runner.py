"""A runner whose model is a hash: the next token is a function of all tokens that its KV pages
really hold.

It reads what a real attention would read, through the page tables, so that a page that is shared
wrongly, given back too early or not copied changes the answer.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence

from subsecond.engine.engine import Engine
from subsecond.engine.pages import PAGE_POSITIONS, CacheGroup
from subsecond.engine.request import Request

POISON = -7777


class FakeSampler:
    """Greedy on the hash, salted with the choice, so that the texts of one request differ."""

    def __init__(self, request: Request, choice: int) -> None:
        self.request = request
        self.choice = choice
        self.generated = 0
        self.chosen: list[int] = []  # in the last run
        self.bits = b""

    def choose(self, digest: int, vocab_size: int) -> int:
        token = zlib.crc32(b"%d/%d" % (digest, self.choice)) % vocab_size
        if self.generated < self.request.params.min_tokens and token in self.request.stop_ids:
            token = (token + 1) % vocab_size
        if self.bits:
            token = self._allowed(token, vocab_size)
        self.generated += 1
        self.chosen.append(token)
        return token

    def _allowed(self, token: int, vocab_size: int) -> int:
        """The token, or the next one that is allowed; -1 if none is."""
        tried = ((token + step) % vocab_size for step in range(vocab_size))
        return next((id for id in tried if self.bits[id >> 3] >> (id & 7) & 1), -1)

    def allow(self, bits: bytes) -> None:
        self.bits = bits

    def logprobs(self, step: int) -> tuple[float, list[tuple[int, float]]]:
        best = [(self.chosen[step], -0.5 - step), (0, -3.0)]
        return -0.5 - step, best[: self.request.params.logprobs]


def score(digest: int, token: int) -> float:
    """The log probability of a token after the tokens of a digest."""
    return -(zlib.crc32(b"%d?%d" % (digest, token)) % 4096) / 256


class Scored:
    stop_ids = ()


class FakeScorer:
    """Takes its token, and scores it by the hash."""

    request = Scored()

    def __init__(self, token: int, top: int) -> None:
        self.token = token
        self.top = top
        self.chosen: list[int] = []
        self.logprob = 0.0

    def choose(self, digest: int, vocab_size: int) -> int:
        self.logprob = score(digest, self.token)
        return self.token

    def logprobs(self, step: int) -> tuple[float, list[tuple[int, float]]]:
        assert step == 0
        return self.logprob, [(id, -1.0 * id) for id in range(self.top)]

    def allow(self, bits: bytes) -> None:
        raise AssertionError("it chooses nothing")


class FakePlan:
    def __init__(self, runner: FakeRunner) -> None:
        def view(size: int) -> memoryview:
            return memoryview(array("i", [POISON]) * size)

        self.tokens = view(runner.max_tokens)
        self.sequence_start = view(runner.max_sequences + 1)
        self.position = view(runner.max_sequences)
        self.row = view(runner.max_rows)
        self.sampled = view(runner.max_rows * runner.max_steps)
        self.finish = view(runner.max_rows)
        self.samplers: list[FakeSampler | FakeScorer | None] = [None] * runner.max_rows
        self._tables = [
            view(runner.max_sequences * runner.max_pages_per_sequence) for _ in runner.groups
        ]
        self.stopped = False

    def page_table(self, group: int) -> memoryview:
        return self._tables[group]

    def set_sampler(self, row: int, sampler: FakeSampler | FakeScorer | None) -> None:
        self.samplers[row] = sampler

    def drafted(self, sequences: int, rows: int) -> list[bool]:
        """Whether each row belongs to the draft of the row before. Refuses what the runtime
        does.
        """
        found = [
            row > 0 and sampler is not None and sampler is self.samplers[row - 1]
            for row, sampler in enumerate(self.samplers[:rows])
        ]
        for row, follows in enumerate(found):
            if follows:
                assert self.row[row] == self.row[row - 1] + 1
                assert self.row[row] not in self.sequence_start[:sequences].tolist()
        first = [own for own, follows in zip(self.samplers, found, strict=False) if not follows]
        leads = [own for own in first if own is not None]
        assert len(set(map(id, leads))) == len(leads), "one sampler in two rows"
        return found

    def stop(self) -> None:
        self.stopped = True


class FakeRunner:
    """vocab_size tokens; pages hold token ids instead of keys and values."""

    def __init__(
        self,
        *,
        max_tokens: int = 48,
        max_sequences: int = 4,
        max_rows: int = 8,
        max_steps: int = 8,
        pages_per_group: int = 24,
        context: int = 512,
        vocab_size: int = 97,
        groups: Sequence[CacheGroup] = (CacheGroup(),),
    ) -> None:
        self.max_tokens, self.max_sequences, self.max_rows = max_tokens, max_sequences, max_rows
        self.max_steps, self.pages_per_group, self.vocab_size = (
            max_steps,
            pages_per_group,
            vocab_size,
        )
        self.max_pages_per_sequence = -(-context // PAGE_POSITIONS)
        self.groups = tuple(groups)
        self.plan = FakePlan(self)
        self.stores = [
            [[POISON] * PAGE_POSITIONS for _ in range(pages_per_group)] for _ in self.groups
        ]
        self.calls: list[tuple[int, int, int, int]] = []
        self.fail_next = False
        self.broken_row = -1  # of the next logits
        self.faults: dict[int, int] = {}  # row -> planted Plan.finish
        self._digests: list[int] = []

    def sampler(self, request: Request, choice: int) -> FakeSampler:
        return FakeSampler(request, choice)

    def scorer(self, token: int, top: int) -> FakeScorer:
        return FakeScorer(token, top)

    def copy_page(self, group: int, source: int, destination: int) -> None:
        self.stores[group][destination] = list(self.stores[group][source])

    def run(self, tokens: int, sequences: int, rows: int, max_steps: int) -> int:
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("planted failure")
        self.calls.append((tokens, sequences, rows, max_steps))
        plan = self.plan
        assert plan.sequence_start[0] == 0 and plan.sequence_start[sequences] == tokens
        assert max_steps == 1 or tokens == sequences == rows
        fed = [
            (s, plan.position[s] + i, plan.tokens[plan.sequence_start[s] + i])
            for s in range(sequences)
            for i in range(plan.sequence_start[s + 1] - plan.sequence_start[s])
        ]
        drafted = plan.drafted(sequences, rows)
        assert max_steps == 1 or not any(drafted)
        running = [True] * rows
        for step in range(max_steps):
            digests = [self._store_and_read(*entry) for entry in fed]
            self._digests = [digests[plan.row[row]] for row in range(rows)]
            for row, digest in enumerate(self._digests):
                sampler = plan.samplers[row]
                token = -1
                if drafted[row] and not (
                    running[row - 1]
                    and plan.sampled[row - 1] == plan.tokens[plan.row[row]] != POISON
                ):
                    plan.finish[row], running[row] = 0, False
                elif sampler is not None and row in self.faults:
                    plan.finish[row], running[row] = self.faults[row], False
                elif sampler is not None and running[row]:
                    if step == 0 and not drafted[row]:
                        sampler.chosen.clear()
                    token = sampler.choose(digest, self.vocab_size)
                    running[row] = token not in sampler.request.stop_ids and token >= 0
                    plan.finish[row] = 0 if running[row] else 1 if token >= 0 else 4
                plan.sampled[step * rows + row] = token
            if step + 1 == max_steps or not any(running) or plan.stopped:
                plan.stopped = False
                return step + 1
            fed = [
                (s, position + 1, plan.sampled[step * rows + s])
                if running[s]
                else (s, position, token)
                for s, position, token in fed
            ]
        raise AssertionError("unreachable")

    def logits(self, out: memoryview) -> int:
        for row, digest in enumerate(self._digests):
            for token in range(self.vocab_size):
                out[row * self.vocab_size + token] = float(
                    zlib.crc32(b"%d:%d" % (digest, token)) % 1000
                )
        return self.broken_row

    def _store_and_read(self, sequence: int, position: int, token: int) -> int:
        digest = 0
        for index, group in enumerate(self.groups):
            table, base = self.plan.page_table(index), sequence * self.max_pages_per_sequence
            page = table[base + position // PAGE_POSITIONS]
            self.stores[index][page][position % PAGE_POSITIONS] = token
            first = max(0, position - group.window + 1) if group.window else 0
            seen = [
                self.stores[index][table[base + p // PAGE_POSITIONS]][p % PAGE_POSITIONS]
                for p in range(first, position + 1)
            ]
            digest = zlib.crc32(repr(seen).encode(), digest)
        return digest


def reference(
    prompt: Sequence[int],
    max_tokens: int,
    *,
    choice: int = 0,
    stop_ids: Sequence[int] = (),
    groups: Sequence[CacheGroup] = (CacheGroup(),),
    vocab_size: int = 97,
) -> list[int]:
    """What the fake model generates, without pages, batches or chunks."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        digest = 0
        for group in groups:
            first = max(0, len(tokens) - group.window) if group.window else 0
            digest = zlib.crc32(repr(tokens[first:]).encode(), digest)
        tokens.append(zlib.crc32(b"%d/%d" % (digest, choice)) % vocab_size)
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


def assert_right(engine: Engine, request: Request, *, cut: bool = False) -> None:
    """Its texts are the reference's; cut: or the beginnings of these."""
    for choice, sequence in enumerate(request.sequences):
        expected = reference(
            request.prompt,
            request.max_tokens,
            choice=choice,
            stop_ids=request.stop_ids,
            groups=engine.pages.groups,
        )
        got = sequence.tokens[len(request.prompt) :]
        assert sequence.finish_reason is not None
        assert got == expected[: len(got)]
        if not cut and sequence.finish_reason in ("length", "stop"):
            assert got == expected
