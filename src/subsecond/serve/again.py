"""A question that was asked before, answered again from the cache of answers.

Owns: which questions may be, their key, what of an answer is kept, and the giving of it. Does not
know: where answers are kept, how they are written (a `Form` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subsecond.engine.messages import SamplingFields, TokenLogprob
from subsecond.serve.answer_cache import KeptText, key_of
from subsecond.serve.choice_text import ChoiceText, Piece

if TYPE_CHECKING:
    from subsecond.serve.form import Form
    from subsecond.serve.generation import Generating


class Again:
    """Of one request."""

    def __init__(
        self,
        generating: Generating,
        prompts: Sequence[Sequence[int]],
        each: Sequence[SamplingFields],
    ) -> None:
        self._own = generating
        self._prompts = prompts
        self._each = each
        self._cache = generating.server.answers
        self._key: bytes | None = None
        self._pieces: dict[int, list[Piece]] = {}

    async def given(self, form: Form) -> bool:
        """Answers the request if its answer is known. Otherwise what `take` is given is kept at the
        `end`.
        """
        own = self._own
        request, params = own.request, own.request.params
        if self._cache is None or getattr(request, "echo", False) or request.embeds:
            return False
        self._key = key_of(
            own.model.identity,
            own.key.id,
            self._prompts,
            self._each,
            [params.stops, params.constraint, own.tokens is not None],
        )
        if self._key is None:
            return False
        texts = await self._cache.find(self._key)
        own.server.metrics.asked_cache(own.model.name, hit=texts is not None)
        if texts is None or not self._fits(texts):
            return False
        self._key = None
        await self._give(texts, form)
        return True

    def _fits(self, texts: Sequence[KeptText]) -> bool:
        """Whether a kept answer is one to this request, whoever has written it there."""
        asked = [fields for fields in self._each for _ in range(fields.n)]
        known = range(self._own.model.info.vocab_size)
        return len(texts) == len(asked) and all(
            len(text.tokens) <= fields.max_tokens
            and all(token in known for token in text.tokens)
            and all(token in known for own in text.logprobs for token, _ in own.top)
            and len(text.logprobs) == (0 if fields.logprobs is None else len(text.tokens))
            for text, fields in zip(texts, asked, strict=True)
        )

    def take(self, piece: Piece) -> None:
        """A piece of the answer, in order."""
        if self._key is not None:
            self._pieces.setdefault(piece.index, []).append(piece)

    def end(self, texts: Sequence[ChoiceText]) -> None:
        """The answer is whole: it is kept, unless a deadline has cut it."""
        if self._key is None or self._cache is None:
            return
        kept = []
        for text in texts:
            reason = text.finish_reason
            if reason not in ("stop", "length"):
                return
            pieces = self._pieces.get(text.index, [])
            tokens = [token for piece in pieces for token in piece.tokens]
            logprobs: list[TokenLogprob] = [own for piece in pieces for own in piece.logprobs]
            said = "".join(piece.text for piece in pieces)
            kept.append(KeptText(said, tokens, logprobs, reason))  # type: ignore[arg-type]
        self._cache.keep(self._key, kept)

    async def _give(self, texts: list[KeptText], form: Form) -> None:
        own = self._own
        own.texts = []
        data = b""
        for index, kept in enumerate(texts):
            text = ChoiceText(own.model.text.tokenizer, index, ())
            text.tokens, text.finish_reason = len(kept.tokens), kept.finish_reason
            own.texts.append(text)
            piece = Piece(index, kept.text, kept.tokens, kept.logprobs)
            own.tell(piece)
            data += form.piece(piece)
            if index + 1 < len(texts):
                data += form.finished(index, kept.finish_reason, None)
        own.cached_tokens = own.prompt_tokens
        own.deadline.promise_known(self._each[0])
        await own.finish(form, len(texts) - 1, data)
