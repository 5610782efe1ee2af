"""On which server a key is, by its name alone: for the rules of a server's user, and for the way from one server to two.

Hidden here: which of the names of keys.py are a cell's, and so stay with the logs, and which are the control's.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from shared.store.cluster.cells import CONTROL
from shared.store.keys import Keys

_SETTLED, _CHARGED = ":settled", ":charged"
_WITH_LOGS = re.compile(
    r"open|unsettled|archived|(?:hub|index|marker|session|sessions|stored):.*"
    r"|\{[^}]*\}:(?:archiving|continued|deleted|kept|log|metadata|settled|shares|viewers)"
)


def patterns(keys: Keys, *, logs: bool = True, control: bool = True) -> tuple[list[str], list[str]]:
    """Globs of all keys and of all channels on a server that has the logs, what is the control's, or both: what a user of that
    server is to be allowed. Braces stand for themselves."""
    cells, of_control = keys.cells, f"{keys.number_of_cells.removesuffix('cells')}*"
    names = [f"{keys.prefix}{{*" if cells.count > 1 else f"{keys.prefix}:*"] if logs else [of_control]
    if logs and cells.apart and cells.count == 1:
        names.append(keys.number_of_cells)
    return names, [of_control] if control else []


class Moved(NamedTuple):
    """What a key of an installation on one server is called on the server of its control, once that has one."""

    name: str
    stays: bool
    """It is needed where it was, too."""


def moved(prefix: str, name: str) -> Moved | None:
    """None for what stays where the logs are. What was settled is there marked as charged as well, or would be once more."""
    control, rest = f"{prefix}{CONTROL}", name.removeprefix(f"{prefix}:")
    if name.startswith(f"{control}:"):  # of a cluster
        return None if name == f"{control}:cells" else Moved(name, stays=False)
    if rest == name:
        return None
    if _WITH_LOGS.fullmatch(rest) is None:
        return Moved(f"{control}:{rest}", stays=False)
    if rest.startswith("{") and rest.endswith(_SETTLED):
        return Moved(f"{control}:{rest.removesuffix(_SETTLED)}{_CHARGED}", stays=True)
    return None
