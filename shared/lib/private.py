"""Files and directories that no other user of this machine can read: what is kept here are other people's prompts.

Hidden here: that `mkdir(parents=True)` gives its mode to the last directory alone, and that a chmod must not follow a link
that another user has put there. Only what is this user's own is changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

UMASK = 0o077
"""For processes whose every file is private: what they make is 0600, and 0700 if it is a directory or a socket."""

_OTHERS = 0o077
_SHARED = stat.S_ISVTX | stat.S_ISGID
"""Others are meant to write here: /tmp, a group's volume."""


def make_directory(path: Path) -> None:
    """Makes it and the parents it lacks, each 0700 (as the XDG Base Directory Specification asks); what is there stays as
    it is. Raises OSError."""
    for directory in (*reversed(path.absolute().parents), path):
        if not directory.is_dir():
            directory.mkdir(mode=0o700, exist_ok=True)


def opener(path: str, flags: int) -> int:
    """For `open`: a file it makes is 0600."""
    return os.open(path, flags, 0o600)


def close_to_others(path: Path) -> None:
    """Takes a file or directory of this user's from all others. Links, and what belongs to others, stay as they are."""
    try:
        found = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # not there, a link, a socket, or another user's
        return
    try:
        about = os.fstat(found)
        if about.st_uid == os.geteuid() and about.st_mode & _OTHERS and _is_plain(about.st_mode):
            os.fchmod(found, stat.S_IMODE(about.st_mode) & ~_OTHERS)
    finally:
        os.close(found)


def close_if_ours(directory: Path, names: Collection[str]) -> None:
    """The same for a directory that was made for us: one that has nothing in it but `names`, which are ours, is nobody's
    home and not meant to be shared."""
    home = os.path.realpath(os.path.expanduser("~"))
    if os.path.realpath(directory) == home or directory.stat().st_mode & _SHARED:
        return
    if all(name in names for name in os.listdir(directory)):
        close_to_others(directory)


def _is_plain(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
