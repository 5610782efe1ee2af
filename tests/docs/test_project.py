"""Pages and files for contributors: what they name exists, and the map is that of the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs import tables
from tests.docs.snippets import prose

ROOT = tables.ROOT
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "docs/glossary.md")
DECISIONS = sorted((ROOT / "docs/decisions").glob("0*.md"))
NAMED = [*PAGES, *(str(path.relative_to(ROOT)) for path in DECISIONS)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]
WORKFLOW = ROOT / ".github/workflows/ci.yml"

_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"\.?[\w.-]+(?:/[\w.-]+)*/?")
_TOP = ("api", "worker", "shared", "tests", "docs", "examples", ".ci", ".github")


def paths(text: str) -> set[str]:
    """What in backticks is a path of this repository: it begins with one of its folders, or names a file at the top."""
    found = {code for code in _CODE.findall(text) if _PATH.fullmatch(code)}
    return {
        name
        for name in found
        if (name.partition("/")[0] in _TOP and "/" in name) or name.endswith((".toml", ".yml", ".yaml", ".example"))
    } - {"streamspool.toml"}


def layers(container: str) -> list[list[str]]:
    """The rooms of a package, from the top down; those of one layer together."""
    (contract,) = (one for one in CONTRACTS if one["type"] == "layers" and one["containers"] == [container])
    return [[room.strip() for room in re.split("[|:]", layer)] for layer in contract["layers"]]


def section(text: str, heading: str) -> str:
    return re.split(r"^#{2,3} ", text.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.M)[0]


def rooms(package: str) -> set[str]:
    """Folders with modules in them, and modules."""
    return {
        path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }


@pytest.mark.parametrize("document", NAMED)
def test_paths_that_are_named_exist(document: str) -> None:
    assert [name for name in sorted(paths(prose(ROOT, document))) if not (ROOT / name).exists()] == []


def test_paths_are_told_from_other_words() -> None:
    text = "`api/app.py`, `provider/model`, `shared/lib/`, `api`, `chat.completion`, `.env.example`, `streamspool.toml`"
    assert paths(text) == {"api/app.py", "shared/lib/", ".env.example"}


def test_the_map_has_every_room_of_shared_in_the_order_of_the_layers() -> None:
    text = prose(ROOT, "ARCHITECTURE.md")
    listed = re.findall(r"^\| `shared/(\w+)/`", section(text, "### shared"), re.M)
    order = [room for layer in layers("shared") for room in layer if (ROOT / "shared" / room).is_dir()]
    assert listed == order
    assert "`shared/errors.py`" in section(text, "### shared")


@pytest.mark.parametrize("package", ["api", "worker"])
def test_the_map_has_every_room_of_the_ends(package: str) -> None:
    named = set(re.findall(rf"`{package}/(\w+)", section(prose(ROOT, "ARCHITECTURE.md"), f"### {package}")))
    assert rooms(package) - named - {"__init__", "__main__"} == set()


def test_the_contracts_that_are_told_are_those_that_are_checked() -> None:
    """Each layer is named in the row of its package, from the top down, as it stands in pyproject.toml."""
    rows = section(prose(ROOT, "ARCHITECTURE.md"), "### What may import what")
    for contract in CONTRACTS:
        if contract["type"] != "layers":
            continue
        (container,) = contract["containers"]
        (row,) = (line for line in rows.splitlines() if f"inside `{container}`" in line)
        told = _CODE.findall(row.partition("inside ")[2])[1:]
        checked = [room for layer in layers(container) for room in layer if not room.startswith("__")]
        assert sorted(told) == sorted(checked), container
        heights = [next(n for n, layer in enumerate(layers(container)) if room in layer) for room in told]
        assert heights == sorted(heights), container
    protected = {name for one in CONTRACTS for name in one.get("protected_modules", ())}
    assert protected <= set(_CODE.findall(rows))


def test_make_targets_that_are_named_exist() -> None:
    real = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for document in (*tables.DOCUMENTS, ".pre-commit-config.yaml", ".github/PULL_REQUEST_TEMPLATE.md"):
        named = set(re.findall(r"`make ([a-z-]+)", (ROOT / document).read_text("utf-8")))
        assert named <= real, document
    listed = set(re.findall(r"`make ([a-z-]+)", section(prose(ROOT, "CONTRIBUTING.md"), "## Make")))
    assert listed == real


def test_the_test_tiers_are_the_folders() -> None:
    listed = set(re.findall(r"^\| `tests/(\w+)/`", prose(ROOT, "CONTRIBUTING.md"), re.M))
    there = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name[0] not in "_."}
    assert there - listed <= {"support", "harness"}
    assert listed <= there


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in DECISIONS])
def test_a_decision_has_its_three_parts_on_one_screen(path: Path) -> None:
    text = path.read_text("utf-8")
    number, title = re.findall(r"^# (\d{4}): (.+)$", text, re.M)[0]
    assert re.findall(r"^## (.+)$", text, re.M) == ["Context", "Decision", "Consequences"]
    assert path.name.startswith(f"{number}-")
    assert 15 <= text.count("\n") <= 32
    assert f"[{number}]({path.name})" in (path.parent / "README.md").read_text("utf-8")


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def test_the_workflow_calls_the_script_that_is_run_everywhere() -> None:
    workflow = parsed(WORKFLOW)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if step.get("run", "").startswith(".ci/")] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    assert workflow["permissions"] == {"contents": "read"}
    versions = [version for job in workflow["jobs"].values() for version in job["strategy"]["matrix"]["python"]]
    assert all(re.fullmatch(r"3\.1[1-4]", version) for version in versions)


def test_the_hook_is_make_lint_and_downloads_nothing() -> None:
    (repo,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    (hook,) = repo["hooks"]
    assert (repo["repo"], hook["entry"], hook["language"]) == ("local", "make lint", "system")


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_a_form_has_what_a_form_must_have(name: str) -> None:
    form = parsed(ROOT / f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_no_other_yaml_is_broken() -> None:
    for path in (*ROOT.glob("*.y*ml"), *(ROOT / ".github").rglob("*.y*ml")):
        assert parsed(path), path
