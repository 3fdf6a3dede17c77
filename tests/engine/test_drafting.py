"""The controller, on a machine whose steps take what a table says: drafts win where texts repeat
themselves, and cost next to nothing where they don't, whatever is guessed.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from engine_at_rest import idle
from fake_runner import FakeRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond.engine import engine as engine_module
from subsecond.engine.cost import Coefficients, CostModel
from subsecond.engine.drafting import MOST, RowCosts, TextDrafts
from subsecond.engine.engine import Engine
from subsecond.engine.policy import StepLimits
from subsecond.engine.request import Request, SamplingParams
from subsecond.engine.sharing import Sharing
from subsecond.engine.speculate import PromptLookup

CALL_S = 0.08  # of a call beside its steps
TOKENS = 400


@dataclass
class Machine:
    """Seconds of a step: of its sequences, and of each row of a draft."""

    first: float = 0.05
    more: float = 0.12
    sequence: float = 0.15
    noise: float = 0.0

    def plain_s(self, sequences: int) -> float:
        return 1 + self.sequence * (sequences - 1)

    def seconds(self, sequences: int, drafted: int, source: random.Random) -> float:
        plain = self.plain_s(sequences)
        extra = self.first + self.more * (drafted - 1) if drafted else 0.0
        spread = 1.0
        if self.noise:
            spread = source.lognormvariate(0, self.noise)
            if source.random() < 0.03:
                spread *= 4
        return plain * (1 + extra) * spread


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


class TimedRunner(FakeRunner):
    """worth_s: what the chosen tokens take without drafts, in steps of as many texts."""

    machine = Machine()
    clock = Clock()
    source = random.Random(0)
    worth_s = 0.0
    most_steps = 1

    def run(self, tokens: int, sequences: int, rows: int, max_steps: int) -> int:
        done = super().run(tokens, sequences, rows, max_steps)
        drafted = tokens - sequences if rows == tokens else 0
        seconds = CALL_S + self.machine.seconds(sequences, drafted, self.source)
        for _ in range(done - 1):
            seconds += self.machine.seconds(sequences, 0, self.source)
        self.clock.now += seconds
        if rows == sequences < tokens:  # prompts
            self.worth_s += seconds
        else:
            chosen = sum(self.plan.sampled[place] >= 0 for place in range(rows * done))
            step_s = self.machine.plain_s(sequences) + CALL_S / self.most_steps
            self.worth_s += chosen / sequences * step_s
        return done

    def _store_and_read(self, sequence: int, position: int, token: int) -> int:
        """A model that sees little, but fast."""
        return digest_of(position, token)


class Pattern:
    """Guesses right where `good` says so, a place of the text at a time."""

    def __init__(self, texts: Sequence[Sequence[int]], good: Sequence[bool]) -> None:
        self._texts = [list(text) for text in texts]
        self._good = good

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        length = len(tokens)
        text = next(text for text in self._texts if text[:length] == tokens)
        return [
            token if self._good[(length + index) % len(self._good)] else (token + 1) % 97
            for index, token in enumerate(text[length : length + most])
        ]


def prompt_of(seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(97) for _ in range(20)]


def text_of(seed: int) -> list[int]:
    """A prompt with its answer."""
    text = prompt_of(seed)
    while len(text) < 20 + TOKENS:
        digest = digest_of(len(text) - 1, text[-1])
        text.append(zlib.crc32(b"%d/0" % digest) % 97)
    return text


def digest_of(position: int, token: int) -> int:
    return zlib.crc32(b"%d,%d" % (position, token))


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """Prompts with their answers."""
    return [text_of(seed) for seed in range(16)]


def time_of(
    texts: Sequence[Sequence[int]],
    proposer: Callable[[], object] | None,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    steps: int = 8,
) -> tuple[float, Engine]:
    """Virtual seconds in which the texts are answered together."""
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "time", clock)
        runner = TimedRunner(max_sequences=16, max_tokens=64, max_rows=64, pages_per_group=160)
        runner.machine, runner.clock, runner.source = machine, clock, random.Random(1)
        runner.most_steps = steps
        engine = Engine(runner, context=512, steps_per_call=steps, proposer=proposer)  # type: ignore[arg-type]
        requests = [
            Request(list(text[:20]), SamplingParams(), max_tokens=TOKENS, stop_ids=())
            for text in texts
        ]
        for request in requests:
            engine.submit(request)
        while not idle(engine):
            engine.step()
    for request, text in zip(requests, texts, strict=True):
        assert request.sequences[0].tokens == list(text)
    return clock.now, engine


WRONG = (False,)
RIGHT = (True,)
HOSTILE = {
    "always wrong": WRONG,
    "right once": (True, False),
    "right for three": (True, True, True, False),
    "right for long, then wrong for long": (True,) * 60 + (False,) * 120,
    "as likely as not": tuple(random.Random(2).random() < 0.5 for _ in range(391)),
    "seldom right": tuple(random.Random(3).random() < 0.15 for _ in range(391)),
}


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_is_two_per_cent_slower(
    name: str,
    count: int,
    steps: int,
    texts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Alone. Among others, the step that a token takes is worth what it is to all of them."""
    own, good = texts[:count], HOSTILE[name]
    drafted_s, engine = time_of(own, lambda: Pattern(own, good), Machine(), monkeypatch, steps)
    assert drafted_s <= 1.02 * engine.runner.worth_s  # type: ignore[attr-defined]
    if count == 1:
        plain_s, _ = time_of(own, None, Machine(), monkeypatch, steps)
        assert drafted_s <= 1.02 * plain_s


@settings(max_examples=40)
@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.integers(1, 12),
    st.sampled_from([1, 2, 5]),
    st.floats(0.0, 0.2),
    st.floats(0.02, 0.5),
)
def test_no_pattern_of_right_and_wrong_costs_two_per_cent(
    pattern: list[bool], each: int, count: int, first: float, more: float
) -> None:
    own = [text_of(seed) for seed in range(count)]
    machine = Machine(first=first, more=more)
    good = [right for right in pattern for _ in range(each)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        drafted_s, engine = time_of(own, lambda: Pattern(own, good), machine, monkeypatch)
    assert drafted_s <= 1.02 * engine.runner.worth_s  # type: ignore[attr-defined]


@pytest.mark.parametrize(("count", "ratio"), [(1, 4.0), (2, 2.5), (4, 1.5)])
def test_texts_that_are_guessed_right_take_a_fraction(
    count: int, ratio: float, texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = texts[:count]
    plain_s, _ = time_of(own, None, Machine(), monkeypatch)
    drafted_s, engine = time_of(own, lambda: Pattern(own, RIGHT), Machine(), monkeypatch)
    assert drafted_s * ratio <= plain_s
    assert engine.drafting is not None
    assert engine.drafting.accepted > 0.8 * engine.drafting.drafted


def test_a_text_that_begins_to_repeat_itself_is_noticed(
    texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it can't be guessed; by then nothing of the account is left to try with."""
    good = [False] * 200 + [True] * 220
    own = texts[:1]
    plain_s, _ = time_of(own, None, Machine(), monkeypatch)
    drafted_s, _ = time_of(own, lambda: Pattern(own, good), Machine(), monkeypatch)
    assert drafted_s * 1.5 <= plain_s


def test_a_noisy_machine_turns_nothing_off_for_good(
    texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, own = Machine(noise=0.3), texts[:1]
    plain_s, _ = time_of(own, None, machine, monkeypatch)
    drafted_s, _ = time_of(own, lambda: Pattern(own, RIGHT), machine, monkeypatch)
    assert drafted_s * 2.5 <= plain_s
    wrong_s, _ = time_of(own, lambda: Pattern(own, WRONG), machine, monkeypatch)
    assert wrong_s <= 1.1 * plain_s  # noise alone makes two runs differ


def test_sixteen_texts_have_no_drafts(
    texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engine = time_of(texts, lambda: Pattern(texts, RIGHT), Machine(), monkeypatch)
    calls = engine.runner.calls  # type: ignore[attr-defined]
    assert any(call[1] == 16 and call[3] == 8 for call in calls)
    assert all(call[2] <= 16 for call in calls if call[1] == 16)


def test_calls_of_several_steps_stay_where_nothing_is_guessed(
    texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_s, plain = time_of(texts[:2], None, Machine(), monkeypatch)
    looked_s, engine = time_of(texts[:2], PromptLookup, Machine(), monkeypatch)
    assert engine.runner.calls == plain.runner.calls  # type: ignore[attr-defined]
    assert looked_s == plain_s


def test_p_is_learnt_from_guesses_that_no_step_checked() -> None:
    text = [1, 2, 3, 4]

    class Ones:
        def propose(self, tokens: Sequence[int], most: int) -> list[int]:
            return [1] * most

    drafts = TextDrafts(Ones())
    assert drafts.guess(text) == [1] * MOST
    before = drafts.chance
    text += [1] * 8
    drafts.guess(text)
    likely = drafts.chance
    text += [1, 7]
    drafts.guess(text)
    assert before < likely
    assert drafts.chance < likely
    for _ in range(60):
        text.append(5)
        drafts.guess(text)
    assert drafts.chance < 0.08


def test_costs_are_medians_of_what_steps_took() -> None:
    costs, unknown = RowCosts(), RowCosts().of(1, 3)
    costs.drafted((1,), 3, 9.0)  # nobody knows its plain step
    assert costs.of(1, 3) == unknown
    for seconds in (2.0, 2.0, 40.0, 2.0, 2.0):
        costs.plain((1,), seconds)
    for seconds in (2.2, 2.2, 80.0, 2.2, 2.2, 2.2, 2.2, 2.2):
        costs.drafted((1,), 1, seconds)
    assert costs.of(1, 1) == pytest.approx(0.1)
    for _ in range(9):
        costs.drafted((1,), 5, 3.0)
    assert costs.of(1, 5) == pytest.approx(0.5)
    assert costs.of(1, 0) == 0
    assert costs.of(2, 5) == RowCosts().of(2, 5)
    costs.plain((2,), 4.0)  # another text
    costs.drafted((1,), 5, 100.0)
    assert costs.of(1, 5) == pytest.approx(0.5)


def cost_model(row_s: float = 0.0) -> CostModel:
    curve = ((1, 0.003), (16, 0.010), (64, 0.030))
    return CostModel(Coefficients(curve, 0.0, 0.0, row_s), max_tokens=64, margin=1.0)


def served(left_s: float, promised: int, others: Sequence[Request] = ()) -> list[int]:
    """Tokens of the drafts of a text that is always guessed right, by step."""
    engine = Engine(
        TimedRunner(max_tokens=64, max_rows=64),
        context=512,
        steps_per_call=1,
        proposer=lambda: Pattern([text, text_of(2)], RIGHT),
    )
    engine.keep_promises(
        Sharing(cost_model(), StepLimits(tokens=64, sequences=4, rows=64, guard_s=0.0))
    )
    text = text_of(1)
    now_s = engine_module.time.monotonic()
    request = Request(
        text[:20],
        SamplingParams(),
        max_tokens=60,
        stop_ids=(),
        deadline_s=now_s + left_s,
        promised_tokens=promised,
        on_deadline="full",
    )
    engine.submit(request)
    engine.step()
    for other in others:
        engine.submit(other)
    drafted = []
    while not request.finished:
        report = engine.step()
        assert report is not None
        drafted.append(report.drafted)
    return drafted


def test_a_promise_leaves_room_for_drafts_or_not() -> None:
    assert sum(served(1e3, 60)) > 20
    assert sum(served(math.inf, 0)) > 20
    # 4 ms a token: a step of 3 ms is no danger, one with two tokens more would be.
    assert max(served(0.2, 50)[:1]) <= 2


def test_no_drafts_beside_a_prompt() -> None:
    waiting = Request(
        text_of(2)[:200], SamplingParams(), max_tokens=30, stop_ids=(), promised_tokens=30,
        deadline_s=1e12,
    )  # fmt: skip
    drafted = served(1e3, 60, [waiting])
    assert drafted[0] == 0


def test_deadlines_whose_steps_nobody_measured_get_no_drafts() -> None:
    text = text_of(1)
    engine = Engine(TimedRunner(max_rows=64), context=512, proposer=lambda: Pattern([text], RIGHT))
    request = Request(text[:20], SamplingParams(), max_tokens=60, stop_ids=(), deadline_s=1e12)
    engine.submit(request)
    while not idle(engine):
        engine.step()
    assert engine.drafting is not None
    assert engine.drafting.drafted == 0
