"""What the programs beside this file share. They run in environments of their own, so nothing of ours is imported.

A program is called with the API's base URL and a key. It prints one JSON object: its client's version, then the name of
each check and its traceback, null where nothing went wrong. The checks are the functions called `check_…`, which take
the base URL and the key. tests/support/clients.py sets up the models called `scripted/client-…`.
"""

import json
import sys
import traceback
from contextlib import contextmanager

MESSAGES = [{"role": "user", "content": "one two three"}]
TEXT = "w0 w1 w2 w3 w4 "
THOUGHT, ANSWER = "Let me see. ", "It is 4."
CALLS = [("c1", "f", {"x": 1}), ("c2", "g", {"x": 2})]
PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": PARAMETERS}} for name in "fg"
]


@contextmanager
def raises(kind, **attributes):
    """The block fails with this error, which has these attributes."""
    try:
        yield
    except kind as error:
        found = {name: getattr(error, name) for name in attributes}
        if found != attributes:
            raise AssertionError(f"{found} instead of {attributes}") from error
    else:
        raise AssertionError(f"no {kind.__name__}")


def run(program, version):
    """Runs the checks of a program, given its globals."""
    report = {"version": version}
    for name, check in list(program.items()):
        if name.startswith("check_"):
            try:
                check(*sys.argv[1:])
                report[name] = None
            except Exception:
                report[name] = traceback.format_exc()
    print(json.dumps(report))
