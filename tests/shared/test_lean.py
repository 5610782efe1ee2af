"""What server processes leave out: nothing of theirs loads it, and who wants it later gets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROCESS = """
from shared import lean
lean.load({used})
import sys
import {module}
print(sorted({{"cryptography.hazmat", "rich", "jwt", "structlog"}} & set(sys.modules)))
import cryptography.fernet, rich.console
print(cryptography.fernet.Fernet(cryptography.fernet.Fernet.generate_key()) is not None, rich.console.Console is not None)
"""


@pytest.mark.parametrize(("module", "used"), [("api.server", ""), ("worker.process", '"httpx"')])
def test_what_nobody_uses_is_not_loaded(module: str, used: str) -> None:
    """As the processes begin, in `__main__.py`."""
    command = [sys.executable, "-P", "-c", _PROCESS.format(module=module, used=used)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["['jwt', 'structlog']", "True True"]
