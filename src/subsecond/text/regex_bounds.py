"""Regular expressions of a tokenizer.json: those that can take very long are refused.

Owns: a bound on backtracking, found by reading the expression. Does not know: what it matches.

The `tokenizers` library runs an expression with Oniguruma, which gives up after ten million steps
at one place and then aborts the call, with lines of its own on stderr. A step is taken back when
something after it fails. So each repetition after which something can still fail multiplies the
work by the length of the text: one is accepted (with a text of at most 1 MiB it stays below the
limit), two are not, nor is one whose body can itself match in several ways, which is exponential.
The pre-tokenizers in common use keep this: what follows their repetitions is mostly optional.

That bounds one place. The search starts again at the next one, so a repetition that fails at each
of them takes the square of the length, unless another branch takes the whole run at once, as the
last one of `\\s*[\\r\\n]|\\s+` does. The expression itself is asked (regex_runs). One that must be
accepted all the same is run as another one (FASTER).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from subsecond.errors import ModelError, UnsupportedError

MAX_PATTERN_CHARACTERS = 16 * 1024
MAX_NESTING = 32
MAX_RUNS = 64
FEW = 8
"""A repetition of at most so many times counts as several ways, not as a repetition."""

FASTER = {r"\s+$": r"(?<!\s)\s+$"}
"""Expressions of well-known models (DeepSeek-LLM's) that start again inside a run, and others with
the same matches that don't. Where `\\s+$` fails at the beginning of a run it fails at every later
place of it too, and a match reaches the last line end of its run, so none follows it there.
"""

MAX_WAYS = 1024
"""Ways in which what stands before a place may match, repetitions left aside."""

_GROUP = re.compile(r"\(\?(?:[ims-]*:|>|=|!|<=|<!|<[A-Za-z_]\w*>)|\((?!\?)")
_OPTIONS = re.compile(r"\(\?[ims-]+\)")
_COMMENT = re.compile(r"\(\?#[^)]*\)")
_COUNT = re.compile(r"\{(\d{1,9})?(,)?(\d{1,9})?\}")
_ESCAPE = re.compile(
    r"\\(?:[pP]\{\^?[\w \-=]+\}|x\{[0-9A-Fa-f ]+\}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}|[0-7]{2,3}|.)",
    re.DOTALL,
)
_REFERENCES = frozenset("123456789kgK")


@dataclass
class _Node:
    """What a part of an expression can do.

    fails: it can fail where it stands. ways: in how many ways it can match, repetitions left aside.
    loops: how many repetitions in it can be taken back if something after it fails.
    inner_ways, inner_loops: the same, where something in it fails. runs: what is repeated without a
    bound and not yet followed by anything that can fail.
    """

    fails: bool = True
    ways: int = 1
    loops: int = 0
    inner_ways: int = 1
    inner_loops: int = 0
    runs: tuple[str, ...] = ()


@dataclass
class _Sequence:
    parts: list[_Node] = field(default_factory=list)

    def node(self, exposed: list[str]) -> _Node:
        """The parts as one. A repetition counts against whatever fails after it in the sequence.

        Adds to `exposed` the runs that something follows which can fail.
        """
        whole = _Node(fails=False)
        for part in self.parts:
            # What can't fail as a whole takes nothing back that stands before it.
            before_ways, before_loops = (whole.ways, whole.loops) if part.fails else (1, 0)
            whole.inner_ways = max(whole.inner_ways, before_ways * part.inner_ways)
            whole.inner_loops = max(whole.inner_loops, before_loops + part.inner_loops)
            if part.fails:
                exposed += whole.runs
                whole.runs = ()
            whole.runs += part.runs
            whole.fails = whole.fails or part.fails
            whole.ways = min(whole.ways * part.ways, MAX_WAYS + 1)
            whole.loops += part.loops
        if whole.inner_loops > 1 or whole.inner_ways > MAX_WAYS:
            raise _TooSlow
        return whole


class _TooSlow(Exception):  # noqa: N818 (it never leaves this module)
    pass


def check_pattern(pattern: object, place: str) -> None:
    """ModelError naming `place` for an expression that can take very long, UnsupportedError for
    syntax that can't be judged. Mistakes in the expression are left to the library.
    """
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARACTERS:
        raise ModelError(
            f"tokenizer.json: {place} must be a text of at most {MAX_PATTERN_CHARACTERS} characters"
        )
    try:
        reader = _Reader(pattern, place)
        reader.alternatives(0)
        if reader.exposed and pattern not in FASTER:
            from subsecond.text.regex_runs import starts_again

            if starts_again(pattern, reader.exposed):
                raise _TooSlow
    except _TooSlow:
        raise ModelError(
            f"tokenizer.json: {place} {pattern[:80]!r} can take time that grows with a power of "
            "the text's length (repetitions after which something can fail); it isn't accepted"
        ) from None


class _Reader:
    """Reads an expression once, from the left."""

    def __init__(self, pattern: str, place: str) -> None:
        self._pattern = pattern
        self._place = place
        self._at = 0
        self._in_conditions = 0
        self.exposed: list[str] = []
        """What is repeated without a bound before something that can fail."""

    def alternatives(self, depth: int) -> _Node:
        """Up to the end or a closing bracket."""
        if depth > MAX_NESTING:
            raise self._unknown("groups nested too deeply")
        branches = [_Sequence()]
        while self._at < len(self._pattern) and self._pattern[self._at] != ")":
            if self._pattern[self._at] == "|":
                self._at += 1
                branches.append(_Sequence())
            elif (part := self._part(depth)) is not None:
                branches[-1].parts.append(part)
        exposed: list[str] = []
        nodes = [branch.node(exposed) for branch in branches]
        if not self._in_conditions:  # a condition's repetitions are few steps in the field
            self.exposed += exposed
        return _Node(
            fails=all(node.fails for node in nodes),
            ways=min(sum(node.ways for node in nodes), MAX_WAYS + 1),
            loops=max(node.loops for node in nodes),
            inner_ways=max(node.inner_ways for node in nodes),
            inner_loops=max(node.inner_loops for node in nodes),
            runs=tuple(run for node in nodes for run in node.runs)[:MAX_RUNS],
        )

    def _part(self, depth: int) -> _Node | None:
        """One character, class, group or condition, with its quantifiers."""
        start, rest = self._at, self._pattern[self._at]
        if (comment := _COMMENT.match(self._pattern, self._at)) is not None:
            self._at = comment.end()
            return None
        if (options := _OPTIONS.match(self._pattern, self._at)) is not None:
            self._at = options.end()
            return self.alternatives(depth + 1)  # they hold to the end of the group, `|` included
        if rest == "(":
            node = self._group(depth)
        elif rest == "[":
            self._class(0)
            node = _Node()
        elif rest == "\\":
            node = self._escape()
        else:
            self._at += 1
            node = _Node()
        body = self._pattern[start : self._at]
        while (count := self._quantifier()) is not None:
            node = _repeated(node, *count)
            if count[1] is None or count[1] > FEW:
                node.runs = (*node.runs, body)[:MAX_RUNS]
        return node

    def _group(self, depth: int) -> _Node:
        opening = _GROUP.match(self._pattern, self._at)
        if opening is None:
            raise self._unknown(self._pattern[self._at : self._at + 4])
        self._at = opening.end()
        condition = opening[0] in ("(?=", "(?!", "(?<=", "(?<!")
        self._in_conditions += condition
        inner = self.alternatives(depth + 1)
        self._in_conditions -= condition
        self._at += 1  # the closing bracket; the library reports a missing one
        if condition:
            return replace(inner, fails=True, ways=1, loops=0, runs=())
        return replace(inner, ways=1, loops=0) if opening[0] == "(?>" else inner

    def _class(self, depth: int) -> None:
        """A bracketed class; classes nest, and `&&` inside needs no care."""
        if depth > MAX_NESTING:
            raise self._unknown("classes nested too deeply")
        self._at += 1
        if self._pattern.startswith("^", self._at):
            self._at += 1
        if self._pattern.startswith("]", self._at):
            self._at += 1
        while self._at < len(self._pattern):
            character = self._pattern[self._at]
            if character == "[":
                self._class(depth + 1)
                continue
            self._at += 2 if character == "\\" else 1
            if character == "]":
                return

    def _escape(self) -> _Node:
        match = _ESCAPE.match(self._pattern, self._at)
        if match is None or match[0][1] in _REFERENCES:
            raise self._unknown(self._pattern[self._at : self._at + 2])
        self._at = match.end()
        return _Node(loops=int(match[0][1] == "X"))  # a character with all its marks

    def _quantifier(self) -> tuple[int, int | None, bool] | None:
        """(least, most, possessive) of the quantifier that stands here, if one does."""
        found = self._pattern[self._at : self._at + 1]
        if found and found in "*+?":
            self._at += 1
            least, most = (0, 1) if found == "?" else (int(found == "+"), None)
            possessive = self._pattern.startswith("+", self._at)
            if possessive or self._pattern.startswith("?", self._at):  # or lazy
                self._at += 1
            return least, most, possessive
        count = _COUNT.match(self._pattern, self._at) if found == "{" else None
        if count is None or (count[1] is None and count[3] is None):
            return None
        self._at = count.end()
        if self._pattern.startswith("?", self._at):  # lazy; a `+` here is one more quantifier
            self._at += 1
        least = int(count[1] or 0)
        if not count[2]:
            return least, least, False
        return least, None if count[3] is None else int(count[3]), False

    def _unknown(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"tokenizer.json: {self._place} uses {what!r}, which isn't supported"
        )


def _repeated(node: _Node, least: int, most: int | None, possessive: bool) -> _Node:
    """`node` from `least` to `most` times."""
    several = node.ways > 1 or node.loops > 0
    # Before the least number is reached, a repetition that fails takes back those before it.
    if least > 1 and node.fails:
        loops, ways = (least - 1) * node.loops + node.inner_loops, node.ways ** min(least, 11)
        if loops > 1 or ways > MAX_WAYS:  # 2 ** 11 is beyond it
            raise _TooSlow
    node = replace(node, fails=node.fails and least > 0)
    if possessive:
        return replace(node, ways=1, loops=0)
    if most is not None and (most <= 1 or (most <= FEW and not several) or least == most):
        ways = min(node.ways ** min(most, FEW) + most - least, MAX_WAYS + 1)
        return replace(node, ways=ways, loops=node.loops * most)
    return replace(node, loops=2 if several else 1)
