"""Words for people: what a name that is none was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

_NEAR = 0.7


def did_you_mean(name: str, known: Mapping[str, str] | Iterable[str]) -> str:
    """`; did you mean …?`, or nothing where no name comes near. A mapping has the names as they are to be shown."""
    shown = known if isinstance(known, Mapping) else {one: one for one in known}
    by_folded = {one.casefold(): one for one in shown.values()} | {one.casefold(): text for one, text in shown.items()}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=_NEAR)
    return f"; did you mean {by_folded[near[0]]}?" if near else ""
