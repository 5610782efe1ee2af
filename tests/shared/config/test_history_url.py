"""Where the history is kept, as a setting."""

from __future__ import annotations

import pytest

from shared.config.environ import SettingsInvalid
from shared.config.settings import load_settings


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (None, None),
        ("none", None),
        ("OFF", None),
        ("sqlite:////var/lib/streamspool/history.sqlite3", "sqlite:////var/lib/streamspool/history.sqlite3"),
        ("sqlite:///history.sqlite3", "sqlite:///history.sqlite3"),
        ("postgresql://me:s%20ecret@host:5432/streams", "postgresql://me:s%20ecret@host:5432/streams"),
        ("postgres://host/streams?ssl=require", "postgresql://host/streams?ssl=require"),
    ],
)
def test_it_is_a_file_a_server_or_nowhere(given: str | None, url: str | None) -> None:
    settings = load_settings(history_url=given)
    assert settings.keeps_history == (url is not None)
    if url is not None and settings.history_url is not None:
        assert settings.history_url.get_secret_value() == url


@pytest.mark.parametrize(
    "given", ["sqlite:///", "sqlite://history", "mysql://canary@host/x", "canary", "postgresql://"]
)
def test_anything_else_stops_the_start_and_is_not_shown(given: str) -> None:
    with pytest.raises(SettingsInvalid) as error:
        load_settings(history_url=given)
    assert "STREAMSPOOL_HISTORY_URL" in str(error.value)
    assert "canary" not in str(error.value)
