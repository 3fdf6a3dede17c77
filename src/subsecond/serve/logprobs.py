"""Log probabilities of tokens as OpenAI's two interfaces write them.

Owns: the spelling of a token that is part of a character. Does not know: requests.
"""

from __future__ import annotations

from collections.abc import Sequence

from subsecond.engine.messages import TokenLogprob as Entry
from subsecond.serve.choice_text import Piece
from subsecond.serve.schema import completions
from subsecond.serve.schema.chat import TokenLogprob, TopLogprob
from subsecond.serve.schema.shared import finite
from subsecond.text.tokenizer import Tokenizer


def of_chat(tokenizer: Tokenizer, piece: Piece) -> list[TokenLogprob]:
    """An entry a token of the piece."""
    return [
        TokenLogprob(
            _spelling(tokenizer, token),
            finite(entry.logprob),
            list(tokenizer.token_bytes(token)),
            [
                TopLogprob(
                    _spelling(tokenizer, own), finite(value), list(tokenizer.token_bytes(own))
                )
                for own, value in entry.top
            ],
        )
        for token, entry in zip(piece.tokens, piece.logprobs, strict=True)
    ]


def of_completion(tokenizer: Tokenizer, piece: Piece, offset: int) -> completions.Logprobs:
    """The old form. offset: characters of the text before this piece."""
    tokens = [_spelling(tokenizer, token) for token in piece.tokens]
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return completions.Logprobs(
        tokens,
        [finite(entry.logprob) for entry in piece.logprobs],
        [_best(tokenizer, entry) for entry in piece.logprobs],
        offsets,
    )


def of_prompt(
    tokenizer: Tokenizer, prompt: Sequence[int], scores: Sequence[Entry]
) -> completions.Logprobs:
    """The old form for a prompt's tokens; nothing precedes the first one."""
    rest = of_completion(tokenizer, Piece(0, "", prompt[1:], scores), 0)
    first = _spelling(tokenizer, prompt[0])
    return completions.Logprobs(
        [first, *rest.tokens],
        [None, *rest.token_logprobs],
        [None, *(rest.top_logprobs or [])],
        [0, *(len(first) + place for place in rest.text_offset)],
    )


def joined(parts: Sequence[completions.Logprobs]) -> completions.Logprobs:
    """Several pieces' as one."""
    return completions.Logprobs(
        [token for part in parts for token in part.tokens],
        [value for part in parts for value in part.token_logprobs],
        [best for part in parts for best in part.top_logprobs or []],
        [place for part in parts for place in part.text_offset],
    )


def _best(tokenizer: Tokenizer, entry: Entry) -> dict[str, float] | None:
    """Two tokens with one spelling (parts of characters) can't both be keys: the better stays."""
    best: dict[str, float] = {}
    for token, value in entry.top:
        best.setdefault(_spelling(tokenizer, token), finite(value))
    return best


def _spelling(tokenizer: Tokenizer, token: int) -> str:
    """The token's text; bytes that are no character by themselves as OpenAI writes them."""
    data = tokenizer.token_bytes(token)
    if not data:
        return tokenizer.token(token) or ""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
