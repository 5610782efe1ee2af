"""The look at the locks: what an old pip would not find in one is found here first."""

from __future__ import annotations

import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.locks import asked, by_name, followed, main, missing, spelled_out

ROOT = Path(__file__).parents[2]
HASH = "--hash=sha256:" + "0" * 64


@pytest.fixture
def closure(tmp_path: Path) -> list[Distribution]:
    """`plug` asks for an extra of `base`, `twig` for `base` alone; the extra asks for `extra-tool`, here and nowhere else."""
    for name, *fields in (
        (
            "base",
            "Provides-Extra: toml",
            'Requires-Dist: extra-tool>=2 ; extra == "toml"',
            "Requires-Dist: never; extra=='no'",
        ),
        ("plug", "Requires-Dist: Base[TOML] >=1", 'Requires-Dist: elsewhere ; sys_platform == "atari"'),
        ("twig", "Requires-Dist: base"),
        ("extra_tool",),
    ):
        folder = tmp_path / f"lib/python3.11/site-packages/{name}-2.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(
            "\n".join(("Metadata-Version: 2.1", f"Name: {name}", "Version: 2.0", *fields)) + "\n"
        )
    return list(distributions(path=[str(tmp_path / "lib/python3.11/site-packages")]))


def lock(*names: str) -> str:
    return "".join(f"{name} \\\n    {HASH} \\\n    {HASH}\n" for name in names)


WHOLE = ("base==2.0", "base[toml]==2.0", "extra-tool==2.0", "plug==2.0", "twig==2.0")


def test_a_lock_with_all_that_is_asked_for_is_whole(closure: list[Distribution]) -> None:
    assert missing(lock(*WHOLE), closure) == []
    assert missing(lock(*WHOLE, 'elsewhere==1 ; sys_platform == "atari"'), closure) == []


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("base[toml]==2.0", "plug asks for base[toml]: no such line"),  # the extra was stripped
        ("base==2.0", "twig asks for base: no such line"),  # and this is what uv writes when it is not
        ("extra-tool==2.0", "base[toml] asks for extra-tool: no such line"),
    ],
)
def test_a_line_that_something_asks_for_is_missed(closure: list[Distribution], gone: str, sentence: str) -> None:
    assert missing(lock(*(name for name in WHOLE if name != gone)), closure) == [sentence]


def test_another_extra_does_not_stand_for_the_one_that_is_asked_for(closure: list[Distribution]) -> None:
    union = lock(*(name.replace("[toml]", "[toml,yaml]") for name in WHOLE))
    assert missing(union, closure) == ["plug asks for base[toml]: no such line"]
    assert missing(spelled_out(union), closure) == []


def test_a_version_that_something_cannot_use_and_a_package_that_is_not_there_are_told(
    closure: list[Distribution],
) -> None:
    wrong = [*WHOLE[:2], "extra-tool==1.9", *WHOLE[3:], "ghost==1"]
    assert missing(lock(*wrong), closure) == [
        'base[toml] asks for extra-tool>=2; extra == "toml": another version is locked',
        "ghost is not installed",
    ]


def test_all_subsets_of_extras_are_spelled_out_once() -> None:
    once = spelled_out(lock("a==1", "moto[s3, server]==5 ; python_full_version >= '3.11'"))
    assert [line.partition(" ")[0] for line in once.splitlines() if "==" in line] == [
        "a==1",
        *("moto==5", "moto[s3]==5", "moto[server]==5", "moto[s3,server]==5"),
    ]
    assert once.count(HASH) == 10
    assert once.count("; python_full_version") == 4
    assert spelled_out(once) == once


def test_the_command_says_what_is_missing_and_fails(
    closure: list[Distribution], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.lock"
    file.write_text(lock(*WHOLE).replace("base==2.0", "ghost==2.0", 1))
    assert main("check", f"{file}={tmp_path}") == 1
    assert "some.lock: twig asks for base: no such line" in capsys.readouterr().err
    file.write_text(lock("base[toml]==2.0", *WHOLE[2:]))
    assert main("spell-out", str(file)) == 0
    assert main("check", f"{file}={tmp_path}") == 0


def test_the_image_leaves_behind_what_built_it_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

    def needed(requirements: list[str]) -> set[str]:
        wanted = [asked(one) for one in map(Requirement, requirements) if one.marker is None or one.marker.evaluate()]
        return {one.name for one, _ in followed(wanted, by_name(distributions()))}

    builds = needed(project["build-system"]["requires"]) - needed(project["project"]["dependencies"])
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert f"pip uninstall --yes {' '.join(sorted(builds))} && pip check\n" in dockerfile
