"""`SamplingParams.constraint` through LLM: texts fit, alone, in batches and in streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from subsecond import LLM, Constraint, RequestError, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "of": {"enum": ["red", "green"]}},
    "required": ["ok", "of"],
    "additionalProperties": False,
}


def test_texts_fit_and_do_not_depend_on_the_crowd(llm: LLM) -> None:
    shaped = SamplingParams(
        max_tokens=120, temperature=1.5, seed=3, n=2, constraint=Constraint.json_schema(SCHEMA)
    )
    free = SamplingParams(max_tokens=30)
    alone = llm.generate("one", shaped)[0]
    crowd = llm.generate(["two", "one", "three"], [free, shaped, free])
    assert crowd[1].outputs == alone.outputs
    for output in alone.outputs:
        assert set(json.loads(output.text)) == {"ok", "of"}
        assert output.finish_reason == "stop"
    assert crowd[0].outputs == llm.generate("two", free)[0].outputs
    pieces = list(llm.stream("one", shaped))
    for index, output in enumerate(alone.outputs):
        own = [piece for piece in pieces if piece.index == index]
        assert "".join(piece.text for piece in own) == output.text
        assert own[-1].finish_reason == "stop"
        assert tuple(piece.token_id for piece in own) == output.token_ids


def test_choices_and_expressions_and_stops(llm: LLM) -> None:
    def text(constraint: Constraint, **more: object) -> str:
        params = SamplingParams(max_tokens=40, constraint=constraint, **more)  # type: ignore[arg-type]
        return llm.generate("x", params)[0].text

    assert text(Constraint.choice(["left", "right"])) in ("left", "right")
    assert text(Constraint.choice(["left"]), min_tokens=30, ignore_eos=True) == "left"
    assert text(Constraint.choice(["left"]), stop="f") == "le"
    assert len(text(Constraint.regex("[a-f]{7}"), temperature=5.0, seed=1)) == 7


def test_what_cant_be_followed_is_refused_before_anything_runs(llm: LLM) -> None:
    for constraint in (Constraint.regex("(a"), Constraint.json_schema({"type": "no"})):
        with pytest.raises(RequestError) as caught:
            llm.generate("x", SamplingParams(constraint=constraint))
        assert caught.value.param == "constraint"
    with pytest.raises(RequestError, match="json_schema"):
        SamplingParams(constraint={"type": "object"})  # type: ignore[arg-type]
    forbidden = dict.fromkeys(range(llm.vocab_size), -100.0)
    assert llm.generate(
        "x", SamplingParams(constraint=Constraint.choice(["a"]), logit_bias=forbidden)
    )


def test_parameters_with_a_constraint_are_values() -> None:
    one = SamplingParams(constraint=Constraint.regex("a"))
    assert one == SamplingParams(constraint=Constraint.regex("a"))
    assert hash(one) == hash(SamplingParams(constraint=Constraint.regex("a")))
    assert one != SamplingParams(constraint=Constraint.regex("b"))


def test_nothing_heavy_is_imported_and_nothing_at_all_without_one(tiny_artifact: Path) -> None:
    program = (
        "import sys; from subsecond import LLM, Constraint, SamplingParams as P\n"
        f"llm = LLM({str(tiny_artifact)!r})\n"
        "llm.generate('x', P(max_tokens=3)); print('llguidance' in sys.modules)\n"
        "llm.generate('x', P(max_tokens=3, constraint=Constraint.json_object()))\n"
        "print([n for n in ('numpy', 'torch', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["False", "[]"]
