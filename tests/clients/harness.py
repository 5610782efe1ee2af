"""What the programs beside this file share. They run in environments of their own, so nothing of ours is imported.

A program is called with the API's base URL and a key. It prints one JSON object: its client's version, then the name of
each check and its traceback, null where nothing went wrong. The checks are the functions called `check_…`, which take
the base URL and the key. tests/support/clients.py sets up the models called `scripted/client-…`.
"""

import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MESSAGES: list[Any] = [{"role": "user", "content": "one two three"}]
TEXT = "w0 w1 w2 w3 w4 "
THOUGHT, ANSWER = "Let me see. ", "It is 4."
CALLS = [("c1", "f", {"x": 1}), ("c2", "g", {"x": 2})]
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": PARAMETERS}} for name in "fg"
]


@contextmanager
def raises(kind: type[Exception], **attributes: Any) -> Iterator[None]:
    """The block fails with this error, which has these attributes."""
    try:
        yield
    except kind as error:
        found = {name: getattr(error, name) for name in attributes}
        if found != attributes:
            raise AssertionError(f"{found} instead of {attributes}") from error
    else:
        raise AssertionError(f"no {kind.__name__}")


def run(program: Mapping[str, Any], version: str) -> None:
    """Runs the checks of a program, given its globals."""
    report: dict[str, str | None] = {"version": version}
    for name, check in list(program.items()):
        if name.startswith("check_"):
            try:
                check(*sys.argv[1:])
                report[name] = None
            except Exception:
                report[name] = traceback.format_exc()
    print(json.dumps(report))
