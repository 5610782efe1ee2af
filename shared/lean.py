"""What the libraries of a server process would load and nobody there uses, left out: 7 MB of each process.

Hidden here: redis-py loads PyJWT, for a way to sign in that is not offered here, and that loads cryptography where it is
installed; structlog loads Rich, for tracebacks in a terminal, and httpx does, for a command of its own. All do without what is
not there.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module

_LEFT_OUT = ("cryptography", "rich")
_WOULD_LOAD_THEM = ("jwt", "structlog")


def load(*used: str) -> None:
    """To be called before anything else is imported, with which others of such libraries will be used: `httpx`. Who wants what
    was left out gets it later."""
    hidden = [name for name in _LEFT_OUT if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: as if it were not installed (PEP 328)
    try:
        for name in (*_WOULD_LOAD_THEM, *used):
            with suppress(ImportError):
                import_module(name)
    finally:
        for name in hidden:
            del sys.modules[name]
