"""Where the history is kept, as a URL."""

from __future__ import annotations

import re

from pydantic import SecretStr

NOWHERE = "none"
_URL = re.compile(r"sqlite:///[^?#]+|postgres(ql)?://[^/\s]+(/[^\s]*)?")


def check(value: SecretStr | None) -> SecretStr | None:
    """None for `none`. Raises ValueError, which shows no password."""
    text = None if value is None else value.get_secret_value()
    if text is None or text.lower() in (NOWHERE, "off"):
        return value and SecretStr(NOWHERE)
    if not _URL.fullmatch(text):
        raise ValueError("sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; none: nowhere")
    return SecretStr(re.sub(r"^postgres://", "postgresql://", text))
