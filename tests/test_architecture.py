"""The rules that hold the house together: import arrows, forbidden calls, sizes.

Read from the syntax trees, so that late imports inside functions count as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "subsecond"

# A room may import the rooms named here and itself.
FOUNDATION = {"errors", "config"}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "text": {"errors"},
    "program": FOUNDATION,
    "models": FOUNDATION | {"program"},
    "formats": FOUNDATION | {"program", "models", "text"},
    "runtime": FOUNDATION | {"program", "models", "formats", "_native"},
    "engine": FOUNDATION | {"program", "models", "formats", "runtime", "_native"},
    "tasks": FOUNDATION | {"program", "models", "formats", "runtime", "engine", "text", "_native"},
    "bench": FOUNDATION
    | {"program", "models", "formats", "runtime", "engine", "text", "tasks", "_native"},
    "serve": FOUNDATION
    | {"program", "models", "formats", "runtime", "engine", "text", "tasks", "_native"},
    "cli": FOUNDATION
    | {
        "program",
        "models",
        "formats",
        "runtime",
        "engine",
        "text",
        "tasks",
        "bench",
        "serve",
        "_native",
    },
    "__init__": FOUNDATION | {"tasks", "engine", "formats"},
    "__main__": {"cli"},
}
HEAVY = {"torch", "transformers", "ray"}
NUMPY_ROOMS = {
    "program",
    "models",
    "formats",
}  # and there only inside functions or *_reference modules
MODULES = sorted(SOURCE.rglob("*.py"))
LINES_A_FILE, LINES_A_FUNCTION = 480, 75


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    package = ["subsecond", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, node.lineno
            if module == "subsecond":
                for name in node.names:
                    yield f"subsecond.{name.name}", node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    room = room_of(path)
    allowed = ARROWS[room] | {room}
    for module, line in imported_modules(ast.parse(path.read_text()), path):
        top, _, rest = module.partition(".")
        assert top not in HEAVY, f"{path}:{line} imports {top}"
        if top == "numpy":
            assert room in NUMPY_ROOMS, f"{path}:{line}: {room} may not import numpy"
        if top == "subsecond" and rest:
            target = rest.split(".")[0]
            if target.startswith("__") or path == (SOURCE / "__init__.py"):
                continue
            assert target in allowed, f"{path}:{line}: {room} may not import {target}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_dangerous_is_called(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assert):
            pytest.fail(f"{path}:{node.lineno}: assert in shipped code; raise a typed error")
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name for a in node.names} | {getattr(node, "module", None) or ""}
            banned = names & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
            assert not banned, f"{path}:{node.lineno}: {banned}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "os.system", "os.popen"}, (
                f"{path}:{node.lineno}: {called}"
            )
            for keyword in node.keywords:
                risky = keyword.arg in {"shell", "trust_remote_code", "allow_pickle"}
                on = isinstance(keyword.value, ast.Constant) and keyword.value.value is not False
                assert not (risky and on), f"{path}:{node.lineno}: {keyword.arg}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LINES_A_FILE, f"{path}: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LINES_A_FUNCTION, (
                f"{path}:{node.lineno}: {node.name} has {length} lines"
            )


def test_every_room_has_its_arrows() -> None:
    rooms = {room_of(path) for path in MODULES}
    assert rooms <= set(ARROWS), f"rooms without a rule: {rooms - set(ARROWS)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_modules_say_what_they_own(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no module docstring"
