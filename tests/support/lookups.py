"""What the name of a host leads to in a test, whatever the machine's own resolver would say, and however long it would take."""

from __future__ import annotations

import socket
from typing import Any

import pytest


def unknown(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Nobody knows these names, and that is said at once."""
    real = socket.getaddrinfo

    def look_up(host: Any, *given: Any, **how: Any) -> Any:
        if host in hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *given, **how)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
