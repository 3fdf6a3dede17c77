"""A tokenizer's vocabulary as constraints need it.

Owns: which ids stand for text. Does not know: constraints, engines.
"""

from __future__ import annotations

from subsecond.engine.constraint_state import Vocabulary
from subsecond.formats.text_settings import TextSettings
from subsecond.text.tokenizer import Tokenizer


def vocabulary_of(tokenizer: Tokenizer, settings: TextSettings, vocab_size: int) -> Vocabulary:
    """The vocabulary of a model with logits for `vocab_size` ids. Takes a tenth of a second for
    100,000 of them.
    """
    return Vocabulary(
        tokens=[tokenizer.token_bytes(id_) for id_ in range(vocab_size)],
        control_ids=sorted(id_ for id_ in tokenizer.control_tokens.values() if id_ < vocab_size),
        stop_ids=[id_ for id_ in settings.stop_ids if id_ < vocab_size],
    )
