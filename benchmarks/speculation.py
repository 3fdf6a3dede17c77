"""Speculation against plain decoding, in one process: where texts repeat their prompt, where they
don't, and where guesses are as bad as they can be.

    python speculation.py ARTIFACT [--rounds 8] [--only repeating,worst,batch] [--threads 2]

Every case is answered by two LLMs over the same artifact, one with drafts and one without, in
turns: 16 tokens of the one, 16 of the other (several sequences: the whole answers). Which of them
has drafts, and which is first, changes from round to round, because two LLMs alike differ by a per
cent or two (where their memory lies); the token ids must be equal. A figure is the median over the
rounds of plain seconds over seconds with speculation, from the first to the last new token of all
sequences, with the least and the greatest round beside it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from speculation_cases import REPEATING, WORST, Prompt

from subsecond import LLM, SamplingParams
from subsecond.bench import cost, limits
from subsecond.engine.drafting import CREDIT
from subsecond.engine.speculate import PromptLookup, Proposer
from subsecond.formats.artifact import open_artifact

NEW = 128
TURN = 16  # tokens
ENOUGH = 1.02
CONTROL = "a story, both plain"


@dataclass
class Case:
    """Prompts that are answered together. spoiler: makes a guesser of the ids that will be chosen,
    in place of the shipped one. control: both answers are plain, which shows what a ratio is worth.
    """

    name: str
    kind: str
    prompts: list[list[int]]
    params: list[SamplingParams]
    spoiler: Callable[[Sequence[Sequence[int]]], Callable[[], Proposer]] | None = None
    control: bool = False
    plain_s: list[float] = field(default_factory=list)
    drafted_s: list[float] = field(default_factory=list)
    new: int = 0
    drafted: int = 0
    accepted: int = 0
    said: str = ""
    known: list[list[int]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Of all rounds."""
        ratios = [a / b for a, b in zip(self.plain_s, self.drafted_s, strict=True)]
        steps = self.new - len(self.prompts)
        return {
            "name": self.name,
            "kind": self.kind,
            "sequences": len(self.prompts),
            "prompt_tokens": sum(map(len, self.prompts)),
            "new_tokens": self.new,
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "greatest": max(ratios),
            "plain_tokens_per_s": steps / statistics.median(self.plain_s),
            "tokens_per_s": steps / statistics.median(self.drafted_s),
            "drafted": self.drafted,
            "accepted": self.accepted,
        }


class Spoiled:
    """Knows the texts, and guesses right only where `good` says so, a place of the text at a
    time.
    """

    def __init__(self, texts: Sequence[Sequence[int]], good: Sequence[bool]) -> None:
        self._texts = [list(text) for text in texts]
        self._good = good

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `Proposer`."""
        length = len(tokens)
        text = next((text for text in self._texts if text[:length] == tokens), [])
        return [
            token if self._good[(length + index) % len(self._good)] else token ^ 1
            for index, token in enumerate(text[length : length + most])
        ]


def spoiler(good: Sequence[bool]) -> Callable[[Sequence[Sequence[int]]], Callable[[], Proposer]]:
    """Makes what makes guessers of one pattern."""
    return lambda texts: lambda: Spoiled(texts, good)


def cases(llm: LLM, kinds: Sequence[str]) -> list[Case]:
    """The cases of these kinds."""
    found = []
    for kind, prompts in (("repeating", REPEATING), ("worst", WORST)):
        found += [
            Case(prompt.name, kind, [ids(llm, prompt)], [params(prompt)]) for prompt in prompts
        ]
    story, coin = WORST[0], random.Random(1)
    found.append(Case(CONTROL, "worst", [ids(llm, story)], [params(story)], control=True))
    for name, good in (
        ("every guess wrong", (False,)),
        ("one token right, one wrong", (True, False)),
        ("right for 40, wrong for 60", (True,) * 40 + (False,) * 60),
        ("right by the toss of a coin", tuple(coin.random() < 0.5 for _ in range(509))),
    ):
        found.append(Case(name, "worst", [ids(llm, story)], [params(story)], spoiler(good)))
    for count in (4, 16):
        own = [REPEATING[index % len(REPEATING)] for index in range(count)]
        found.append(
            Case(
                f"{count} sequences that repeat",
                "batch",
                [ids(llm, prompt) for prompt in own],
                [params(prompt) for prompt in own],
            )
        )
    return [case for case in found if case.kind in kinds]


def ids(llm: LLM, prompt: Prompt) -> list[int]:
    """Token ids, in the chat template where the prompt is a request."""
    if prompt.chat:
        return llm.encode_chat([{"role": "user", "content": prompt.text}])
    return llm.encode(prompt.text)


def params(prompt: Prompt) -> SamplingParams:
    """Of one answer. Every answer has `NEW` tokens, so that the text behind its end counts too."""
    return SamplingParams(
        temperature=prompt.temperature, seed=1, max_tokens=NEW, ignore_eos=not prompt.stop,
        stop=prompt.stop or (),
    )  # fmt: skip


def together(llm: LLM, case: Case) -> tuple[float, list[tuple[int, ...]]]:
    """Seconds from the first new token to the last of several sequences, and the ids."""
    answers = llm.generate(case.prompts, case.params)
    case.drafted = sum(own.usage.drafted_tokens for own in answers)
    case.accepted = sum(own.usage.accepted_tokens for own in answers)
    case.said = answers[0].text
    return max(own.timing.decode_s for own in answers), [own.token_ids for own in answers]


class Alone:
    """One sequence, taken some tokens at a time. seconds: behind its first token."""

    def __init__(self, llm: LLM, case: Case) -> None:
        self.request = llm.request(case.prompts[0], case.params[0])
        self._pieces = llm.stream_request(self.request)
        self._text = [next(self._pieces)]
        self.seconds = 0.0
        self.done = False

    def take(self, tokens: int) -> None:
        """So many more tokens, if there are."""
        begin_s = time.perf_counter()
        new = list(itertools.islice(self._pieces, tokens))
        self.seconds += time.perf_counter() - begin_s
        self._text += new
        self.done = len(new) < tokens

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self._text)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(piece.token_id for piece in self._text if piece.token_id is not None)


def in_turns(plain: LLM, drafting: LLM, case: Case, *, first: bool) -> tuple[float, float]:
    """Both answers to one prompt, `TURN` tokens of the one, then of the other: what else the
    machine does meets both. Seconds of plain decoding, and with drafts.
    """
    own, other = Alone(plain, case), Alone(drafting, case)
    order = [own, other] if first else [other, own]
    while not (own.done and other.done):
        for each in order:
            if not each.done:
                each.take(TURN)
    if own.ids != other.ids:
        raise RuntimeError(f"{case.name}: the answers differ")
    case.new, case.said = len(own.ids), own.text
    case.drafted, case.accepted = other.request.drafted_tokens, other.request.accepted_tokens
    return own.seconds, other.seconds


def texts_of(llm: LLM, case: Case) -> list[list[int]]:
    """The prompts with their answers."""
    _, found = together(llm, case)
    return [[*own, *new] for own, new in zip(case.prompts, found, strict=True)]


@contextlib.contextmanager
def roles(plain: LLM, drafting: LLM, case: Case) -> Iterator[None]:
    """One of them has no drafts meanwhile, the other those of the case."""
    engines = plain._parts.engine, drafting._parts.engine
    kept = [engine.drafting for engine in engines]
    engines[0].drafting = None
    own = kept[1]
    if own is None or case.control:
        engines[1].drafting = None
    else:
        own.proposer = PromptLookup if case.spoiler is None else case.spoiler(case.known)
        own.credit = CREDIT  # what the case before has lost is none of this one's
    try:
        yield
    finally:
        for engine, before in zip(engines, kept, strict=True):
            engine.drafting = before


def measure(plain: LLM, drafting: LLM, case: Case, *, first: bool) -> None:
    """One round of a case. first: plain decoding comes first."""
    if len(case.prompts) == 1:
        plain_s, drafted_s = in_turns(plain, drafting, case, first=first)
    else:
        before = together(plain, case) if first else None
        drafted_s, found = together(drafting, case)
        drafted, accepted = case.drafted, case.accepted
        plain_s, expected = before or together(plain, case)
        if found != expected:
            raise RuntimeError(f"{case.name}: the answers differ")
        case.new, case.drafted, case.accepted = sum(map(len, found)), drafted, accepted
    case.plain_s.append(plain_s)
    case.drafted_s.append(drafted_s)


def limit_of(artifact: str, threads: int, context: float) -> float:
    """Tokens/s that the bytes of weights and KV cache allow plain decoding on this machine."""
    work = cost.work_of_artifact(open_artifact(artifact, check=False))
    return 1 / cost.decode_floor_s(work, limits.measure(threads), context)


def line(own: dict[str, Any]) -> str:
    """A row of the table."""
    share = f"{own['accepted']}/{own['drafted']}"
    return (
        f"{own['name']:34} {own['sequences']:3} {own['new_tokens']:5}  {own['ratio']:5.2f} "
        f"({own['least']:.2f} to {own['greatest']:.2f})  {own['plain_tokens_per_s']:6.0f} "
        f"{own['tokens_per_s']:6.0f}  {share:>9}"
    )


def main() -> int:
    """Exit code 1 where a case is slower than the promise."""
    parser = argparse.ArgumentParser(description="speculation against plain decoding")
    parser.add_argument("artifact")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", default="repeating,worst,batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="what is answered")
    options = parser.parse_args()
    given: dict[str, Any] = {"threads": options.threads, "prefix_cache": 0}
    with LLM(options.artifact, **given) as one, LLM(options.artifact, **given) as other:
        own = cases(one, options.only.split(","))
        for number in range(-1, options.rounds):  # the first one warms everything up
            plain, drafting = (one, other) if number % 2 else (other, one)
            for case in own:
                if case.spoiler is not None and not case.known:
                    case.known = texts_of(plain, case)
                with roles(plain, drafting, case):
                    measure(plain, drafting, case, first=number // 2 % 2 == 0)
                if number < 0:
                    case.plain_s.clear()
                    case.drafted_s.clear()
    figures = [case.figures() for case in own]
    limit = limit_of(options.artifact, options.threads, statistics.mean(map(_context, own)))
    print(f"{'case':34} seq   new  ratio                 plain  tok/s  chosen/drafted")
    for case, row in zip(own, figures, strict=True):
        print(line(row))
        if options.show:
            print("    " + repr(case.said[:400]))
    print(f"the machine's limit of plain decoding, one sequence: {limit:.0f} tokens/s")
    slow = [row["name"] for row in figures if row["ratio"] * ENOUGH < 1]
    if slow:
        print(f"slower by more than 2 %: {', '.join(slow)}")
    print(json.dumps({"limit_tokens_per_s": limit, "cases": figures}))
    return 1 if slow else 0


def _context(case: Case) -> float:
    return len(case.prompts[0]) + NEW / 2


if __name__ == "__main__":
    sys.exit(main())
