"""Which file speaks which wire format: the one that has the format's name, for each row of shared/config/formats.py.

So a new wire format is a file in this folder, which brings its `DIALECT` (../dialect.py says what that is), and a row there.
"""

from __future__ import annotations

from importlib import import_module

from shared.config.formats import WIRE_FORMATS
from worker.providers.dialect import Dialect
from worker.providers.formats.whole import DIALECT as WHOLE
from worker.providers.registry import FAKE, Provider

_DIALECTS: dict[str, Dialect] = {kind: import_module(f"{__name__}.{kind}").DIALECT for kind in WIRE_FORMATS}


def dialect_of(provider: Provider, *, whole: bool = False) -> Dialect:
    """With `whole`, for a request that is answered with one object."""
    if whole:
        return WHOLE
    return _DIALECTS["openai" if provider.kind == FAKE.kind else provider.kind]
