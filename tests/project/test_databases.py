"""Who shares a database: a stack that lives as long as its process of tests would take the work of any other there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def users() -> Iterator[tuple[int, str, bool]]:
    """Each function that names a database of the tests' server, and whether it is a fixture for all tests."""
    for path in sorted(ROOT.rglob("*.py")):
        if "node_modules" in path.parts or path == Path(__file__):
            continue
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if 'replace("db=0", ' in text else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lasts = any(
                    'scope="session"' in (ast.get_source_segment(text, one) or "") for one in node.decorator_list
                )
                body = ast.get_source_segment(text, node) or ""
                for number in re.findall(r'replace\("db=0", "db=(\d+)"', body):
                    yield int(number), f"{path.relative_to(ROOT)}: {node.name}", lasts


def test_what_lasts_for_all_tests_has_a_database_of_its_own() -> None:
    found = list(users())
    lasting = {number: name for number, name, lasts in found if lasts}
    assert len(lasting) > 3
    assert [name for number, name, _ in found if name != lasting.get(number, name)] == []
