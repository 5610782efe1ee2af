"""What is made or taken from others here is private, and nothing else is touched."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.features.storage import Storage
from shared.lib import private

NAMES = ("lock", "files")


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """The least careful one: whatever is private here has been made so."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_every_directory_that_is_made_is_private_and_what_was_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    private.make_directory(tmp_path / "a/b/c")
    assert [mode(tmp_path / one) for one in ("", "a", "a/b", "a/b/c")] == [0o755, 0o700, 0o700, 0o700]
    (tmp_path / "a").chmod(0o750)
    private.make_directory(tmp_path / "a/b/c")
    assert mode(tmp_path / "a") == 0o750


def test_a_storage_makes_its_parents_private_too(tmp_path: Path) -> None:
    """An API or a worker that is started before any `up` makes the data directory, too."""
    Storage((tmp_path / "share/streamspool/files").as_uri())
    assert {mode(tmp_path / one) for one in ("share", "share/streamspool", "share/streamspool/files")} == {0o700}


def test_a_file_that_is_opened_is_private(tmp_path: Path) -> None:
    with open(tmp_path / "log", "ab", opener=private.opener):
        assert mode(tmp_path / "log") == 0o600


def test_files_and_directories_lose_what_others_may_and_links_are_not_followed(tmp_path: Path) -> None:
    victim, directory = tmp_path / "victim", tmp_path / "directory"
    victim.write_text("")
    directory.mkdir()
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "directory", "missing"):
        private.close_to_others(tmp_path / name)
    assert (mode(victim), mode(tmp_path / "pipe"), mode(directory)) == (0o666, 0o666, 0o700)
    private.close_to_others(victim)
    assert mode(victim) == 0o600


def test_what_belongs_to_somebody_else_is_left_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    private.close_to_others(tmp_path / "file")
    assert mode(tmp_path / "file") == 0o666


@pytest.mark.parametrize(
    ("before", "inside", "after"),
    [
        (0o755, (), 0o700),
        (0o755, ("lock", "files"), 0o700),
        (0o755, ("lock", "thesis.txt"), 0o755),  # somebody's own directory
        (0o1777, (), 0o1777),  # like /tmp
        (0o2770, ("files",), 0o2770),  # a group's
    ],
)
def test_a_directory_is_closed_only_if_it_was_made_for_us(
    tmp_path: Path, before: int, inside: tuple[str, ...], after: int
) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    for name in inside:
        (directory / name).write_text("")
    directory.chmod(before)
    private.close_if_ours(directory, NAMES)
    assert mode(directory) == after


def test_a_home_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    private.close_if_ours(tmp_path, NAMES)
    assert mode(tmp_path) == 0o755
