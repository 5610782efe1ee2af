"""Builds of Streamspool that can be measured: this working tree, and any earlier commit of it.

Hidden here: where a commit's files come from (this repository, so nothing is fetched), and which Python runs them. With the
same lock as ours it is ours; else the revision makes a venv of its own, by its own `make install`. What drives both is the
bench of this tree: of an earlier revision nothing is wanted but that `python -m api` and `python -m worker` start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import ROOT, WORK
from tests.bench.machine import CannotMeasure

FOLDER = WORK / "revisions"
"""Where revisions are set up, and stay until `make clean`."""
LOCK = "requirements.lock"
_ROOMS = ("api", "worker", "shared")


@dataclass(frozen=True)
class Build:
    """What is started: the packages `api`, `worker` and `shared` in `tree`, by `python`. `revision` says which commit it is."""

    tree: Path
    python: str
    revision: str


def current() -> Build:
    """This working tree, run by the Python in BENCH_PYTHON (`make` sets it), else by this one."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *_ROOMS, LOCK)
    revision = _git("rev-parse", "--short", "HEAD") or "unknown"
    return Build(ROOT, os.environ.get("BENCH_PYTHON", sys.executable), revision + (" and changes" if changed else ""))


def prepare(revision: str, folder: Path = FOLDER) -> Build:
    """Sets up a commit in a folder of its own, once. Raises CannotMeasure where there is none, or it cannot be started."""
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not commit:
        raise CannotMeasure(
            f"This repository has no revision {revision}. `git fetch --unshallow` brings what a shallow clone lacks."
        )
    tree = folder / commit[:12]
    if not (tree / LOCK).exists():
        _extract(commit, tree)
    build = Build(tree, current().python, commit[:7])
    if (tree / LOCK).read_bytes() != (ROOT / LOCK).read_bytes():
        build = Build(tree, _own_python(tree), commit[:7])
    _check(build)
    return build


def _extract(commit: str, tree: Path) -> None:
    """Under another name first: what was interrupted is done again."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    fresh, packed = tree.with_suffix(".new"), tree.with_suffix(".tar")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    _run("git", "archive", f"--output={packed}", commit, where=ROOT)
    _run("tar", "-xf", str(packed), where=fresh)
    packed.unlink()
    fresh.rename(tree)


def _own_python(tree: Path) -> str:
    """Of a venv with what users of that revision install, made with the Python that runs here."""
    ours = f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    words = [f"PYTHON={ours}"] if Path(ours).exists() else []
    _run("make", "--silent", "install", *words, where=tree)
    return str(tree / ".venv/bin/python")


def _check(build: Build) -> None:
    """That it is that tree which runs, and not another one that this Python knows as well."""
    program = "import api, worker, shared; print(*api.__path__, *worker.__path__, *shared.__path__, sep='\\n')"
    told = _run(build.python, "-c", program, where=build.tree.parent, PYTHONPATH=str(build.tree))
    if told.split() != [str(build.tree / room) for room in _ROOMS]:
        raise CannotMeasure(f"{build.python} does not run what is in {build.tree}, but:\n{told}")


def _git(*words: str) -> str:
    """What git says, or nothing."""
    try:
        return subprocess.run(["git", *words], cwd=ROOT, check=False, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _run(*command: str, where: Path, **environment: str) -> str:
    """Its output. Raises CannotMeasure."""
    known: dict[str, str] = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")
    }
    try:
        done = subprocess.run(command, cwd=where, env=known | environment, check=False, capture_output=True, text=True)
    except OSError as error:
        raise CannotMeasure(f"{_shown(command)}: {error}") from None
    if done.returncode:
        raise CannotMeasure(f"{_shown(command)} failed in {where}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def _shown(command: Sequence[str]) -> str:
    return " ".join(command[:3])
