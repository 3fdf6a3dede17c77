"""The jinja2 environment of chat templates: as transformers configures it, and bounded.

Owns: what a template may call, and the budget of one rendering. A template is untrusted, so
everything that makes text or lists is charged: loop bodies, calls, filters, concatenations and
output. Does not know: messages, tokenizers.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterator, MappingView
from datetime import datetime
from typing import Any

from subsecond.errors import TextError

MAX_STEPS = 100_000
"""Loop passes, calls and filters of one rendering together; also the largest integer argument."""

MAX_SIZE = 1 << 20
"""Characters and entries of one value, nested ones included."""

MAX_WORK = 32 * MAX_SIZE
"""Characters and entries that one rendering may make."""

MAX_CPU_S = 2.0
"""Processor time of one rendering, checked at each step."""

MAX_NESTING = 64
MAX_JSON_INDENT = 16
MAX_INTEGER = 1 << 63

_FILTERS = frozenset(
    [
        "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
        "float", "indent", "int", "items", "join", "last", "length", "list", "lower", "map",
        "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select",
        "selectattr", "sort", "string", "title", "trim", "unique", "upper",
    ]
)  # fmt: skip
_REFUSED_METHODS = frozenset(["expandtabs", "translate", "format_map"])
_DYNAMIC_OR_WIDE = re.compile(r"\{[^{}]+\{|[0-9]{4,}")


class Budget:
    """What is left of one rendering. `restart` before each; TextError when it is spent."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A full budget, counted in the processor time of this thread."""
        self._steps = MAX_STEPS
        self._work = MAX_WORK
        self._end_s = time.thread_time() + MAX_CPU_S

    def step(self, work: int = 0) -> bool:
        """One loop pass, call or filter, and the characters it writes. True, for conditions."""
        self._steps -= 1
        self._work -= work
        if self._steps < 0:
            raise TextError(f"the chat template takes more than {MAX_STEPS:,} steps")
        if self._work < 0:
            raise TextError(f"the chat template makes more than {MAX_WORK:,} characters")
        if time.thread_time() > self._end_s:
            raise TextError(f"the chat template takes more than {MAX_CPU_S:g} s")
        return True

    def made(self, value: Any) -> Any:
        """`value`, charged with its size. Iterators are charged as they are read."""
        if isinstance(value, Iterator):
            return self._steps_of(value)
        self.step(size_of(value))
        return value

    def _steps_of(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            yield value


def size_of(value: Any, depth: int = 0) -> int:
    """Characters and entries of a value as if it were written out; TextError above MAX_SIZE.

    A value that holds another one twice counts it twice: that is what writing it would do.
    """
    from jinja2.utils import Namespace

    if isinstance(value, (str, bytes)):
        return fits(len(value))
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise TextError("the chat template makes an integer of more than 64 bits")
        return 1
    if isinstance(value, Namespace) and depth > 0:
        raise TextError("the chat template puts a namespace into another value")
    if isinstance(value, dict):
        parts: Any = (part for item in value.items() for part in item)
    elif isinstance(value, (list, tuple, MappingView)):
        parts = value
    else:
        return 1
    if depth > MAX_NESTING:
        raise TextError(f"the chat template nests values deeper than {MAX_NESTING} levels")
    size = 1
    for part in parts:
        size = fits(size + 1 + size_of(part, depth + 1))
    return size


def fits(size: int) -> int:
    """`size`, or TextError if a value of this size is too large."""
    if size > MAX_SIZE:
        raise TextError(f"the chat template makes a value of more than {MAX_SIZE:,} characters")
    return size


def compiled(source: str, budget: Budget) -> tuple[Any, frozenset[str], frozenset[str]]:
    """The jinja2 template of `source`, whose renderings are charged to `budget`; the names that it
    reads; and its text constants, the names of attributes among them.
    """
    from jinja2 import nodes

    environment = _environment(budget)
    tree = environment.parse(source)
    names = frozenset(node.name for node in tree.find_all(nodes.Name))
    texts = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    texts.update(node.attr for node in tree.find_all(nodes.Getattr))
    _charge_bodies(tree)
    return environment.from_string(_charge_values(tree)), names, frozenset(texts)


def _charge_bodies(tree: Any) -> None:
    """Puts a step, with the size of the literal text, into each body that can run repeatedly."""
    from jinja2 import nodes

    def step(work: int) -> Any:
        return nodes.Call(nodes.EnvironmentAttribute("step"), [nodes.Const(work)], [], None, None)

    bodies = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)
    for body in list(tree.find_all(bodies)):
        literal = sum(len(text.data) for text in body.find_all(nodes.TemplateData))
        body.body.insert(0, nodes.ExprStmt(step(literal)))
        if isinstance(body, nodes.For) and body.test is not None:
            body.test = nodes.And(step(0), body.test)


def _charge_values(tree: Any) -> Any:
    """Sends list and dict literals and `~` through the environment, which bounds them."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    def call(name: str, arguments: list[Any]) -> Any:
        return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)

    class Charged(NodeTransformer):
        def visit_Concat(self, node: Any) -> Any:  # noqa: N802 (jinja2's naming)
            self.generic_visit(node)
            return call("joined_text", node.nodes)

        def visit_List(self, node: Any) -> Any:  # noqa: N802
            return call("kept", [self.generic_visit(node)])

        def visit_Dict(self, node: Any) -> Any:  # noqa: N802
            return call("kept", [self.generic_visit(node)])

        def visit_Tuple(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            return call("kept", [node]) if node.ctx == "load" else node

    return Charged().visit(tree)


def _environment(budget: Budget) -> Any:
    environment = _environment_type(budget)(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _generation_tag()],
        finalize=functools.partial(_written, budget=budget),
    )
    environment.filters = {
        name: _bounded(name, filter_, budget)
        for name, filter_ in {**environment.filters, "tojson": _tojson}.items()
        if name in _FILTERS or name == "tojson"
    }
    del environment.globals["lipsum"]
    environment.globals.update(_functions(budget))
    return environment


def _generation_tag() -> Any:
    """`{% generation %}...{% endgeneration %}`: marks an assistant's text for training. Its body is
    rendered as it stands, with variables of its own.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation


def _written(value: Any, budget: Budget) -> Any:
    """A value on its way into text, charged once."""
    if size_of([value]) and not isinstance(value, Iterator):
        budget.made(value)
    return value


def _environment_type(budget: Budget) -> Any:
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """Charges operators and calls, and refuses those that make much of a small argument."""

        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "%" and isinstance(left, str):
                raise SecurityError("string formatting with % isn't allowed in a chat template")
            if operator == "*":
                for many, times in ((left, right), (right, left)):
                    if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                        fits(size_of(many) * max(times, 0))
            if operator == "+" and isinstance(left, (str, list, tuple)):
                fits(size_of(left) + size_of(right))
            if operator == "**":
                _check_integers((left, right), "operand")
                if isinstance(right, int) and abs(right) > 64:
                    raise SecurityError(f"exponent {right} is too large")
            return budget.made(super().call_binop(context, operator, left, right))

        def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            if function in (self.step, self.kept, self.joined_text):
                return function(*args)
            budget.step()
            _check_integers((*args, *kwargs.values()), "argument")
            method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
            owner = getattr(method, "__self__", None)
            if isinstance(owner, str):
                size_of([*args, *kwargs.values()])
                if method.__name__ == "join":
                    args = tuple(list(argument) for argument in args)
                _check_method(owner, method.__name__, (*args, *kwargs.values()))
            return budget.made(super().call(context, function, *args, **kwargs))

        def step(self, work: int) -> bool:
            """A pass of a body that writes `work` literal characters."""
            return budget.step(work)

        def kept(self, value: Any) -> Any:
            """A list or dict literal."""
            return budget.made(value)

        def joined_text(self, *parts: Any) -> Any:
            """The `~` operator."""
            for part in parts:
                budget.made(_written(part, budget))
            fits(sum(size_of(part) for part in parts))
            return "".join(map(str, parts))

    return Environment


def _functions(budget: Budget) -> dict[str, Callable[..., Any]]:
    """What templates can call beside methods."""
    from jinja2.exceptions import SecurityError, TemplateRuntimeError

    def bounded_range(*bounds: int) -> range:
        numbers = range(*bounds)
        if len(numbers) > MAX_STEPS:
            raise SecurityError(f"a range of {len(numbers):,} is too long")
        return numbers

    def raise_exception(message: object) -> None:
        text = str(_written(message, budget))
        raise TemplateRuntimeError(text.encode("utf-8", "replace").decode("utf-8"))

    def strftime_now(form: str) -> str:
        if len(form) > 256:
            raise SecurityError("a time format of more than 256 characters is too long")
        return datetime.now().strftime(form)

    return {
        "range": bounded_range,
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
    }


def _bounded(name: str, function: Callable[..., Any], budget: Budget) -> Callable[..., Any]:
    """A filter that is charged, and refuses arguments that amplify its value."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)  # keeps jinja2's marks on the function
    def filter_(*args: Any, **kwargs: Any) -> Any:
        budget.step()
        arguments = (*args[first + 1 :], *kwargs.values())
        _check_integers(arguments, "argument")
        size_of(list(arguments))
        value = args[first]
        if not isinstance(value, Iterator):
            size_of([value])
        if name == "replace":
            old, new = (kwargs.get(key) for key in ("old", "new"))
            given = list(args[first + 1 :])
            old = given.pop(0) if old is None and given else old
            new = given.pop(0) if new is None and given else new
            _check_replace(str(value), str(old), str(new))
        elif name == "join":
            value = list(value)
            args = (*args[:first], value, *args[first + 1 :])
            _check_join(value, arguments)
        elif name == "indent":
            wide = max((a if isinstance(a, int) else size_of(a) for a in arguments), default=4)
            fits((str(value).count("\n") + 1) * max(wide, 4))
        return budget.made(function(*args, **kwargs))

    return filter_


def _check_integers(values: tuple[Any, ...], what: str) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_STEPS:
            raise TextError(f"the chat template's {what} {size_of(value) and value} is too large")


def _check_method(owner: str, name: str, arguments: tuple[Any, ...]) -> None:
    """Refuses methods of strings that make much of little."""
    if name in _REFUSED_METHODS:
        raise TextError(f"the method {name} isn't allowed in a chat template")
    if name == "replace" and len(arguments) >= 2:
        _check_replace(owner, str(arguments[0]), str(arguments[1]))
    elif name == "join" and arguments:
        size = size_of(arguments[0])
        fits(size + size * len(owner))
    elif name == "format":
        if _DYNAMIC_OR_WIDE.search(owner):
            raise TextError("the chat template formats with a computed or very large width")
        fits(len(owner) + owner.count("{") * (999 + size_of(list(arguments))))


def _check_replace(text: str, old: str, new: str) -> None:
    fits(len(text) + text.count(old) * len(new))


def _check_join(values: list[Any], arguments: tuple[Any, ...]) -> None:
    separator = sum(len(argument) for argument in arguments if isinstance(argument, str))
    fits(size_of(values) + len(values) * separator)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: nothing is escaped for HTML."""
    wide = len(indent) if isinstance(indent, str) else indent or 0
    if wide > MAX_JSON_INDENT or size_of(separators) > 2 * MAX_JSON_INDENT:
        raise TextError(f"tojson: an indent above {MAX_JSON_INDENT} isn't allowed")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces: list[str] = []
    size = 0
    for piece in encoder.iterencode(value):
        size = fits(size + len(piece))
        pieces.append(piece)
    return "".join(pieces)
