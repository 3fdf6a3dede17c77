"""The jinja2 environment of chat templates: as transformers configures it, and bounded.

Owns: what a template may call. A template is untrusted, so everything that makes text or lists is
charged to the budget of the rendering: loop bodies, calls, filters, concatenations and
output. The same places keep account of which characters are the caller's (provenance). Does not
know: messages, tokenizers.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from subsecond.errors import TextError
from subsecond.text import provenance
from subsecond.text.budget import MAX_STEPS, Budget, fits, size_of
from subsecond.text.provenance import holds_caller_text

MAX_JSON_INDENT = 16
MAX_REVERSE_NEEDLE = 256
"""Longest text searched for from the end: Python does that in time of both lengths' product."""

_FILTERS = frozenset(
    [
        "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
        "float", "indent", "int", "items", "join", "last", "length", "list", "lower", "map",
        "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select",
        "selectattr", "sort", "string", "title", "trim", "unique", "upper",
    ]
)  # fmt: skip
_PASSING_FILTERS = frozenset(
    [
        "attr", "d", "default", "dictsort", "first", "items", "last", "list", "map", "max", "min",
        "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "unique",
    ]
)  # fmt: skip
"""Filters that hand on what they are given; the others make new texts."""

_REFUSED_METHODS = frozenset(["encode", "expandtabs", "translate", "format_map"])
_REVERSE_SEARCHES = frozenset(["rfind", "rindex", "rpartition", "rsplit"])
_DYNAMIC_OR_WIDE = re.compile(r"\{[^{}]+\{|[0-9]{4,}")


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
    return provenance.written(value)


def _environment_type(budget: Budget) -> Any:
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """Charges operators and calls, and refuses those that make much of a small argument."""

        intercepted_binops = frozenset(["+", "*", "**", "%"])
        concat = staticmethod(provenance.joined)

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
            made = super().call_binop(context, operator, left, right)
            return budget.made(provenance.marked(made, (left, right)))

        def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            if function in (self.step, self.kept, self.joined_text):
                return function(*args)
            budget.step()
            _check_integers((*args, *kwargs.values()), "argument")
            method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
            owner = getattr(method, "__self__", None)
            if not isinstance(owner, str):
                return budget.made(super().call(context, function, *args, **kwargs))
            name = method.__name__
            budget.step(len(owner))
            size_of([*args, *kwargs.values()])
            if name == "join":
                args = tuple(list(argument) for argument in args)
            sources = (owner, *args, *kwargs.values())
            _check_method(owner, name, sources[1:])
            made = None
            if any(map(holds_caller_text, sources)):
                if name == "format":
                    made = provenance.formatted(owner, args, kwargs)
                else:
                    function = getattr(provenance.template_text(owner), name)
            if made is None:
                made = super().call(context, function, *args, **kwargs)
            return budget.made(provenance.marked(made, sources))

        def step(self, work: int) -> bool:
            """A pass of a body that writes `work` literal characters."""
            return budget.step(work)

        def kept(self, value: Any) -> Any:
            """A list or dict literal."""
            return budget.made(value)

        def joined_text(self, *parts: Any) -> Any:
            """The `~` operator."""
            written = [str(_written(part, budget)) for part in parts]
            fits(sum(map(len, written)))
            return provenance.joined(written)

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
        return str(provenance.marked(datetime.now().strftime(form), [form]))

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
        if name in _PASSING_FILTERS:
            return budget.made(function(*args, **kwargs))
        sources = (value, *arguments)
        if name in ("join", "replace") and any(map(holds_caller_text, sources)):
            args, kwargs = _with_origins(name, first, args, kwargs)
        return budget.made(provenance.marked(function(*args, **kwargs), sources))

    return filter_


def _with_origins(
    name: str, first: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments, such that the text whose method the filter calls keeps origins."""
    written = provenance.written
    if name == "replace":  # of a text by a text, whatever is given
        count = first + 3  # the number of replacements stands there
        texts = [*args[:first], *map(written, args[first:count]), *args[count:]]
        named = {key: written(v) if key in ("old", "new") else v for key, v in kwargs.items()}
        texts[first] = provenance.template_text(texts[first])
        return tuple(texts), named
    if "attribute" in kwargs or len(args) > first + 2:  # what is joined isn't known here
        return args, kwargs
    separator = kwargs.get("d", args[first + 1] if len(args) > first + 1 else "")
    parts = [written(part) for part in args[first]]
    return (*args[:first], parts, provenance.template_text(written(separator))), {}


def _check_integers(values: tuple[Any, ...], what: str) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_STEPS:
            raise TextError(f"the chat template's {what} {size_of(value) and value} is too large")


def _check_method(owner: str, name: str, arguments: tuple[Any, ...]) -> None:
    """Refuses methods of strings that make much of little."""
    if name in _REFUSED_METHODS:
        raise TextError(f"the method {name} isn't allowed in a chat template")
    if name in _REVERSE_SEARCHES and arguments and size_of(arguments[0]) > MAX_REVERSE_NEEDLE:
        raise TextError(f"{name} of more than {MAX_REVERSE_NEEDLE} characters isn't allowed")
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
