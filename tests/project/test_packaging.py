"""What is handed out: locks that pin and hash everything and name no registry, a wheel and a tree without strays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from shared import __version__
from shared.cli.local_model import PACKAGES
from shared.lib.http import user_agent

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "requirements.lock"
DEV = ROOT / "tests/requirements-dev.lock"
LOCAL = ROOT / "shared/cli/local_model.lock"
CLIENTS = [(path, path.with_suffix(".lock")) for path in sorted((ROOT / "tests/clients").glob("*.in"))]
LOCKS = [pytest.param(path, id=path.name) for path in (RUNTIME, DEV, LOCAL, *(lock for _, lock in CLIENTS))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

TOP_LEVEL = {
    *("api", "worker", "shared", "tests", "docs", "findings", "deploy"),
    *("docker-compose.yml", "Dockerfile", "Makefile", "pyproject.toml", "requirements.lock"),
    *("README.md", "README.zh-CN.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
    *("LICENSE", "examples"),
}
# Put together here, so that this file is not the one that is found.
REGISTRIES = [
    ".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"))
]
MACHINE_PATH = re.compile(rb"(?<![\w.~/-])/(?:work|root)/")


def entries(lock: Path) -> list[str]:
    """The lock's logical lines: one `name==version ; marker --hash=…` each."""
    return [line for line in lock.read_text("utf-8").replace("\\\n", " ").splitlines() if line.strip()]


def pins(lock: Path) -> dict[str, set[Version]]:
    """Name to versions; a universal lock may hold several, told apart by their markers."""
    found: dict[str, set[Version]] = {}
    for line in entries(lock):
        requirement = Requirement(line.partition(" --hash")[0])
        (specifier,) = requirement.specifier
        found.setdefault(canonicalize_name(requirement.name), set()).add(Version(specifier.version))
    return found


def unmet(requirements: list[str], lock: Path) -> list[str]:
    locked = pins(lock)
    parsed = [Requirement(text) for text in requirements]
    return [
        str(requirement)
        for requirement in parsed
        if not (versions := locked.get(canonicalize_name(requirement.name)))
        or not all(requirement.specifier.contains(version) for version in versions)
    ]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_and_hashes_everything_and_says_nothing_else(lock: Path) -> None:
    line = re.compile(r"[A-Za-z0-9_.\[\],-]+==\S+( ; [^;]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*")
    assert [entry[:80] for entry in entries(lock) if not line.fullmatch(entry)] == []
    assert "://" not in lock.read_text("utf-8")


def test_the_locks_meet_what_the_project_asks_for() -> None:
    runtime = PROJECT["project"]["dependencies"] + PROJECT["build-system"]["requires"]
    groups = PROJECT["dependency-groups"]
    assert unmet(runtime, RUNTIME) == []
    assert unmet(runtime + groups["dev"], DEV) == []
    assert unmet(groups["local"], LOCAL) == []
    assert set(PROJECT["project"]["optional-dependencies"]["local"]) < set(groups["local"])
    assert {canonicalize_name(Requirement(text).name) for text in groups["local"]} == set(PACKAGES) == set(pins(LOCAL))
    for wanted, lock in CLIENTS:
        asked = [text for text in wanted.read_text("utf-8").splitlines() if not text.startswith("#")]
        assert asked
        assert unmet(asked, lock) == []
    assert unmet(["orjson<1", "no-such-package"], RUNTIME) == ["orjson<1", "no-such-package"]


def test_the_build_backend_is_locked_as_it_is_required() -> None:
    assert PROJECT["dependency-groups"]["build"] == PROJECT["build-system"]["requires"]


def test_tests_run_on_the_versions_that_are_shipped() -> None:
    dev = pins(DEV)
    assert {name: dev.get(name) for name in pins(RUNTIME)} == pins(RUNTIME)
    assert len(dev) > len(pins(RUNTIME))


def test_the_node_lock_holds_hashes_and_no_addresses() -> None:
    lock = json.loads((ROOT / "tests/clients/package-lock.json").read_text("utf-8"))
    package = json.loads((ROOT / "tests/clients/package.json").read_text("utf-8"))
    assert lock["packages"][""]["dependencies"] == package["dependencies"]
    for name, version in package["dependencies"].items():
        pinned = version.rpartition("@")[2]  # `npm:openai@4.87.1`, an older one beside the newest
        assert lock["packages"][f"node_modules/{name}"]["version"] == pinned, "pinned, not a range"
    for path, entry in lock["packages"].items():
        assert "resolved" not in entry, path
        assert not path or entry["integrity"].startswith("sha512-"), path


def test_a_wheel_holds_the_three_packages_and_what_they_read(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"streamspool-{__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"api", "worker", "shared"}
    tracked = {name for name in git_files() if name.startswith(("api/", "worker/", "shared/"))}
    assert tracked <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".env", "streamspool.toml"))]


def test_what_ci_runs_without_make_is_what_the_readme_says() -> None:
    """A README whose paragraph was wrapped anew once left CI with no lines to run, and with no word why."""
    lines = subprocess.run([".ci/fresh", "lines"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert lines.startswith("python3 -m venv .venv && ")
    assert lines.endswith(".venv/bin/streamspool demo\n")


def test_the_version_stands_in_one_place_and_the_changelog_has_it() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "shared/__init__.py"
    written = [name for name in git_files() if name.endswith(".py") and f'"{__version__}"' in (ROOT / name).read_text()]
    assert written == ["shared/__init__.py"]
    releases = re.findall(
        r"^## (\d+\.\d+\.\d+)( - \d{4}-\d\d-\d\d)?$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M
    )
    assert releases[0][0] == __version__
    assert releases[0][1]
    assert user_agent() == f"streamspool/{__version__}"


def test_the_top_level_holds_what_was_agreed() -> None:
    assert {name.partition("/")[0] for name in git_files() if not name.startswith(".")} <= TOP_LEVEL


def test_no_file_names_a_registry_or_a_place_on_somebodys_machine() -> None:
    registries = re.compile("|".join(map(re.escape, REGISTRIES)).encode())
    found = []
    for name in git_files():
        content = (ROOT / name).read_bytes()
        found += [f"{name}: {match.group().decode()}" for match in registries.finditer(content)]
        found += [f"{name}: {match.group().decode()}" for match in MACHINE_PATH.finditer(content)]
    assert found == []


def test_the_search_for_machine_paths_finds_them_and_only_them() -> None:
    bad = ["cd /" + "work/main", '"/' + 'root/.cache"', "path=/" + "root/x"]
    good = ["https://example.com/" + "work/", "docs/" + "work/plan", "~/" + "work/x"]
    assert [bool(MACHINE_PATH.search(text.encode())) for text in bad] == [True, True, True]
    assert [bool(MACHINE_PATH.search(text.encode())) for text in good] == [False, False, False]


def git_files() -> list[str]:
    """Files under git that are there: what a clone of the next commit holds."""
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file()]
