"""Regular expressions of tokenizers: known ones pass, those that can take very long do not."""

from __future__ import annotations

import pytest

from subsecond.errors import ModelError, UnsupportedError
from subsecond.text.gguf_tokenizer import PRE_TOKENIZERS
from subsecond.text.regex_bounds import check_pattern

KNOWN = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek-v3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?"
    r"[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek-llm": r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+",
    "trailing space": r"\s+$",
    "exaone": r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+",
    "kimi": r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "digit triples": r"(?=(\d{3})+(?!\d))|\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
    "falcon": r"[\p{P}\$\+<=>\^~\|`]+|[0-9][0-9][0-9]",
    "classes": r"[]a-]+[^]]|[]]+|[[:alpha:]\]]|\x{20}\u00e9|(?<name>a)(?#note)(?i)b|c",
    "spaces": r" {2,}|[\r\n]",
}
SLOW = [
    r"(a+)+$", r"(a*)*b", r"(a|a)*b", r"(a|ab)+c", r"(a?)+b", r"(?:a+b?)+c", r"((a+)b?)*x",
    r"a*a*b", r"\s+\s+x", r"[a-z]+[a-z0-9]+!", r"(.+)(.+)(.+)=", r"(?:x+){3}y", r"(a|aa){20}b",
    r"(?=(a+)+b)", r"(?!(a*)*b)x", "a?" * 12 + "a" * 12, r"(?>(a+)+b)", r"(a{1,100}){1,100}b",
    r"a*(?i)x|a*b", r"(?:a+)?(?:a+)?b", r"a{0,50}a{0,50}b", r"(?:(?:a+)+b)?",
    r"(a|b){999999999}", r"(?:a+b){3}", r"a*(?:a*b)", r"a*(?=a*b)",
    r"a+(?>a+b)", r"a*(?:c|(?:a+d))", r"(?:a?a?a?a?a?a?){2}(?:a?){6}b",
]  # fmt: skip

RESTARTING = [
    r"[a-y]+[z0]", r"a+b", r"(?:[a-y]+)[z0]", r"\p{L}+\d", r"(?<=a)[a-y]+[z0]", r"\s+\S|x",
    r"[a-y]{1,100000}[z0]", r"(?>a+)b", r"a++[bc]", r"[a-y]+(?![a-z])[z]", r"(?i:ß)+x",
    r"[a-y]+[z0]|.", r"(?:ab)+c", r"x|(?:y|a+b)|z", r"a+(?:b)", r"\d|\p{Lu}*\p{Ll}+",
    r"[\x{4e00}-\x{9fff}]+b", r"\p{Han}+b", r"\p{Hebrew}+b", r" *\n|\S+",
]  # fmt: skip


@pytest.mark.parametrize("pattern", RESTARTING)
def test_repetitions_that_fail_at_every_place_of_a_run_are_refused(pattern: str) -> None:
    with pytest.raises(ModelError, match=r"here\.pattern .* can take time"):
        check_pattern(pattern, "here.pattern")


@pytest.mark.parametrize("pattern", [r"\s+(?!\S)|\s+", r"\p{L}+", r"a+b|a+", r"\d| *\n| +", r"a+"])
def test_repetitions_whose_run_is_taken_at_once_pass(pattern: str) -> None:
    check_pattern(pattern, "pattern")


@pytest.mark.parametrize("name", KNOWN)
def test_known_expressions_pass(name: str) -> None:
    check_pattern(KNOWN[name], "pattern")


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_our_own_expressions_pass(name: str) -> None:
    check_pattern(PRE_TOKENIZERS[name].regex or "x", "pattern")


@pytest.mark.parametrize("pattern", SLOW)
def test_expressions_that_can_take_very_long_are_refused(pattern: str) -> None:
    with pytest.raises(ModelError, match=r"here\.pattern .* can take time"):
        check_pattern(pattern, "here.pattern")


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", r"\g<1>", r"\k<n>", r"(?~ab)", r"(?x: a)", r"(?(1)a)"]
)
def test_syntax_that_cannot_be_judged_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(UnsupportedError, match="pattern uses"):
        check_pattern(pattern, "pattern")


@pytest.mark.parametrize("pattern", [None, 5, "a" * 20_000, "(" * 100 + ")" * 100, "[" * 100])
def test_what_is_no_sane_expression_is_refused(pattern: object) -> None:
    with pytest.raises(ModelError):
        check_pattern(pattern, "pattern")
