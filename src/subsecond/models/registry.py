"""From a configuration to a family, and from there to a built model.

Owns: the list of families and the policy for keys that nobody used. A family is added by one line
here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from subsecond.errors import ModelError, UnsupportedError
from subsecond.models import (
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    multimodal,
    phi3,
    qwen2,
    qwen3,
)
from subsecond.models.config import ConfigReader
from subsecond.models.decoder import Built, Shapes

# model_type -> (architecture of the causal language model, builder)
FAMILIES: Mapping[str, tuple[str, Callable[[ConfigReader, Shapes], Built]]] = {
    "llama": ("LlamaForCausalLM", llama.build),
    "qwen2": ("Qwen2ForCausalLM", qwen2.build),
    "qwen3": ("Qwen3ForCausalLM", qwen3.build),
    "mistral": ("MistralForCausalLM", mistral.build),
    "gpt2": ("GPT2LMHeadModel", gpt2.build),
    "gpt_neox": ("GPTNeoXForCausalLM", gpt_neox.build),
    "phi3": ("Phi3ForCausalLM", phi3.build),
    "gemma2": ("Gemma2ForCausalLM", gemma2.build),
    "gemma3_text": ("Gemma3ForCausalLM", gemma3.build),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        lambda config, shapes: multimodal.gemma3_text(config, shapes, gemma3.build, "gemma3_text"),
    ),
}


def build(config: Mapping[str, object], shapes: Shapes, strict: bool = False) -> Built:
    """The plain program of the model that `config` (a config.json) and tensor `shapes` describe.

    A key that changes the computation and that the family does not honour is always an error. With
    `strict`, a config key that the family does not know is an error instead of a warning.
    Raises UnsupportedError for an unknown architecture or an unsupported option, ModelError for a
    contradiction.
    """
    reader = ConfigReader(config)
    family = _family(reader)
    _refuse_quantized(reader)
    reader.only("pruned_heads", {})
    reader.only("add_cross_attention", False)
    reader.only("cross_attention_hidden_size")
    built = FAMILIES[family][1](reader, shapes)
    reader.refuse_computation()
    unknown = [
        f"config key {name} is not known to family {family} and was not used"
        for name in reader.unused()
    ]
    if strict and unknown:
        raise ModelError(unknown[0])
    return replace(built, warnings=built.warnings + unknown)


def _refuse_quantized(config: ConfigReader) -> None:
    """A quantized checkpoint stores other tensors than its architecture has."""
    for key in ("quantization_config", "compression_config"):
        quantized = config.nested(key)
        if quantized is not None:
            method = quantized.word("quant_method", "unknown")
            raise UnsupportedError(
                f"config key {key} says that the weights are quantized (quant_method "
                f"{method[:40]!r}), which is not read from safetensors; get the original model in "
                "F32, F16 or BF16, or a GGUF file of it"
            )


def _family(config: ConfigReader) -> str:
    """The family's model_type. Architecture and model_type must agree where both are given."""
    architectures = config.words("architectures") or []
    by_architecture = {architecture: family for family, (architecture, _) in FAMILIES.items()}
    supported = ", ".join(by_architecture)
    if len(architectures) > 1:
        raise UnsupportedError(
            f"config lists several architectures {architectures}; leave the one to run"
        )
    model_type = config.word("model_type", "")
    if architectures:
        family = by_architecture.get(architectures[0])
        if family is None:
            raise UnsupportedError(
                f"architecture {architectures[0]!r} is not supported; supported: {supported}"
            )
        if model_type and model_type != family:
            raise ModelError(
                f"config: architecture {architectures[0]} contradicts model_type {model_type!r}"
            )
        return family
    if not model_type:
        raise ModelError(
            "config names neither architectures nor model_type: is this a model's config.json?"
        )
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return model_type
