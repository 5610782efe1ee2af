"""What has grown too large is named, and an exception that is needed no more as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import sizes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for package in sizes.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    return tmp_path


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(exist_ok=True)
    (root / path).write_text(text)


def test_a_file_a_function_and_a_folder_have_limits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "LARGER", {})
    put(root, "api/good.py", "x = 1\n" * 400)
    put(root, "api/long.py", "x = 1\n" * 401)
    put(root, "worker/deep.py", "def well():\n" + "    x = 1\n" * 49 + "def badly():\n" + "    x = 1\n" * 50)
    for number in range(17):
        put(root, f"shared/hall/room{number}.py", "")
    found = "\n".join(sizes.wrong(root))
    assert "api/long.py has 401 lines, 400 at most" in found
    assert "worker/deep.py: badly has 51 lines, 50 at most" in found
    assert "shared/hall/ has 17 modules side by side, 16 at most" in found
    assert len(found.splitlines()) == 3


def test_an_exception_only_shrinks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "LARGER", {"api/long.py": (500, "why"), "api/cut.py": (450, "why")})
    put(root, "api/long.py", "x = 1\n" * 470)
    put(root, "api/cut.py", "x = 1\n" * 400)
    assert list(sizes.wrong(root)) == [
        "api/long.py has 470 lines now: lower its limit of 500 in LARGER.",
        "api/cut.py needs no exception any more: take it out of LARGER.",
    ]


def test_a_circle_is_found_wherever_the_import_stands_but_not_one_for_types(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "LARGER", {})
    put(root, "shared/one.py", "from shared import two\n")
    put(root, "shared/two.py", "def f():\n    from shared.three import x\n")
    put(root, "shared/three.py", "import shared.one\n")
    put(root, "shared/four.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import shared.five\n")
    put(root, "shared/five.py", "import shared.four\n")
    assert list(sizes.wrong(root)) == [
        "These import each other in a circle: shared.one, shared.three, shared.two.",
        "These rooms of shared import each other in a circle: one, three, two.",
    ]
    assert sizes.arrows(sizes.modules(root), "shared") == {
        ("one", "two"),
        ("two", "three"),
        ("three", "one"),
        ("five", "four"),
    }
