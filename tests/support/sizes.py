"""How large the parts of the house are: `check` fails in `make lint` where one has grown too large, `table` prints figures.

    python -m tests.support.sizes check
    python -m tests.support.sizes table [ROOT]

Limits: 400 lines a file, 50 lines a function, 16 modules side by side in a folder, no circle of imports. What may be larger
stands in `LARGER` with its reason, and no entry may be raised or added without one: the table is to become shorter.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("api", "worker", "shared")
FILE_LINES, FUNCTION_LINES, MODULES = 400, 50, 16

LARGER: dict[str, tuple[int, str]] = {
    "shared/config/settings.py": (537, "one class: each setting is a field of it, its validator beside it"),
    "shared/errors.py": (710, "one tree: every error of the product with its status, its code and its words"),
}
"""Files that may have more lines: so many, and why."""


class Module(NamedTuple):
    """One source file. `imports` are names of modules of ours that it imports when it runs, wherever that stands."""

    name: str
    path: Path
    lines: int
    functions: list[tuple[str, int]]
    imports: set[str]
    untyped: int
    """Lines with `dict[str, Any]`."""


def modules(root: Path) -> dict[str, Module]:
    found = [read(root, path) for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    names = {module.name for module in found}
    return {
        module.name: module._replace(imports={_known(name, names) for name in module.imports} & names)
        for module in found
    }


def read(root: Path, path: Path) -> Module:
    text = path.read_text()
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse(text)
    functions = [
        (node.name, (node.end_lineno or 0) - node.lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lines = text.splitlines()
    untyped = sum("dict[str, Any]" in line for line in lines)
    return Module(name, path, len(lines), functions, set(_imports(tree)), untyped)


def _imports(node: ast.AST) -> Iterator[str]:
    """Names as written, those of what is imported from a module too: it may be a module itself."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def _known(name: str, names: set[str]) -> str:
    return name if name in names else name.rpartition(".")[0]


def arrows(found: dict[str, Module], package: str) -> set[tuple[str, str]]:
    """Which room of a package imports which: rooms are the modules and folders right under it."""
    pairs = {
        (_room(module.name, package), _room(name, package))
        for module in found.values()
        for name in module.imports
        if module.name.startswith(f"{package}.") and name.startswith(f"{package}.")
    }
    return {(one, other) for one, other in pairs if one != other}


def _room(name: str, package: str) -> str:
    return name.removeprefix(f"{package}.").partition(".")[0]


def circles(pairs: set[tuple[str, str]]) -> list[set[str]]:
    """Sets of nodes each of which reaches every other of its set."""
    reached: dict[str, set[str]] = {one: {other for first, other in pairs if first == one} for one, _ in pairs}
    grown = True
    while grown:
        grown = False
        for others in reached.values():
            further = set().union(*(reached.get(other, set()) for other in others)) - others
            others |= further
            grown = grown or bool(further)
    found: list[set[str]] = []
    for one, others in reached.items():
        together = {other for other in others if one in reached.get(other, set())}
        if together and together not in found:
            found.append(together)
    return found


def between_modules(found: dict[str, Module]) -> list[set[str]]:
    """A folder's own file is left out: it is imported with whatever lies in the folder."""
    folders = {module.name for module in found.values() if module.path.name == "__init__.py"}
    return circles(
        {(one.name, name) for one in found.values() for name in one.imports - folders if one.name not in folders}
    )


def crowded(root: Path) -> Iterator[tuple[Path, int]]:
    """Each folder, and how many modules lie side by side in it."""
    for package in PACKAGES:
        for folder in [root / package, *(root / package).rglob("*/")]:
            count = sum(path.name != "__init__.py" for path in folder.glob("*.py"))
            if count:
                yield folder.relative_to(root), count


def wrong(root: Path) -> Iterator[str]:
    found = modules(root)
    lines = {module.path.relative_to(root).as_posix(): module.lines for module in found.values()}
    for path, count in lines.items():
        limit, _ = LARGER.get(path, (FILE_LINES, ""))
        if count > limit:
            yield f"{path} has {count} lines, {limit} at most: cut it along a seam."
    for path, (limit, _) in LARGER.items():
        if lines.get(path, 0) <= FILE_LINES:
            yield f"{path} needs no exception any more: take it out of LARGER."
        elif lines[path] <= limit - 25:
            yield f"{path} has {lines[path]} lines now: lower its limit of {limit} in LARGER."
    for module in found.values():
        for name, count in module.functions:
            if count > FUNCTION_LINES:
                yield f"{module.path.relative_to(root)}: {name} has {count} lines, {FUNCTION_LINES} at most."
    for folder, count in crowded(root):
        if count > MODULES:
            yield f"{folder}/ has {count} modules side by side, {MODULES} at most: it needs rooms."
    for circle in between_modules(found):
        yield f"These import each other in a circle: {', '.join(sorted(circle))}."
    for package in PACKAGES:
        for circle in circles(arrows(found, package)):
            yield f"These rooms of {package} import each other in a circle: {', '.join(sorted(circle))}."


def table(root: Path) -> Iterator[str]:
    found = modules(root)
    yield "| package | lines | rooms | arrows | circles of rooms |"
    yield "| --- | --- | --- | --- | --- |"
    for package in PACKAGES:
        inside = [module for module in found.values() if f"{module.name}.".startswith(f"{package}.")]
        rooms = {_room(module.name, package) for module in inside if module.name != package}
        pairs = arrows(found, package)
        lines = sum(module.lines for module in inside)
        yield f"| {package} | {lines} | {len(rooms)} | {len(pairs)} | {len(circles(pairs))} |"
    counts = dict(crowded(root))
    functions = [count for module in found.values() for _, count in module.functions]
    yield ""
    yield f"- modules: {len(found)}; circles among them: {len(between_modules(found))}"
    yield f"- most modules side by side: {max(counts.values())} ({max(counts, key=lambda folder: counts[folder])})"
    yield f"- files over {FILE_LINES} lines: {sum(module.lines > FILE_LINES for module in found.values())}"
    yield f"- functions: {len(functions)}; over {FUNCTION_LINES} lines: {sum(count > FUNCTION_LINES for count in functions)}"
    yield f"- lines with `dict[str, Any]`: {sum(module.untyped for module in found.values())}"
    checked = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    tests = [path for folder in checked if folder.startswith("tests") for path in (root / folder).rglob("*.py")]
    tests = [path for path in tests if "node_modules" not in path.parts]
    yield f"- lines of tests under mypy: {sum(len(path.read_text().splitlines()) for path in tests)}"


def main() -> None:
    command, *rest = sys.argv[1:]
    root = Path(rest[0] if rest else ".").resolve()
    if command == "table":
        print("\n".join(table(root)))
    elif found := list(wrong(root)):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
