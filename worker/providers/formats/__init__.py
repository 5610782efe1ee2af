"""Which file speaks which wire format: the one that has the format's name, for each row of shared/config/formats.py.

So a new wire format is a file in this folder, which brings its `DIALECT` (../dialect.py says what that is), and a row there.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from shared.config.formats import WIRE_FORMATS
from worker.providers.dialect import Dialect
from worker.providers.formats.whole import dialect_for
from worker.providers.registry import FAKE, Provider

_DIALECTS: dict[str, Dialect] = {kind: import_module(f"{__name__}.{kind}").DIALECT for kind in WIRE_FORMATS}


def dialect_of(provider: Provider, whole: dict[str, Any] | None = None) -> Dialect:
    """With `whole`, for a request that is passed on as it came (shared/chat/whole.py)."""
    if whole is not None:
        return dialect_for(provider, whole)
    return _DIALECTS["openai" if provider.kind == FAKE.kind else provider.kind]
