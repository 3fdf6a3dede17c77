"""GGUF metadata of small tokenizers."""

from __future__ import annotations

from typing import Any

from subsecond.text.tokenizer import _byte_of_character

WORDS = [
    "the",
    "of",
    "and",
    "in",
    "is",
    "sky",
    "blue",
    "hello",
    "12",
    "34",
    "don't",
    "e\u0301",
    "über",
]


def byte_level_metadata(pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    """GGUF metadata of a byte-level BPE with merges for a few words and three control tokens."""
    letter = {byte: character for character, byte in _byte_of_character().items()}
    tokens = ["<|end|>", "<|user|>", "<tool>", *(letter[byte] for byte in range(256))]
    types = [3, 3, 4] + [1] * 256
    merges = []
    for word in WORDS:
        for spelled in (word, " " + word):
            parts = [letter[byte] for byte in spelled.encode()]
            while len(parts) > 1:
                if parts[0] + parts[1] not in tokens:
                    merges.append(f"{parts[0]} {parts[1]}")
                    tokens.append(parts[0] + parts[1])
                    types.append(1)
                parts[:2] = [parts[0] + parts[1]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        **changes,
    }


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of a SentencePiece BPE with byte tokens and a few words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(tokens)
    pieces = [
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz",
        "\u2581t",
        "he",
        "\u2581the",
        "in",
        "sk",
        "sky",
        "\u2581sky",
        "lo",
    ]
    for rank, piece in enumerate(pieces):
        tokens.append(piece)
        types.append(1)
        scores.append(-float(rank))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **changes,
    }
