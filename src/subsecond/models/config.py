"""A strict reader of a model's configuration (the mapping in a Hugging Face config.json).

Owns: types, bounds, and the account of which keys were used. Every key is honoured, refused by
name, known to be bookkeeping, or reported. Knows nothing of tensors or programs. `null` is read as
"not given", as transformers does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from subsecond.errors import ModelError, UnsupportedError
from subsecond.models.size import Size

# Keys that do not change the logits of inference: names, training, generation defaults, output
# switches.
BOOKKEEPING = frozenset(
    """
    _name_or_path _model_name_or_path _commit_hash _attn_implementation attn_implementation
    architectures model_type auto_map trust_remote_code transformers_version torch_dtype dtype
    use_cache initializer_range
    initializer_factor bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id
    decoder_start_token_id
    forced_bos_token_id forced_eos_token_id cls_token_id tokenizer_class prefix attention_dropout
    hidden_dropout hidden_dropout_prob attention_probs_dropout_prob resid_pdrop embd_pdrop
    attn_pdrop summary_first_dropout
    classifier_dropout embedding_dropout dropout gradient_checkpointing pretraining_tp
    output_attentions output_hidden_states return_dict return_dict_in_generate output_scores
    torchscript use_return_dict problem_type finetuning_task id2label label2id num_labels
    task_specific_params chunk_size_feed_forward is_decoder tie_encoder_decoder
    summary_type summary_use_proj summary_activation summary_proj_to_labels max_length min_length
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens remove_invalid_values tf_legacy_loss use_bfloat16 unsloth_fixed
    unsloth_version n_ctx cache_implementation is_llama_config transformers.js_config _num_labels
    """.split()  # noqa: SIM905 - a list of ninety quoted words reads worse
)

# Keys by which architectures change the computation, and the values under which they do not. A
# family that honours one reads it; under any other family only a harmless value is accepted.
_FULL = "full_attention"
COMPUTATION: Mapping[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,),
    "use_bidirectional_attention": (False,),
    "is_causal": (True,),
    # scales and caps
    "attention_multiplier": (),
    "attention_scale": (),
    "attn_scale": (),
    "query_pre_attn_scalar": (),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "attn_temperature_tuning": (False, 0),
    "embedding_multiplier": (1.0,),
    "embedding_scale": (1.0,),
    "scale_embedding": (False,),
    "scale_emb": (1.0,),
    "scale_depth": (),
    "dim_model_base": (),
    "mup_width_scale": (1.0,),
    "mup_attn_multiplier": (),
    "mup_embeddings_multiplier": (1.0,),
    "mlp_multipliers": ([],),
    "key_multiplier": (1.0,),
    "lm_head_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "residual_scale": (1.0,),
    "logits_scaling": (1.0,),
    "logits_scale": (1.0,),
    "logit_scale": (1.0,),
    "output_multiplier": (1.0,),
    "clip_qkv": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logits_soft_cap": (),
    "normalize_embedding": (False,),
    # activations, norms and biases
    "hidden_act": (),
    "hidden_activation": (),
    "activation_function": (),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "norm_type": ("rms_norm", "rmsnorm", "RMSNorm"),
    "apply_residual_connection_post_layernorm": (False,),
    "use_post_norm": (False,),
    # structure
    "parallel_residual": (False,),
    "use_parallel_residual": (False,),
    "parallel_attn": (False,),
    "multi_query": (False,),
    "kv_lora_rank": (),
    "q_lora_rank": (),
    "v_head_dim": (),
    "attention_sink_size": (0,),
    "mlp_only_layers": ([],),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0, 1),
    "n_shared_experts": (0,),
    "vision_config": (),
    "audio_config": (),
    # positions and windows
    "alibi": (False,),
    "position_embedding_type": ("rope", "rotary", "absolute"),
    "head_dim": (),
    "rope_theta": (),
    "rotary_emb_base": (),
    "rotary_base": (),
    "rope_scaling": (),
    "rope_parameters": (),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "partial_rotary_factor": (1.0,),
    "rotary_pct": (1.0,),
    "rotary_dim": (),
    "rope_ratio": (1.0,),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "use_mrope": (False,),
    "sliding_window": (),
    "use_sliding_window": (False,),
    "sliding_window_pattern": (),
    "attention_window_size": (),
    "attention_chunk_size": (),
    "attention_types": (),
    "layer_types": (),
}

_MISSING = object()


def _is_harmless(key: str, value: object) -> bool:
    if isinstance(value, list):
        # One entry a layer: 1 in no_rope_layers means that the layer does rotate.
        per_layer = {"layer_types": _FULL, "no_rope_layers": 1}.get(key)
        return value in COMPUTATION[key] or (
            per_layer is not None and all(_same(item, per_layer) for item in value)
        )
    return any(_same(value, harmless) for harmless in COMPUTATION[key])


def _same(a: object, b: object) -> bool:
    """Equal as JSON values: 1 is 1.0, but it is not true."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _short(value: object) -> str:
    # No more of a long value is spelled than is shown.
    text = repr(value[:60] if isinstance(value, (list, str)) else value)
    return text if len(text) <= 60 else text[:57] + "..."


class ConfigReader:
    """Reads one mapping; `path` prefixes key names in messages (for nested mappings)."""

    def __init__(self, config: Mapping[str, object], path: str = "") -> None:
        if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
            raise ModelError(f"config {path or 'file'} must be a JSON object")
        self._config = config
        self._path = path
        self._used: set[str] = set()
        self._nested: list[ConfigReader] = []

    def has(self, key: str) -> bool:
        """Whether the key is given and not null; does not count as use."""
        return self._config.get(key) is not None

    def equal(self, a: str, b: str) -> bool:
        """Whether two keys hold the same value; does not count as use."""
        return self._config.get(a) == self._config.get(b)

    def integer(
        self, key: str, default: int | None = None, low: int = 1, high: int = 1 << 30
    ) -> int:
        """An integer within low..high, which knows its key; without a default the key is
        required.
        """
        value = self._take(key, _MISSING if default is None else default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"config key {self.name(key)} must be an integer, not {_short(value)}")
        if not low <= value <= high:
            raise ModelError(
                f"config key {self.name(key)} is {_short(value)}, outside {low}..{high}"
            )
        if isinstance(value, Size):  # a default that comes from other keys
            return value
        return Size(value, f"{self.name(key)} {value}{'' if self.has(key) else ' by default'}")

    def number(
        self, key: str, default: float | None = None, low: float = 0.0, high: float = 1e30
    ) -> float:
        """A finite number within low..high; without a default the key is required."""
        value = self._take(key, _MISSING if default is None else default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelError(f"config key {self.name(key)} must be a number, not {_short(value)}")
        # Compared before any conversion: an integer may be larger than a float can be. NaN is in no
        # range.
        if not low <= value <= high:
            raise ModelError(
                f"config key {self.name(key)} is {_short(value)}, outside {low}..{high}"
            )
        return float(value)

    def optional_integer(self, key: str, default: int | None) -> int | None:
        """A positive integer; null is None, and an absent key is `default`."""
        if key in self._config and self._config[key] is None:
            self._used.add(key)
            return None
        return self.integer(key) if self.has(key) else default

    def optional_number(self, key: str, default: float | None) -> float | None:
        """A positive number; null is None, and an absent key is `default`."""
        if key in self._config and self._config[key] is None:
            self._used.add(key)
            return None
        return self.number(key, low=1e-6) if self.has(key) else default

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise ModelError(
                f"config key {self.name(key)} must be true or false, not {_short(value)}"
            )
        return value

    def word(self, key: str, default: str | None = None) -> str:
        value = self._take(key, _MISSING if default is None else default)
        if not isinstance(value, str):
            raise ModelError(f"config key {self.name(key)} must be a string, not {_short(value)}")
        return value

    def words(self, key: str) -> list[str] | None:
        """A list of strings, or None where the key is not given."""
        value = self._take(key, None)
        if value is None:
            return None
        if (
            isinstance(value, str)
            or not isinstance(value, Sequence)
            or not all(isinstance(item, str) for item in value)
        ):
            raise ModelError(
                f"config key {self.name(key)} must be a list of strings, not {_short(value)}"
            )
        return list(value)

    def numbers(self, key: str, count: int) -> list[float]:
        """A required list of `count` finite positive numbers."""
        value = self._take(key, _MISSING)
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
            raise ModelError(f"config key {self.name(key)} must be a list of {count} numbers")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, (int, float)) or not 0 < item < 1e30:
                raise ModelError(
                    f"config key {self.name(key)} holds {_short(item)}, not a positive number"
                )
        return [float(item) for item in value]

    def nested(self, key: str, defaults: Mapping[str, object] | None = None) -> ConfigReader | None:
        """A reader of the object under `key` (unused keys are reported), None if not given.

        defaults: what stands there for keys that are left out.
        """
        value = self._take(key, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ModelError(f"config key {self.name(key)} must be an object, not {_short(value)}")
        reader = ConfigReader({**(defaults or {}), **value}, f"{self._path}{key}.")
        self._nested.append(reader)
        return reader

    def adopt(self, key: str, outer: ConfigReader) -> None:
        """Takes the value of `key` that stands in the object around this one."""
        self._config = {**self._config, key: outer._take(key, None)}

    def only(self, key: str, *allowed: object) -> None:
        """Refuses any given value of `key` but the allowed ones: it changes the computation."""
        value = self._take(key, None)
        kinds = [(int if isinstance(a, Size) else type(a), a) for a in allowed]
        if value is not None and not any(type(value) is kind and value == a for kind, a in kinds):
            choices = " or ".join(repr(a) for a in allowed) or "absent"
            raise UnsupportedError(
                f"config key {self.name(key)} = {_short(value)} is not supported, only {choices}"
            )

    def refuse_computation(self) -> None:
        """Refuses the keys of COMPUTATION that nobody has used, unless their value is harmless."""
        for key in COMPUTATION:
            if key in self._used or not self.has(key):
                continue
            value = self._config[key]
            if not _is_harmless(key, value):
                raise UnsupportedError(
                    f"config key {self.name(key)} = {_short(value)} changes the computation and "
                    "is not supported by this family"
                )
            self._used.add(key)

    def ignore(self, *keys: str) -> None:
        """Declares keys that this family knows and that do not change its logits."""
        self._used.update(keys)

    def unused(self) -> list[str]:
        """Names of the given keys that nobody has used and that are not bookkeeping."""
        known = self._used | BOOKKEEPING
        names = [
            self.name(key) for key in sorted(self._config) if key not in known and self.has(key)
        ]
        return names + [name for nested in self._nested for name in nested.unused()]

    def _take(self, key: str, default: object) -> object:
        self._used.add(key)
        value = self._config.get(key)
        if value is None:
            if default is _MISSING:
                raise ModelError(f"config key {self.name(key)} is missing")
            return default
        return value

    def name(self, key: str) -> str:
        """How messages call this key."""
        return f"{self._path}{key}"
