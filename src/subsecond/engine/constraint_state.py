"""Constraints over a model's vocabulary: which tokens may come next.

Owns: the library's tokenizer and matchers, the state of each text, the way to the shortest end of a
text. Does not know: requests, samplers, tokenizers (it is given the bytes of each token).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from subsecond.engine.constraint import Constraint, limits
from subsecond.errors import RequestError, SubsecondError

if TYPE_CHECKING:
    from llguidance import LLMatcher

KEPT = 64
"""Compiled constraints that are kept: clients repeat theirs."""

# What closes a text fastest, in JSON: within a string the quote, else brackets before anything that
# would begin something.
_IN_STRING = b'"'
_OUTSIDE = b'}]",:ntf0123456789-.eE['
_REST = bytes(range(0x61, 0x7B)) + bytes(range(0x41, 0x5B)) + b"{ _-+/\\\n"
_PROBES = b"#~q"  # allowed together only inside a string


@dataclass(frozen=True)
class Vocabulary:
    """tokens: the bytes of each id, b"" for ids that stand for none. control_ids: tokens that are
    no text. stop_ids: those that end a text.
    """

    tokens: Sequence[bytes]
    control_ids: Sequence[int]
    stop_ids: Sequence[int]

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.tokens)


class Grammars:
    """Makes constraints ready for one vocabulary. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self.words = -(-vocabulary.size // 32)
        self._source = _Source(vocabulary)
        self._tokens = self._source.tokenizer = LLTokenizer(
            TokenizerWrapper(self._source),
            n_vocab=len(self._source.tokens),
            eos_token=list(vocabulary.stop_ids) or [self._source.eos_token_id],
        )
        self.one_byte = {token[0]: id_ for id_, token in self._single(vocabulary)}
        self._kept: OrderedDict[Constraint, Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, constraint: Constraint) -> Compiled | None:
        """What `compile` has made of it, if it is still there."""
        with self._lock:
            found = self._kept.get(constraint)
            if found is not None:
                self._kept.move_to_end(constraint)
            return found

    def compile(self, constraint: Constraint) -> Compiled:
        """The constraint, ready to begin texts. RequestError, with the library's reason, for what
        can't be followed. Takes milliseconds, at worst a tenth of a second, most of them without
        the interpreter's lock.
        """
        found = self.known(constraint)
        if found is not None:
            return found
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, constraint.grammar(), log_level=0, limits=limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # what can't begin is refused here
        if matcher.is_error():
            raise constraint.refused(matcher.get_error())
        compiled = Compiled(self, matcher.deep_copy())
        with self._lock:
            self._kept[constraint] = compiled
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _single(self, vocabulary: Vocabulary) -> Iterator[tuple[int, bytes]]:
        control = frozenset(vocabulary.control_ids)
        for id_, token in enumerate(vocabulary.tokens):
            if len(token) == 1 and id_ not in control:
                yield id_, token


class _Source:
    """A vocabulary as the library asks for it. A model without stop tokens is given one behind its
    vocabulary, which can't be chosen.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokenizer: object = None
        self.tokens = list(vocabulary.tokens)
        self.special_token_ids = sorted({*vocabulary.control_ids, *vocabulary.stop_ids})
        self.bos_token_id = None
        if vocabulary.stop_ids:
            self.eos_token_id = vocabulary.stop_ids[0]
        else:
            self.eos_token_id = len(self.tokens)
            self.special_token_ids.append(self.eos_token_id)
            self.tokens.append(b"<end>")
        for id_ in self.special_token_ids:
            self.tokens[id_] = self.tokens[id_] or b"<%d>" % id_

    def __call__(self, text: str) -> list[int]:
        """Some tokens of a text; any will do: it is for what is written, not for what is read."""
        if not isinstance(text, str):
            raise TypeError("texts only")
        return self.tokenizer.greedy_tokenize(text)  # type: ignore[attr-defined, no-any-return]


class Compiled:
    """A constraint for one vocabulary; begins texts."""

    def __init__(self, grammars: Grammars, matcher: LLMatcher) -> None:
        self._grammars = grammars
        self._matcher = matcher

    def start(self) -> ConstraintState:
        """The state of a text without tokens."""
        return ConstraintState(self._grammars, self._matcher.deep_copy())


class ConstraintState:
    """Where one text stands. complete: nothing but its end may follow. error: why no token is
    allowed any more, where the constraint turned out too costly.
    """

    def __init__(self, grammars: Grammars, matcher: LLMatcher) -> None:
        self.error: SubsecondError | None = None
        self._grammars = grammars
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but the end."""
        return self.error is None and self._matcher.is_stopped()

    def mask(self) -> bytes:
        """The tokens that may come next, as `Sampler.allow` takes them; none after an error."""
        if self.error is None:
            bits = self._matcher.compute_bitmask()
            if not self._matcher.is_error():
                return bits[: 4 * self._grammars.words]
            self._fail()
        return bytes(4 * self._grammars.words)

    def accept(self, token: int) -> None:
        """The text goes on with a token that the mask allowed."""
        if self.error is None and not self._matcher.consume_token(token):
            self._fail()

    def closing(self, most: int) -> list[int] | None:
        """Few tokens, at most `most`, with which the text fits and ends; None if none are found.

        Takes the simplest next character that is allowed, and whatever is forced.
        """
        if self.error is not None:
            return None
        matcher, path = self._matcher.deep_copy(), list[int]()
        while not matcher.is_accepting():
            tokens = matcher.compute_ff_tokens() or self._simplest(matcher)
            if not tokens or len(path) + len(tokens) > most or not matcher.consume_tokens(tokens):
                return None
            path += tokens
        return path

    def _simplest(self, matcher: LLMatcher) -> list[int]:
        bits, one_byte = matcher.compute_bitmask(), self._grammars.one_byte

        def allowed(byte: int) -> bool:
            id_ = one_byte.get(byte)
            return id_ is not None and bool(bits[id_ >> 3] >> (id_ & 7) & 1)

        order = _OUTSIDE + _REST
        if all(map(allowed, _PROBES)):
            order = _IN_STRING + order[::-1]
        for byte in order:
            if allowed(byte):
                return [one_byte[byte]]
        rest = int.from_bytes(bits, "little")
        return [(rest & -rest).bit_length() - 1] if rest else []

    def _fail(self) -> None:
        reason = " ".join(self._matcher.get_error().split("<non-verbose/>", maxsplit=1)[0].split())
        self.error = RequestError(
            f"the constraint became too costly to follow ({reason:.200}); simplify it", "constraint"
        )
