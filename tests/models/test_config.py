"""Configurations and checkpoints that must be refused, reported, or understood in two spellings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond import models
from subsecond.errors import ModelError, UnsupportedError
from subsecond.models.config import ConfigReader
from subsecond.models.recipe import Recipe, RowBlocks


def build(family: str = "llama", strict: bool = False, **changes: Any) -> models.Built:
    config = tiny.config(family, **changes)
    return models.build(config, tiny.shapes(family, config), strict)


def build_with(shapes: dict[str, tuple[int, ...]], **changes: Any) -> models.Built:
    return models.build(tiny.config("llama", **changes), shapes)


def llama_shapes(**changes: Any) -> dict[str, tuple[int, ...]]:
    return tiny.shapes("llama", tiny.config("llama", **changes))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tiny_configs_are_understood_completely(family: str) -> None:
    built = build(family, strict=True)
    assert built.warnings == []
    assert set(built.recipes) == {spec.name for spec in built.program.tensors}
    assert built.program.max_positions == 512
    for spec in built.program.tensors:
        recipe = built.recipes[spec.name]
        assert recipe.source is None or spec.name.startswith(recipe.source)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_unknown_keys_warn_and_strict_refuses(family: str) -> None:
    built = build(family, attention_flavour="new", torch_dtype="bfloat16", unset=None)
    assert len(built.warnings) == 1
    assert "attention_flavour" in built.warnings[0]
    with pytest.raises(ModelError, match="attention_flavour"):
        build(family, strict=True, attention_flavour="new")


def test_unknown_keys_of_rope_are_reported_by_their_path() -> None:
    built = build(rope_scaling={"rope_type": "linear", "factor": 2.0, "twist": 1})
    assert "rope_scaling.twist" in built.warnings[0]


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}, "rope_type = 'ntk'"),
        ("phi3", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic.*yarn, longrope"),
        ("llama", {"rope_scaling": {"type": "default", "mrope_section": [8]}}, "mrope_section"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
        ("llama", {"rope_scaling": {"type": "longrope", "factor": 4.0}}, "longrope"),
        ("llama", {"hidden_act": "quick_gelu"}, "quick_gelu"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (
            "gemma3",
            {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 8.0}},
            "rope_parameters.rope_type",
        ),
        ("llama", {"rope_interleaved": True}, "rope_interleaved"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias"),
        ("llama", {"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM.*LlamaForCausalLM"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "SequenceClassification"),
        ("llama", {"architectures": None, "model_type": "mamba"}, "mamba.*llama"),
        ("llama", {"architectures": ["LlamaForCausalLM", "X"]}, "several"),
    ],
)
def test_unsupported_options_are_refused_by_name(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        build(family, **changes)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"model_type": "qwen2"}, "contradicts"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "architectures.*list"),
        ("llama", {"rope_scaling": {"factor": 4.0}}, "no rope_type"),
        ("llama", {"rope_scaling": {"type": "linear", "rope_type": "default"}}, "contradicts"),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ("llama", {"hidden_size": 10**400}, "hidden_size"),
        ("llama", {"architectures": None, "model_type": None}, "neither"),
        (
            "llama",
            {"architectures": "LlamaForCausalLM", "model_type": 3},
            "architectures|model_type",
        ),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling"),
        (
            "llama",
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            "both rope_parameters and rope_scaling",
        ),
        (
            "llama",
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_theta 10000, rope_parameters.rope_theta 500000; remove",
        ),
        (
            "gpt_neox",
            {"rotary_emb_base": 1e4, "rope_parameters": {"rope_theta": 5e3}},
            "rotary_emb_base 10000, rope_parameters.rope_theta 5000",
        ),
        (
            "phi3",
            {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.75}},
            "partial_rotary_factor 0.5, rope_parameters.partial_rotary_factor 0.75",
        ),
        (
            "gemma3",
            {
                "rope_scaling": None,
                "rope_parameters": {"sliding_attention": {"rope_theta": 5e3}},
            },
            "rope_local_base_freq 10000, rope_parameters.sliding_attention.rope_theta 5000",
        ),
        (
            "llama",
            {
                "original_max_position_embeddings": 128,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            },
            "original_max_position_embeddings",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0.01}},
            "beta_fast",
        ),
        (
            "llama",
            {"rope_theta": 1.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "rope_theta",
        ),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "factor"),
        ("mistral", {"use_sliding_window": False}, "use_sliding_window.*sliding_window 48"),
        ("gpt2", {"hidden_size": 32}, "hidden_size 32 contradicts n_embd"),
        ("llama", {"rope_theta": -1.0}, "rope_theta"),
        ("llama", {"rope_theta": float("nan")}, "rope_theta"),
        ("llama", {"rms_norm_eps": True}, "rms_norm_eps"),
        ("llama", {"max_position_embeddings": 1 << 40}, "max_position_embeddings"),
        ("llama", {"attention_bias": 1}, "attention_bias"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "use_sliding_window"),
        ("gpt_neox", {"rotary_pct": 0.2}, "rotary"),
        ("gemma3", {"rope_parameters": {"full_attention": {}}}, "both"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor",
        ),
    ],
)
def test_contradictions_are_refused_by_name(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build(family, **changes)


COMPUTED: dict[str, Any] = {
    "attention_multiplier": 0.1,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.2,
    "logits_scaling": 8.0,
    "clip_qkv": 6.0,
    "use_qk_norm": True,
    "num_experts": 8,
    "num_local_experts": 8,
    "no_rope_layers": [1, 0],
    "alibi": True,
    "attention_chunk_size": 64,
    "is_encoder_decoder": True,
}


@pytest.mark.parametrize("key", COMPUTED)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_keys_that_change_the_computation_are_refused(family: str, key: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{key} = "):
        build(family, **{key: COMPUTED[key]})


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "attn_logit_softcapping", 50.0),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "sliding_window", 64),
        ("llama", "layer_types", ["full_attention", "sliding_attention"]),
        ("llama", "rope_scaling", {"rope_type": "linear", "factor": 2.0, "attention_factor": 3.0}),
        ("llama", "rope_scaling", {"rope_type": "default", "factor": 2.0}),
        ("gpt2", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("gpt2", "sliding_window", 64),
        ("qwen3", "final_logit_softcapping", 30.0),
    ],
)
def test_options_of_other_families_are_refused(family: str, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=key):
        build(family, **{key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"residual_multiplier": 1, "logits_scaling": 1.0, "num_experts": 0, "alibi": False},
        {"layer_types": ["full_attention"] * 2, "no_rope_layers": [1, 1], "sliding_window": None},
        {"is_encoder_decoder": False, "use_qk_norm": False, "attention_chunk_size": None},
    ],
)
def test_harmless_values_of_such_keys_are_accepted(changes: dict[str, Any]) -> None:
    assert build(strict=True, **changes).program == build().program


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"sliding_window": 64, "use_sliding_window": False, "max_window_layers": 2}),
        ("llama", {"sliding_window": 512}),  # as long as the context: it hides nothing
        ("qwen2", {"sliding_window": 64, "use_sliding_window": False}),
        ("qwen3", {"sliding_window": 64, "use_sliding_window": False}),
        ("qwen2", {"attention_bias": True}),
        ("mistral", {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": True}),
        ("phi3", {"layer_types": ["sliding_attention"] * 2}),
        ("gpt2", {"hidden_size": 64, "num_attention_heads": 4}),
        ("gpt_neox", {"head_dim": 16}),
        ("gemma2", {"use_sliding_window": True}),
    ],
)
def test_keys_that_repeat_what_the_family_does_are_accepted(
    family: str, changes: dict[str, Any]
) -> None:
    plain = tiny.config(family)
    changed = models.build({**plain, **changes}, tiny.shapes(family, plain), strict=True)
    assert changed.program == build(family).program
    assert changed.warnings == []


def test_equal_scaling_under_both_names_is_one() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    both = build(strict=True, rope_scaling=scaling, rope_parameters=scaling)
    assert both.recipes == build(rope_scaling=scaling).recipes


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "layer_types", ["sliding_attention"] * 2),
        ("phi3", "layer_types", ["full_attention"] * 2),
        ("gemma2", "use_sliding_window", False),
        ("gemma3", "use_sliding_window", False),
        ("gpt2", "rope_theta", 10000.0),
        ("gpt2", "head_dim", 32),
        ("gpt_neox", "head_dim", 32),
        ("llama", "qk_layernorm", True),
        ("llama", "norm_type", "layer_norm"),
        ("llama", "rotary_pct", 0.5),
        ("llama", "embedding_scale", 12.0),
        ("llama", "parallel_attn", True),
        ("llama", "kv_lora_rank", 512),
        ("llama", "position_embedding_type", "alibi"),
        ("llama", "use_sliding_window", 1),
        ("mistral", "attention_bias", True),
        ("qwen2", "mlp_bias", True),
        ("qwen3", "sliding_window_pattern", 6),
    ],
)
def test_keys_with_a_meaning_that_is_not_run_are_refused(family: str, key: str, value: Any) -> None:
    plain = tiny.config(family)
    with pytest.raises(ModelError, match=key):
        models.build({**plain, key: value}, tiny.shapes(family, plain))


@pytest.mark.parametrize("name", ["quick_gelu", "gelu_10", "relu2", "relu6", "sigmoid", "mish"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_other_activations_are_refused_by_every_family(family: str, name: str) -> None:
    key = {"gpt2": "activation_function"}.get(family, "hidden_act")
    key = "hidden_activation" if family.startswith("gemma") else key
    with pytest.raises(UnsupportedError, match=f"{key} = '{name}'"):
        build(family, **{key: name})


def test_quantized_weights_are_refused_with_the_fix() -> None:
    with pytest.raises(UnsupportedError, match=r"quantization_config.*'gptq'.*F32, F16 or BF16"):
        build(quantization_config={"quant_method": "gptq", "bits": 4})


@pytest.mark.parametrize("family", [name for name in tiny.FAMILIES if name != "gpt2"])
def test_yarn_stretches_the_context(family: str) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert build(family, rope_scaling=scaling).program.max_positions == 2048


def test_yarn_never_shortens_the_context() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert build(rope_scaling=scaling).program.max_positions == 512


def test_an_older_phi_3_calls_longrope_yarn() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    yarn, su, new = (
        build("phi3", rope_scaling={"type": kind, **factors}) for kind in ("yarn", "su", "longrope")
    )
    assert yarn.recipes == su.recipes == new.recipes


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", 321, r"embed_tokens.*\(vocab_size 321\)"),
        ("hidden_size", 32, r"embed_tokens.*\(hidden_size 32\)"),
        ("intermediate_size", 128, r"gate_proj.*\(intermediate_size 128\)"),
        ("num_hidden_layers", 1, "layers.1"),
        ("num_hidden_layers", 3, "layers.2"),
        ("num_attention_heads", 2, r"k_proj.*\(num_key_value_heads 2 x \(hidden_size 64 / num_at"),
        ("num_key_value_heads", 4, r"k_proj.*\(num_key_value_heads 4 x \(hidden_size 64 / num_at"),
        # 96 is intermediate_size too, which is right.
        ("head_dim", 24, r"q_proj.*implies \[96, 64\] \(num_attention_heads 4 x head_dim 24\)$"),
        ("num_key_value_heads", 3, "multiple"),
        ("head_dim", 32, "q_proj"),
        ("num_attention_heads", 5, "multiple"),
        ("num_hidden_layers", 0, "num_hidden_layers"),
        ("vocab_size", "320", "vocab_size"),
        ("attention_bias", True, "q_proj.bias"),
        ("tie_word_embeddings", False, "lm_head"),
    ],
)
def test_weights_that_contradict_the_config_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_with(llama_shapes(), **{key: value})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size"])
def test_missing_keys_are_named(key: str) -> None:
    config = tiny.config("llama")
    del config[key]
    with pytest.raises(ModelError, match=key):
        models.build(config, llama_shapes())


def test_missing_and_unexpected_tensors_are_named() -> None:
    shapes = llama_shapes()
    with pytest.raises(ModelError, match="adapter"):
        build_with({**shapes, "adapter.weight": (3,)})
    del shapes["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match="up_proj"):
        build_with(shapes)


def test_known_buffers_and_bare_backbones_are_accepted() -> None:
    shapes = llama_shapes()
    shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = (8,)
    assert build_with(shapes).warnings == []
    bare = {name.removeprefix("model."): shape for name, shape in llama_shapes().items()}
    built = build_with(bare)
    name = "model.layers.0.mlp.up_proj.weight"
    assert built.recipes[name].source == name.removeprefix("model.")
    config = tiny.config("gpt2")
    gpt2 = tiny.shapes("gpt2", config)
    old = {name.removeprefix("transformer."): shape for name, shape in gpt2.items()}
    old["h.0.attn.bias"] = (1, 1, 512, 512)
    assert models.build(config, old).program == models.build(config, gpt2).program


def test_a_tied_copy_of_the_embedding_is_named() -> None:
    built = build_with({**llama_shapes(), "lm_head.weight": (320, 64)})
    assert built.tied == ("lm_head.weight", "model.embed_tokens.weight")
    roles = {spec.name: spec.role for spec in built.program.tensors}
    assert roles["model.embed_tokens.weight"] == "embedding"
    assert "lm_head.weight" not in roles


def test_a_window_as_long_as_the_context_is_none() -> None:
    assert [g.kind for g in build("mistral", sliding_window=511).program.groups] == ["window"]
    assert [g.kind for g in build("mistral", sliding_window=512).program.groups] == ["full"]


def test_longrope_limits_the_context_with_a_warning() -> None:
    factors = [1.0] * 8
    scaling = {"type": "longrope", "short_factor": factors, "long_factor": factors}
    built = build("phi3", rope_scaling=scaling, max_position_embeddings=4096)
    assert built.program.max_positions == 512
    assert "512 of 4096" in built.warnings[0]


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        (
            "llama",
            {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {
                "rope_theta": None,
                "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
            },
        ),
        (
            "gpt_neox",
            {"rotary_emb_base": 500, "rotary_pct": 0.5},
            {
                "rotary_emb_base": None,
                "rotary_pct": None,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 500,
                    "partial_rotary_factor": 0.5,
                },
            },
        ),
        (
            "gemma3",
            {},
            {
                "rope_theta": None,
                "rope_local_base_freq": None,
                "rope_scaling": None,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            },
        ),
    ],
)
def test_old_and_new_spelling_are_the_same_model(
    family: str, old: dict[str, Any], new: dict[str, Any]
) -> None:
    first, second = build(family, strict=True, **old), build(family, strict=True, **new)
    assert first.program == second.program
    assert first.recipes == second.recipes


def test_recipes_transpose_select_and_add() -> None:
    source = np.arange(24, dtype=np.float32).reshape(4, 6)
    blocks = RowBlocks(1, 2, stride=3, count=2)
    recipe = Recipe("x", (4, 6), transpose=True, rows=blocks, add=0.5)
    assert (recipe.apply({"x": source}) == source.T[[1, 2, 4, 5]] + 0.5).all()
    assert Recipe(None, (2,), values=(1.0, 2.0)).apply({}).tolist() == [1.0, 2.0]
    with pytest.raises(ModelError, match="missing"):
        recipe.apply({})
    with pytest.raises(ModelError, match="shape"):
        recipe.apply({"x": source.T})


def test_fused_matrices_are_split_without_gap_or_overlap() -> None:
    """The parts of a fused matrix use each of its rows once."""
    for family in ("gpt2", "gpt_neox", "phi3"):
        rows: dict[str, list[int]] = {}
        sizes: dict[str, int] = {}
        for recipe in build(family).recipes.values():
            if recipe.source and recipe.rows:
                rows.setdefault(recipe.source, []).extend(recipe.rows.indices())
                sizes[recipe.source] = recipe.shape[1 if recipe.transpose else 0]
        assert rows
        for source, used in rows.items():
            assert sorted(used) == list(range(sizes[source]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(tiny.FAMILIES), st.data())
def test_random_configs_never_crash(family: str, data: st.DataObject) -> None:
    """Any value of any key: a built model, or a ModelError."""
    config = tiny.config(family)
    shapes = tiny.shapes(family, config)
    for _ in range(data.draw(st.integers(1, 3))):
        config[data.draw(st.sampled_from(sorted(config)))] = data.draw(JSON)
    try:
        built = models.build(config, shapes)
    except ModelError:
        return
    assert set(built.recipes) == {spec.name for spec in built.program.tensors}


def test_a_config_that_is_no_object_is_refused() -> None:
    for value in ([], None, "x", {1: 2}):
        with pytest.raises(ModelError, match="object"):
            ConfigReader(value)  # type: ignore[arg-type]
