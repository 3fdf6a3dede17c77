"""text.json: what generation needs besides the tokenizer (chat template, special tokens, stop ids,
sampling defaults).

Owns: the schema that serving reads, and how it is gathered from a Hugging Face folder's configs or
from GGUF metadata. Knows nothing of how templates are rendered or text is tokenized. Does not
import NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from subsecond.errors import ModelError
from subsecond.formats import files
from subsecond.formats.checkpoint import Texts

VERSION = 1
_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
_GGUF_SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}
_ABOVE_ZERO = math.nextafter(0.0, 1.0)
# Defaults of sampling that are taken over, with the range that requests have.
_DEFAULTS = {
    "temperature": (0.0, 100.0, "a number from 0 to 100"),
    "top_k": (0, (1 << 31) - 1, "an integer from 0 (off)"),
    "top_p": (_ABOVE_ZERO, 1.0, "a number above 0 and at most 1"),
    "min_p": (0.0, 1.0, "a number from 0 to 1"),
    "repetition_penalty": (_ABOVE_ZERO, 100.0, "a number above 0 and at most 100"),
}
# A GGUF file names one end token, but chat models end a turn with another: control tokens with
# these spellings stop too.
_END_OF_TURN = frozenset(
    [
        "<|im_end|>",
        "<|eot_id|>",
        "<|end|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<end_of_turn>",
        "<|end_of_turn|>",
        "<EOT>",
        "<|eom_id|>",
    ]
)
_GGUF_CONTROL = 3


class TextSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`special_tokens`: name in templates -> spelling. `stop_ids`: ids that end an answer.
    `generation`: defaults of
    sampling as the model's authors published them (numbers by name; `do_sample` false means
    greedy)."""

    version: int
    chat_template: str | None
    special_tokens: dict[str, str]
    stop_ids: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]
    generation: dict[str, float | int | bool]

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def decode(data: bytes) -> TextSettings:
    """Reads text.json strictly. Raises ModelError for anything else."""
    try:
        settings = msgspec.json.decode(data, type=TextSettings)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"text.json is not valid: {error}; convert the model again") from None
    if settings.version != VERSION:
        raise ModelError(
            f"text.json version {settings.version} is not read; convert the model again"
        )
    return settings


def gather(
    texts: Texts,
    tokenizer_json: bytes,
    config: Mapping[str, Any],
    vocab_size: int,
    warnings: list[str] | None = None,
) -> TextSettings:
    """The settings of a checkpoint. Raises ModelError where tokenizer, ids and `vocab_size`
    contradict each other; what is only odd is added to `warnings`."""
    ids = _ids(tokenizer_json)
    _check_size(ids, vocab_size, [] if warnings is None else warnings)
    _check_template(texts)
    if texts.gguf is not None:
        special, stop = _from_gguf(texts.gguf)
    else:
        special = _special(texts.tokenizer_config, ids, [] if warnings is None else warnings)
        stop = _from_configs(texts, config, vocab_size)
        if (end := special.get("eos_token")) is not None:
            stop.append(ids[end])
    if not stop and warnings is not None:
        warnings.append(
            "no end-of-sequence token is known: answers end at max_tokens or a stop string"
        )
    return TextSettings(
        VERSION, texts.chat_template, special, sorted(set(stop)), _defaults(texts.generation_config)
    )


def _check_size(ids: Mapping[str, int], vocab_size: int, warnings: list[str]) -> None:
    if ids and max(ids.values()) >= vocab_size:
        token = max(ids, key=ids.__getitem__)
        raise ModelError(
            f"tokenizer.json: token {token[:60]!r} has the id {ids[token]}, but the embedding has "
            f"{vocab_size} rows: this tokenizer belongs to another model"
        )
    # Embeddings are padded a little; far more rows than tokens is odd, and a model of random
    # weights with a borrowed tokenizer is like that.
    known = len(set(ids.values()))
    if 2 * known < vocab_size:
        warnings.append(
            f"tokenizer.json has {known} ids, the embedding {vocab_size} rows: does this tokenizer "
            "belong to the model? ids beyond it have no text"
        )


def _special(
    config: Mapping[str, Any], ids: Mapping[str, int], warnings: list[str]
) -> dict[str, str]:
    """The special tokens of tokenizer_config.json. The end token must be one of the tokenizer's;
    templates may spell others as they like."""
    special = {}
    for name in _SPECIAL:
        text = _spelling(config.get(name), name)
        if text is None:
            continue
        if text not in ids:
            problem = (
                f"tokenizer_config.json: {name} {text[:60]!r} is not a token of tokenizer.json"
            )
            if name == "eos_token":
                raise ModelError(f"{problem}; correct it, or get the tokenizer of this model")
            warnings.append(problem)
        special[name] = text
    return special


def _check_template(texts: Texts) -> None:
    """Raises ModelError, naming the field, for a chat template that is no text or does not
    compile."""
    stored = (texts.gguf or {}).get("tokenizer.chat_template")
    if stored is not None and not isinstance(stored, str):
        raise ModelError(
            f"GGUF tokenizer.chat_template must be a string, not a {type(stored).__name__}"
        )
    if texts.chat_template is None:
        return
    from subsecond.text.template import ChatTemplate

    try:
        ChatTemplate(texts.chat_template, {})
    except ModelError as error:
        raise ModelError(f"{texts.template_name}: chat_template: {error}") from None


def _ids(tokenizer_json: bytes) -> dict[str, int]:
    """Token -> id of a tokenizer.json: its model's vocabulary (a map, or Unigram's list) and the
    added tokens."""
    tokenizer = files.parse_json(tokenizer_json, "tokenizer.json", files.LIMIT_TOKENIZER_VALUES)
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        ids = dict(vocabulary)
    elif isinstance(vocabulary, list) and all(isinstance(v, list) and v for v in vocabulary):
        ids = {str(entry[0]): index for index, entry in enumerate(vocabulary)}
    else:
        raise ModelError(
            "tokenizer.json: model.vocab is missing: the file is damaged or not a tokenizer"
        )
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list):
        raise ModelError("tokenizer.json: added_tokens must be a list of objects")
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise ModelError("tokenizer.json: added_tokens must be objects with content and id")
        ids[token["content"]] = token.get("id")
    if not all(type(v) is int and v >= 0 for v in ids.values()):
        raise ModelError("tokenizer.json: every token id must be an integer from 0")
    return ids


def _spelling(value: object, name: str) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise ModelError(f"tokenizer_config.json: {name} must be a string")
    return value


def _from_configs(texts: Texts, config: Mapping[str, Any], vocab_size: int) -> list[int]:
    """The ids that end an answer; begin ids are only checked."""
    stop: list[int] = []
    for what, values in (
        ("generation_config.json", texts.generation_config),
        ("config.json", config),
    ):
        for key in ("bos_token_id", "eos_token_id"):
            value = values.get(key)
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if not all(type(i) is int for i in ids):
                raise ModelError(f"{what}: {key} must be an integer or a list of integers")
            for i in ids:
                if not 0 <= i < vocab_size:
                    raise ModelError(
                        f"{what}: {key} {i} is outside the vocabulary of {vocab_size} tokens; "
                        "correct it, or leave it out"
                    )
            if key == "eos_token_id":
                stop += ids
    return stop


def _from_gguf(metadata: Mapping[str, Any]) -> tuple[dict[str, str], list[int]]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise ModelError(
            "GGUF metadata tokenizer.ggml.tokens is missing: the file has no tokenizer"
        )

    def token_id(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is not None and (type(value) is not int or not 0 <= value < len(tokens)):
            raise ModelError(
                f"GGUF tokenizer.ggml.{name}_token_id is {value!r:.60}, but there are "
                f"{len(tokens)} tokens"
            )
        return value

    special = {
        name: tokens[i] for name, key in _GGUF_SPECIAL.items() if (i := token_id(key)) is not None
    }
    stop = [i for key in ("eos", "eot", "eom") if (i := token_id(key)) is not None]
    kinds = metadata.get("tokenizer.ggml.token_type")
    if isinstance(kinds, list) and len(kinds) == len(tokens):
        stop += [i for i, t in enumerate(tokens) if t in _END_OF_TURN and kinds[i] == _GGUF_CONTROL]
    return special, stop


def _defaults(config: Mapping[str, Any]) -> dict[str, float | int | bool]:
    out: dict[str, float | int | bool] = {}
    for name, (low, high, wanted) in _DEFAULTS.items():
        value = config.get(name)
        if value is None:
            continue
        # NaN is in no range, and an integer may be larger than a float can be.
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high or (name == "top_k" and value % 1):
            raise ModelError(
                f"generation_config.json: {name} must be {wanted}, not {repr(value)[:60]}; correct "
                "it, or leave it out"
            )
        out[name] = value
    sample = config.get("do_sample")
    if sample is not None and not isinstance(sample, bool):
        raise ModelError(
            f"generation_config.json: do_sample must be true or false, not {repr(sample)[:60]}; "
            "correct it, or leave it out"
        )
    if sample is not None:
        out["do_sample"] = sample
    return out
