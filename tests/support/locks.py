"""Locks that every pip can install from, this year's and the one a machine came with years ago.

pip before 23.3 takes `redis`, `redis[hiredis]` and `redis[hiredis,ocsp]` for three projects. Where a distribution asks for
one of them and the lock has a line for another, pip looks for that one anew, takes the newest release there is, and refuses
it for want of a hash: a lock that works today fails on the day of somebody else's release. So a lock has one line for each
of them, all with the same version and hashes.

    python -m tests.support.locks spell-out LOCK…        writes those lines, from the one line that uv makes of them
    python -m tests.support.locks check LOCK=VENV…       compares a lock with what its distributions, installed in a venv,
                                                         really ask for; exit code 1 and a line for each that is missing
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, distributions
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_LINE = re.compile(r"^(?P<name>[A-Za-z0-9_.-]+)(\[(?P<extras>[^\]]*)\])?(?P<rest>==.*)$", re.S)


class Asked(NamedTuple):
    """What an old pip tells projects apart by."""

    name: str
    extras: frozenset[str]

    def __str__(self) -> str:
        return self.name + (f"[{','.join(sorted(self.extras))}]" if self.extras else "")


def asked(requirement: Requirement) -> Asked:
    # Extras are spelled as pip 23.0 has them: `a_b` and `a-b` are one today, and were two.
    spelled = (re.sub(r"[^a-z0-9.-]+", "_", extra.lower()) for extra in requirement.extras)
    return Asked(canonicalize_name(requirement.name), frozenset(spelled))


def entries(text: str) -> list[str]:
    """The logical lines of a lock: one `name==version ; marker --hash=…` each, of one or several lines of text."""
    return [line for line in re.split(r"(?<!\\)\n", text) if line.strip()]


def requirement(entry: str) -> Requirement:
    return Requirement(entry.partition("--hash")[0].replace("\\\n", " "))


def spelled_out(text: str) -> str:
    """A lock with a line for each subset of what stands in brackets, the empty one among them. Idempotent."""
    made: dict[tuple[str, str], str] = {}
    for entry in entries(text):
        match = _LINE.match(entry)
        assert match, entry[:80]
        extras = sorted(filter(None, map(str.strip, (match["extras"] or "").split(","))))
        for size in range(len(extras) + 1):
            for chosen in combinations(extras, size):
                name = match["name"] + (f"[{','.join(chosen)}]" if chosen else "")
                made[(name, match["rest"])] = f"{name}{match['rest']}"
    return "\n".join(made.values()) + "\n"


def followed(
    roots: Iterable[Asked], there: Mapping[str, Distribution]
) -> Iterator[tuple[Asked, list[Requirement] | None]]:
    """All that the roots lead to, themselves included, each with what it asks for, by itself and through its extras; None
    where it is not there. Markers are taken as they are on this machine."""
    seen: set[Asked] = set()
    waiting = list(roots)
    while waiting:
        if (one := waiting.pop()) in seen:
            continue
        seen.add(one)
        if one.name not in there:
            yield one, None
            continue
        wanted = [Requirement(text) for text in there[one.name].requires or ()]
        wanted = [
            need
            for need in wanted
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *one.extras))
        ]
        yield one, wanted
        waiting += map(asked, wanted)


def by_name(installed: Iterable[Distribution]) -> dict[str, Distribution]:
    return {canonicalize_name(found.metadata["Name"]): found for found in installed}


def missing(lock: str, installed: Iterable[Distribution]) -> list[str]:
    """What the distributions of a lock ask for and the lock has no fitting line for; one sentence each."""
    lines: dict[Asked, list[Requirement]] = {}
    for entry in entries(lock):
        line = requirement(entry)
        if line.marker is None or line.marker.evaluate():
            lines.setdefault(asked(line), []).append(line)
    found: set[str] = set()
    for one, wanted in followed(lines, by_name(installed)):
        if wanted is None:
            found.add(f"{one} is not installed")
        for need in wanted or ():
            other = asked(need)
            if other not in lines:
                found.add(f"{one} asks for {other}: no such line")
            elif not all(need.specifier.contains(version, prereleases=True) for version in _versions(lines[other])):
                found.add(f"{one} asks for {need}: another version is locked")
    return sorted(found)


def _versions(lines: Iterable[Requirement]) -> list[str]:
    return [specifier.version for line in lines for specifier in line.specifier]


def _site_packages(venv: Path) -> str:
    (found,) = venv.glob("lib/python3*/site-packages")
    return str(found)


def main(action: str, *arguments: str) -> int:
    wrong = 0
    for argument in arguments:
        name, _, venv = argument.partition("=")
        lock = Path(name).read_text("utf-8")
        if action == "spell-out":
            Path(name).write_text(spelled_out(lock), "utf-8")
        elif action == "check":
            for sentence in missing(lock, distributions(path=[_site_packages(Path(venv))])):
                print(f"{name}: {sentence}", file=sys.stderr)
                wrong = 1
        else:
            raise SystemExit(__doc__)
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
