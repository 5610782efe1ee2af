"""Variables: the process environment over `.env`, and NAME_FILE in the place of NAME.

Hidden here: where a value comes from, for example a provider's key that a container was given as a file; and which variables
name a bucket's credentials.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from dotenv import dotenv_values

FILE = "_FILE"
_MAX_FILE_BYTES = 64 * 1024

BUCKET_VARIABLES = {
    "s3": {
        "AWS_ACCESS_KEY_ID": "access_key_id",
        "AWS_SECRET_ACCESS_KEY": "secret_access_key",
        "AWS_SESSION_TOKEN": "session_token",
        "AWS_DEFAULT_REGION": "region",
        "AWS_REGION": "region",
        "AWS_ENDPOINT_URL": "endpoint",
        "AWS_ENDPOINT_URL_S3": "endpoint",
    },
    "gs": {"GOOGLE_SERVICE_ACCOUNT_KEY": "service_account_key"},
    "az": {
        "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
        "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
        "AZURE_STORAGE_SAS_KEY": "sas_key",
        "AZURE_STORAGE_CLIENT_SECRET": "client_secret",
    },
}
"""Variables as everyone names them, and obstore's names for the same. It reads more of them by itself, but neither from
`.env` nor from files."""


class SettingsInvalid(ValueError):
    """The settings cannot be used; the text says, line by line, which and why."""


def environment() -> Mapping[str, str]:
    """The process environment over `.env`: where provider keys are looked up by name.

    In each of the two, NAME_FILE may stand in the place of NAME, and is read when NAME is looked up. Looking up raises
    SettingsInvalid where both are set, or the file cannot be read.
    """
    return _Variables(os.environ, {name: value for name, value in dotenv_values(".env").items() if value is not None})


class _Variables(Mapping[str, str]):
    """The first of several places that knows a name."""

    def __init__(self, *places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> str:
        for place in self._places:
            if path := place.get(name + FILE):
                return from_file(name, path, place.get(name))
            if name in place:
                return place[name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter({name: None for place in self._places for name in place})

    def __len__(self) -> int:
        return sum(1 for _ in self)


_SERVICE = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_LINK = re.compile(r"(tcp|udp|sctp)://")


def is_service_link(name: str, value: str | None) -> bool:
    """Whether Kubernetes, or Docker's old links, set this variable, in upper case, because of a service's name.

    A service called `streamspool` gives every container of its namespace STREAMSPOOL_PORT=tcp://10.0.0.7:8000, and one
    called `streamspool-worker-metrics` a name that is one of our settings (kubernetes.io, "Accessing the Service").
    """
    return bool(_SERVICE.fullmatch(name) or (name.endswith("_PORT") and value and _LINK.match(value)))


def from_file(name: str, path: str, value: str | None) -> str:
    """What NAME_FILE names, without the line break at its end. Raises SettingsInvalid, which does not show the path:
    an operator may have written the secret there."""
    if value:
        raise SettingsInvalid(f"{name} and {name}{FILE} are both set: keep one of them")
    try:
        with open(os.path.expanduser(path), "rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        text = content.decode("utf-8-sig").rstrip("\r\n")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a NUL
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsInvalid(f"{name}{FILE} names a file that cannot be read: {reason}") from None
    if not text or len(content) > _MAX_FILE_BYTES:
        raise SettingsInvalid(f"{name}{FILE} names a file that is {'too large' if text else 'empty'}")
    return text


def bucket_options(url: str) -> dict[str, str]:
    """What the variables of a bucket's provider say, by obstore's names for it. Raises SettingsInvalid."""
    variables = environment()
    names = BUCKET_VARIABLES.get(url.partition("://")[0], {})
    return {option: value for name, option in names.items() if (value := variables.get(name))}
