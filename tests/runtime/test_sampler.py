"""The native sampler against a plain NumPy reading of each option.

Owns: greedy choice, every option's effect on the distribution (chi-square with fixed seeds, so a
result never flickers), forbidden tokens, log probabilities, broken logits, and that a draw depends
on (seed, choice, position) alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from subsecond import _native

attention = _native.attention
Array = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]

ISAS = _native.kernels.isas()
VOCAB = 1601
DRAWS = 10_000


def logits(seed: int = 0, spread: float = 2.0, vocab: int = VOCAB) -> Array:
    return (spread * np.random.default_rng(seed).standard_normal(vocab)).astype(np.float32)


def reference(
    x: Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Probabilities:
    """The distribution that the options leave: best first, ties by lower id."""
    scaled = x.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    order = np.lexsort((np.arange(len(x)), -x))
    kept = order[:top_k] if top_k else order
    if top_p < 1:
        mass = np.cumsum(p[kept]) / p[kept].sum()
        kept = kept[: int(np.searchsorted(mass, top_p)) + 1]
    kept = kept[p[kept] >= min_p * p.max()]
    out = np.zeros(len(x))
    out[kept] = p[kept] / p[kept].sum()
    return out


def drawn(x: Array, draws: int = DRAWS, isa: str = ISAS[-1], **options: Any) -> Array:
    """How often each token came at the positions 0..draws-1."""
    counts = np.zeros(len(x), np.float32)
    attention.Probe(isa, **options).histogram(x, draws, counts)
    return counts


def assert_distribution(counts: Array, expected: Probabilities) -> None:
    """Pearson's chi-square; bins that expect under 10 are pooled. The limit is 5 deviations."""
    assert not counts[expected == 0].any()
    mean = expected * counts.sum()
    large = mean >= 10
    observed = np.append(counts[large], counts[~large].sum())
    mean = np.append(mean[large], mean[~large].sum())
    used = mean > 0
    chi2 = ((observed[used] - mean[used]) ** 2 / mean[used]).sum()
    freedom = int(used.sum()) - 1
    assert chi2 <= freedom + 5 * np.sqrt(2 * freedom) + 12


def test_greedy_takes_the_first_of_the_largest() -> None:
    x = logits()
    x[[700, 90, 1599]] = 50
    status, token, stop, _, top = attention.Probe().sample(x, 0)
    assert (status, token, stop, top) == ("ok", 90, False, [])


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.3, "top_k": 40},
        {"temperature": 0.9, "top_k": 1500},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 0.3},
        {"temperature": 1.0, "min_p": 0.02},
        {"temperature": 0.8, "top_k": 100, "top_p": 0.8, "min_p": 0.05},
        {"temperature": 1.5, "top_p": 0.999, "min_p": 0.001},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "min_p": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_distribution(options: dict[str, Any], spread: float) -> None:
    x = logits(1, spread)
    assert_distribution(drawn(x, seed=11, **options), reference(x, **options))


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 1025, 40_000])
@pytest.mark.parametrize("options", [{}, {"top_k": 10}, {"top_p": 0.95}, {"min_p": 0.1}], ids=str)
def test_vocabulary_sizes(vocab: int, options: dict[str, Any]) -> None:
    x = logits(2, 2.0, vocab)
    counts = drawn(x, 2000, seed=5, temperature=0.9, **options)
    assert_distribution(counts, reference(x, 0.9, **options))


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.97])
def test_the_nucleus_is_exact(top_p: float) -> None:
    """Every token of the reference's nucleus can be drawn, and no other one."""
    x = logits(3, 1.0, 400)
    x[100:160] = x[100]  # ties: the boundary takes lower ids first
    expected = reference(x, 1.0, top_p=top_p) > 0
    counts = drawn(x, 20_000, temperature=1.0, top_p=top_p, seed=1)
    assert not counts[~expected].any()
    assert counts[expected].all()


def test_equal_logits() -> None:
    x = np.zeros(2000, np.float32)
    assert_distribution(drawn(x, temperature=1.0, top_p=0.25), reference(x, top_p=0.25))
    assert_distribution(drawn(x, temperature=1.0), reference(x))


def test_tiny_and_huge_temperatures() -> None:
    x = logits(4)
    assert drawn(x, 200, temperature=1e-30)[x.argmax()] == 200
    flat = drawn(x, temperature=1e30, top_k=8, seed=3)
    assert_distribution(
        flat, reference(np.sign(reference(x, top_k=8)).astype(np.float32) * 50, 1.0)
    )


def test_some_logits_are_minus_infinity() -> None:
    x = logits(5)
    x[::2] = -np.inf
    for options in ({}, {"top_p": 0.9}, {"top_k": 2500}, {"min_p": 0.01}):
        assert_distribution(
            drawn(x, temperature=1.2, seed=2, **options), reference(x, 1.2, **options)
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 50}, {"top_p": 0.95}, {"top_p": 0.8, "min_p": 0.01}], ids=str
)
def test_a_draw_is_the_same_on_every_instruction_set(isa: str, options: dict[str, Any]) -> None:
    x = logits(6, 2.0, 20_000)
    counts = drawn(x, 300, isa, temperature=0.9, seed=9, **options)
    assert (
        counts.tobytes() == drawn(x, 300, "generic", temperature=0.9, seed=9, **options).tobytes()
    )


def test_draws_depend_on_seed_choice_and_position_alone() -> None:
    x = logits(7)

    def tokens(seed: int, choice: int, positions: range) -> list[int]:
        probe = attention.Probe(temperature=1.0, top_p=0.9, seed=seed, choice=choice)
        return [probe.sample(x.copy(), position)[1] for position in positions]

    base = tokens(1, 0, range(200))
    assert base == tokens(1, 0, range(200))
    assert base[100:] == tokens(1, 0, range(100, 200))  # nothing carries over from earlier draws
    assert tokens(1, 0, range(199, -1, -1)) == base[::-1]
    others = [tokens(2, 0, range(200)), tokens(1, 1, range(200)), tokens(1 << 40, 0, range(200))]
    for other in others:
        assert sum(a == b for a, b in zip(base, other, strict=True)) < 60


def test_philox_gives_the_published_numbers() -> None:
    """Random123's kat_vectors, philox4x32 with 10 rounds and all zeros: words 1 and 0."""
    assert attention.philox(0, 0, 0) == 0xE169C58D_6627E8D5


def test_repetition_penalty_covers_prompt_and_output() -> None:
    x = logits(8)
    probe = attention.Probe(repetition_penalty=1.7)
    probe.observe_prompt([3, 5, 3])
    probe.accept(9)
    probe.accept(9)
    adjusted = x.copy()
    probe.sample(adjusted, 0)
    expected = x.copy()
    for token in (3, 5, 9):
        expected[token] = x[token] / np.float32(1.7) if x[token] > 0 else x[token] * np.float32(1.7)
    np.testing.assert_array_equal(adjusted, expected)


def test_presence_and_frequency_penalties_cover_the_output() -> None:
    x = logits(9)
    probe = attention.Probe(presence_penalty=0.5, frequency_penalty=0.25)
    probe.observe_prompt([1, 2])
    for token in (4, 4, 4, 6):
        probe.accept(token)
    adjusted = x.copy()
    probe.sample(adjusted, 0)
    expected = x.copy()
    expected[4] -= np.float32(0.5 + 3 * 0.25)
    expected[6] -= np.float32(0.5 + 0.25)
    np.testing.assert_allclose(adjusted, expected, rtol=1e-6, atol=1e-6)
    assert np.flatnonzero(adjusted != x).tolist() == [4, 6]


def test_bias_comes_before_penalties_and_mask() -> None:
    x = np.zeros(100, np.float32)
    probe = attention.Probe(logit_bias=[(7, 4.0), (8, 6.0)], repetition_penalty=2.0)
    probe.accept(8)
    assert probe.sample(x.copy(), 0)[1] == 7  # 6 / 2 < 4
    mask = np.full(4, 0xFFFFFFFF, np.uint32)
    mask[0] &= ~np.uint32(1 << 7)
    assert probe.sample(x.copy(), 0, mask)[1] == 8
    assert attention.Probe(logit_bias=[(0, -np.inf)]).sample(x.copy(), 0)[1] == 1


def test_mask_allows_only_its_tokens() -> None:
    x = logits(10, vocab=1000)
    allowed = np.random.default_rng(0).random(1000) < 0.1
    bits = np.packbits(np.pad(allowed, (0, 24)), bitorder="little").view(np.uint32)
    probe = attention.Probe(temperature=2.0, seed=1)
    tokens = {probe.sample(x.copy(), position, bits)[1] for position in range(300)}
    assert len(tokens) > 10 and all(allowed[token] for token in tokens)


def test_stop_ids_and_min_tokens() -> None:
    x = np.zeros(50, np.float32)
    x[20], x[30] = 9, 8
    probe = attention.Probe(stop_ids=[30, 20], min_tokens=2)
    assert probe.sample(x.copy(), 0)[:3] == ("ok", 0, False)
    probe.accept(0)
    assert probe.sample(x.copy(), 1)[1] == 0
    probe.accept(0)
    assert probe.sample(x.copy(), 2)[:3] == ("ok", 20, True)


@pytest.mark.parametrize("n", [0, 1, 7, 20])
def test_logprobs_are_of_the_unmodified_logits(n: int) -> None:
    x = logits(11)
    probe = attention.Probe(
        temperature=0.5,
        top_k=3,
        logprobs=n,
        logit_bias=[(17, 30.0)],
        presence_penalty=1.0,
        repetition_penalty=2.0,
    )
    probe.accept(int(x.argmax()))
    _, token, _, logprob, top = probe.sample(x.copy(), 0)
    expected = x - x.max() - np.log(np.exp(x.astype(np.float64) - x.max()).sum())
    assert token == 17
    assert logprob == pytest.approx(expected[17], abs=1e-5)
    best = np.lexsort((np.arange(VOCAB), -x))[:n]
    assert [t for t, _ in top] == best.tolist()
    np.testing.assert_allclose([value for _, value in top], expected[best], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}, {"logprobs": 2}],
    ids=str,
)
def test_broken_logits_never_give_a_token(options: dict[str, Any]) -> None:
    for where in (0, 900, VOCAB - 1):
        for bad in (np.nan, np.inf):
            x = logits(12)
            x[where] = bad
            assert attention.Probe(**options).sample(x, 0)[:2] == ("non_finite", -1)
    nothing = np.full(VOCAB, -np.inf, np.float32)
    assert attention.Probe(**options).sample(nothing, 0)[:2] == ("non_finite", -1)
    masked = attention.Probe(**options).sample(logits(12), 0, np.zeros(-(-VOCAB // 32), np.uint32))
    assert masked[:2] == ("none_allowed", -1)
    broken = logits(12)
    broken[5] = np.nan
    mask = np.full(-(-VOCAB // 32), 0xFFFFFFFF, np.uint32)
    mask[0] = 0xFFFFFFDF  # forbidding the broken token does not hide it
    assert attention.Probe(**options).sample(broken, 0, mask)[:2] == ("non_finite", -1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("inf")),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("logit_bias", [(-1, 1.0)]),
        ("logit_bias", [(1, float("nan"))]),
    ],
)
def test_bad_options_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        attention.Probe(**{option: value})
