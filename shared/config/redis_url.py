"""What REDIS_URL means: server, cluster or sentinels, who asks, and how TLS is checked. Pure, but for the certificates it
names.

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE][?OPTION=VALUE&…]         rediss:// with TLS
    unix://[[USER]:PASSWORD@]/PATH[?db=DATABASE&…]
    redis+cluster://[[USER]:PASSWORD@]HOST:PORT[,HOST:PORT…][?…]                          rediss+cluster:// with TLS
    redis+sentinel://[[USER]:PASSWORD@]HOST:PORT[,HOST:PORT…][/MASTER[/DATABASE]][?…]     rediss+sentinel:// with TLS

Hidden here: which options there are. A URL is refused for what it does not mean, since it would be found out much later, as
a server that seems to be away: unknown options, those that would undo what Streamspool relies on (time-outs, the size of
the pool, the protocol), and characters that must be percent-encoded in a password. No refusal quotes the URL: a password
may be anywhere in it.

The schemes redis and rediss are registered with IANA (iana.org/assignments/uri-schemes/prov/redis); the options are those
of redis-py and of Celery (docs.celeryq.dev, "Using Redis"), which hosters' pages tell people to add.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from shared.errors import Unusable

PORT, SENTINEL_PORT = 6379, 26379
DEFAULT_MASTER = "mymaster"

_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_REQUIRED = {"none": False, "optional": True, "required": True}
"""`ssl_cert_reqs`, also as `CERT_NONE` and so on. For a client, `optional` checks as `required` does (docs.python.org/3/
library/ssl.html#ssl.CERT_OPTIONAL)."""
_TRUTH = dict.fromkeys(("true", "yes", "1"), True) | dict.fromkeys(("false", "no", "0"), False)
_OF_ALL = ("db", "username", "password", "client_name")
_OF_TLS = (
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_ciphers",
)
_OF_SENTINELS = ("sentinel_username", "sentinel_password")
_OURS = frozenset(
    {
        "decode_responses",
        "encoding",
        "encoding_errors",
        "health_check_interval",
        "max_connections",
        "protocol",
        "retry",
        "retry_on_error",
        "retry_on_timeout",
        "single_connection_client",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_read_size",
        "socket_timeout",
        "timeout",
    }
)
_NO_HOST = "Where a host and its port should be is something else, or a port that is none."
_ENCODE = (
    "In user and password, `/`, `?`, `#`, `@`, `:` and `%` are written as `%2F`, `%3F`, `%23`, `%40`, `%3A` and `%25`"
)


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server's certificate is checked, and which one we have."""

    check_certificate: bool = True
    check_hostname: bool = True
    ca_certs: str | None = None
    ca_data: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    ciphers: str | None = None

    def context(self) -> ssl.SSLContext:
        """For all connections of a process: it reads every authority's certificate, which takes some 30 ms.

        Public authorities, or those that SSL_CERT_FILE names, are trusted beside the one given. Raises Unusable for files
        that cannot be read, or are none.
        """
        try:
            context = ssl.create_default_context()
            context.check_hostname = self.check_hostname
            context.verify_mode = ssl.CERT_REQUIRED if self.check_certificate else ssl.CERT_NONE
            if self.ca_certs or self.ca_data:
                context.load_verify_locations(cafile=self.ca_certs, cadata=self.ca_data)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile)
            if self.ciphers:
                context.set_ciphers(self.ciphers)
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or "not in PEM"
            raise Unusable(
                f"REDIS_URL names certificates, a key or ciphers (ssl_…) that cannot be used: {str(why).lower()}."
            ) from None
        return context


@dataclass(frozen=True, slots=True)
class Address:
    """A URL taken apart. There is a `path` for a unix socket, `sentinels` where these are asked for the master, else
    `host` and `port`."""

    host: str = "localhost"
    port: int = PORT
    path: str | None = None
    nodes: tuple[tuple[str, int], ...] = ()
    """Of a cluster, those that are asked first."""
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = DEFAULT_MASTER
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    database: int = 0
    username: str | None = None
    password: str | None = None
    client_name: str | None = None
    tls: Tls | None = None


def parse(url: str) -> Address:
    """Raises ValueError that says, as sentences, what cannot be meant, and nothing of the URL that might be secret."""
    url = url.strip()
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"It must begin with {', '.join(f'{known}://' for known in _SCHEMES)}.")
    if "#" in url:
        raise ValueError(f"It has no part after a `#`. {_ENCODE}.")
    # Not urlsplit: whether it takes `s1,[::1]:2,s3` for hosts depends on the patch release of Python.
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    path = slash + path
    user_info, _, hosts = authority.rpartition("@")
    options = _options(query, scheme)
    user, _, password = user_info.partition(":")
    login: dict[str, Any] = {
        "username": options.pop("username", unquote(user)) or None,
        "password": options.pop("password", unquote(password)) or None,
        "client_name": options.pop("client_name", None),
    }
    tls = _tls(options) if scheme.startswith("rediss") else None
    if scheme == "unix":
        if hosts or len(path) < 2:
            raise ValueError("After unix:// comes the path of a socket, which begins with a slash.")
        return Address(path=unquote(path), database=_database(options.get("db", "")), **login)
    if scheme.endswith("+cluster"):
        if _database(options.get("db", path.strip("/"))):
            raise ValueError("A cluster has one database: leave its number out.")
        nodes = tuple(_host_port(host, PORT) for host in hosts.split(","))
        return Address(nodes=nodes, tls=tls, **login)
    if scheme.endswith("+sentinel"):
        return _of_sentinels(path, hosts, options, login, tls)
    if "," in hosts:
        raise ValueError(
            "One server has one HOST:PORT. Sentinels are given as redis+sentinel://HOST:PORT,HOST:PORT/MASTER/0, a cluster as "
            "redis+cluster://HOST:PORT,HOST:PORT."
        )
    host, port = _host_port(hosts, PORT)
    path = path.removeprefix("/").removesuffix("/")
    return Address(host=host, port=port, database=_database(options.get("db", unquote(path))), tls=tls, **login)


def without_password(url: str) -> str:
    """The URL for people to read: user info and query left out."""
    scheme, separator, rest = url.strip().partition("://")
    return scheme + separator + rest.rpartition("@")[2].partition("?")[0]


def _of_sentinels(path: str, hosts: str, options: dict[str, str], login: dict[str, Any], tls: Tls | None) -> Address:
    master, *database = [unquote(step) for step in path.strip("/").split("/")]
    if len(database) > 1 or ("db" in options and database):
        raise ValueError("After the sentinels come the master's name and the database: /MASTER/0.")
    return Address(
        sentinels=tuple(_host_port(host, SENTINEL_PORT) for host in hosts.split(",")),
        master=master or DEFAULT_MASTER,
        database=_database(options.get("db", database[0] if database else "")),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
        tls=tls,
        **login,
    )


def _options(query: str, scheme: str) -> dict[str, str]:
    known = list(_OF_ALL)
    if scheme.startswith("rediss"):
        known += _OF_TLS
    if scheme.endswith("+sentinel"):
        known += _OF_SENTINELS
    found: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        name = unquote(name)
        if name in _OURS:
            raise ValueError(
                f"`{name}` cannot be set here: what is right for Streamspool is set already. Leave it out."
            )
        if name in _OF_TLS and name not in known:
            raise ValueError(f"`{name}` is for TLS: begin with rediss:// instead of redis://, or leave it out.")
        if name not in known:
            shown = name if re.fullmatch(r"[a-z_]{1,40}", name) else "an option"
            raise ValueError(f"`{shown}` means nothing here. Options are {', '.join(f'`{one}`' for one in known)}.")
        if name in found:
            raise ValueError(f"`{name}` is given twice.")
        found[name] = unquote(value)  # a plus stays one: passwords are not forms
    return found


def _tls(options: dict[str, str]) -> Tls:
    wanted = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if wanted not in _REQUIRED:
        raise ValueError("`ssl_cert_reqs` is `required` or `none` (or `CERT_REQUIRED`, `CERT_NONE`).")
    check_name = options.get("ssl_check_hostname", "true" if _REQUIRED[wanted] else "false").lower()
    if check_name not in _TRUTH:
        raise ValueError("`ssl_check_hostname` is `true` or `false`.")
    if _TRUTH[check_name] and not _REQUIRED[wanted]:
        raise ValueError("The name of a certificate that is not checked says nothing: leave one of the two ssl_… out.")
    if options.get("ssl_keyfile") and not options.get("ssl_certfile"):
        raise ValueError("`ssl_keyfile` needs `ssl_certfile`, the certificate that the key is of.")
    given = {
        name: options.get(f"ssl_{name}") or None for name in ("ca_certs", "ca_data", "certfile", "keyfile", "ciphers")
    }
    return Tls(_REQUIRED[wanted], _TRUTH[check_name], **given)


def _host_port(text: str, default_port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.%a-z]+)\]|(?P<host>[^\[\]:,@/\s]*))(?::(?P<port>\d{1,5}))?", text)
    port = int(found["port"] or default_port) if found else 0
    if found is None or not 0 < port < 65536:
        raise ValueError(f"{_NO_HOST} {_ENCODE}.")
    return unquote(found["six"] or found["host"] or "localhost"), port


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"The database must be a number. {_ENCODE}.")
    return int(text or 0)
