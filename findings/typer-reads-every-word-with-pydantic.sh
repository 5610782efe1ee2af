#!/usr/bin/env bash
# Package: typer 0.29.2 (PyPI), with the pydantic that it asks for.
# Behaviour: as soon as a command is named, if only for its `--help`, pydantic is imported to read its words: that takes as long
#   again as typer, and what the command itself imports. `--help` of the whole program does without.
# For us: our commands read texts and defaults themselves (shared/cli/terms.py), and start in half the time.
# Seen: pydantic is imported by: --help no, greet --help yes, greet x yes
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check typer==0.29.2
cat >"$dir/tool.py" <<'PY'
import atexit
import sys

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)
atexit.register(lambda: print("yes" if "pydantic" in sys.modules else "no", file=sys.stderr))


@app.command()
def greet(name: str) -> None:
    print(name)


@app.command()
def other() -> None:
    pass


app()
PY
try() { "$dir/venv/bin/python" "$dir/tool.py" "$@" 2>&1 >/dev/null | tail -1; }
found="--help $(try --help), greet --help $(try greet --help), greet x $(try greet x)"
echo "pydantic is imported by: $found"
[[ "$found" == "--help no, greet --help yes, greet x yes" ]]
