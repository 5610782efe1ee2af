"""What a REDIS_URL means, and that one which means something else is refused without being quoted."""

from __future__ import annotations

import pytest

from shared.config.environ import SettingsInvalid
from shared.config.redis_url import Address, Tls, parse, without_password
from shared.config.settings import load_settings


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://", Address()),
        ("redis://example.org", Address(host="example.org")),
        ("redis://example.org:6380/2", Address(host="example.org", port=6380, database=2)),
        ("redis://example.org/2/", Address(host="example.org", database=2)),
        ("redis://example.org?db=3", Address(host="example.org", database=3)),
        ("redis://:p%40ss%2F+w@h:1/0", Address(host="h", port=1, password="p@ss/+w")),
        ("redis://:c\u2100@h", Address(host="h", password="c\u2100")),
        ("redis://us%3Aer:pw:with:colons@h", Address(host="h", username="us:er", password="pw:with:colons")),
        ("redis://user@h", Address(host="h", username="user")),
        ("redis://h?username=u&password=a+b%2B", Address(host="h", username="u", password="a+b+")),
        ("redis://[::1]:6380", Address(host="::1", port=6380)),
        ("redis://[fe80::1%25eth0]", Address(host="fe80::1%eth0")),
        ("REDIS://h", Address(host="h")),
        ("  redis://h\n", Address(host="h")),
        ("redis://h?client_name=streamspool", Address(host="h", client_name="streamspool")),
        ("unix:///tmp/valkey.sock?db=4", Address(path="/tmp/valkey.sock", database=4)),
        ("unix://u:p@/tmp/a%20b.sock", Address(path="/tmp/a b.sock", username="u", password="p")),
        ("rediss://h", Address(host="h", tls=Tls())),
        ("rediss://h?ssl_cert_reqs=required", Address(host="h", tls=Tls())),
        ("rediss://h?ssl_cert_reqs=CERT_REQUIRED", Address(host="h", tls=Tls())),
        ("rediss://h?ssl_cert_reqs=optional", Address(host="h", tls=Tls())),
        ("rediss://h?ssl_cert_reqs=none", Address(host="h", tls=Tls(False, False))),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", Address(host="h", tls=Tls(False, False))),
        ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=False", Address(host="h", tls=Tls(False, False))),
        ("rediss://h?ssl_check_hostname=false", Address(host="h", tls=Tls(True, False))),
        ("rediss://h?ssl_ca_certs=/a%20b.pem", Address(host="h", tls=Tls(ca_certs="/a b.pem"))),
        (
            "rediss://h?ssl_certfile=c&ssl_keyfile=k&ssl_ciphers=x&ssl_ca_data=d",
            Address(host="h", tls=Tls(certfile="c", keyfile="k", ciphers="x", ca_data="d")),
        ),
        ("redis+cluster://a:1,[::1]:2,c", Address(nodes=(("a", 1), ("::1", 2), ("c", 6379)))),
        ("redis+cluster://u:p%40@a/0", Address(nodes=(("a", 6379),), username="u", password="p@")),
        ("rediss+cluster://a:1", Address(nodes=(("a", 1),), tls=Tls())),
        ("redis+sentinel://s", Address(sentinels=(("s", 26379),))),
        (
            "redis+sentinel://:p%40ss@s1:1,[::1]:2,s3/main/4",
            Address(sentinels=(("s1", 1), ("::1", 2), ("s3", 26379)), master="main", database=4, password="p@ss"),
        ),
        (
            "redis+sentinel://u:p@s:1/main?sentinel_password=s%26w&sentinel_username=su&db=2",
            Address(
                sentinels=(("s", 1),),
                master="main",
                database=2,
                username="u",
                password="p",
                sentinel_username="su",
                sentinel_password="s&w",
            ),
        ),
        (
            "rediss+sentinel://s:1/main/0?ssl_check_hostname=no",
            Address(sentinels=(("s", 1),), master="main", tls=Tls(True, False)),
        ),
    ],
)
def test_what_a_url_means(url: str, address: Address) -> None:
    assert parse(url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("canary", "must begin with"),
        ("http://canary", "must begin with"),
        ("redis:/canary", "must begin with"),
        ("redis://:canary#more@h:1/0", "%23"),
        ("redis://:canary/more@h:1/0", "%2F"),
        ("redis://:canary?more@h:1/0", "means nothing here"),
        ("redis://h:canary", "port"),
        ("redis://h:0", "port"),
        ("redis://h:65536", "port"),
        ("redis://[::1", "host"),
        ("redis://a b", "host"),
        ("redis://h/canary", "database"),
        ("redis://h/-1", "database"),
        ("redis://h/0/1", "database"),
        ("redis://h?db=canary", "database"),
        ("redis://h1:1,h2:2/0", "redis+sentinel://"),
        ("unix://canary", "path"),
        ("unix://h/path", "path"),
        ("unix:///", "path"),
        ("redis+cluster://a:1/3", "one database"),
        ("redis+cluster://a:1?db=3", "one database"),
        ("redis+cluster://a:1?sentinel_password=canary", "means nothing here"),
        ("redis+sentinel://s:canary/x", "port"),
        ("redis+sentinel://s:1/x/canary", "database"),
        ("redis+sentinel://s:1/x/0/1", "/MASTER/0"),
        ("redis+sentinel://s:1/x/0?db=1", "/MASTER/0"),
        ("redis://h?sentinel_password=canary", "means nothing here"),
        ("redis://h?canary=1", "means nothing here"),
        ("redis://h?db=1&db=2", "twice"),
        ("redis://h?ssl_cert_reqs=none", "rediss://"),
        ("rediss://h?ssl_cert_reqs=canary", "CERT_NONE"),
        ("rediss://h?ssl_check_hostname=canary", "`true` or `false`"),
        ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=true", "says nothing"),
        ("rediss://h?ssl_keyfile=canary", "ssl_certfile"),
    ],
)
def test_what_a_url_cannot_mean_is_refused_and_not_quoted(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- its text is looked at
        parse(url)
    assert says in str(refused.value)
    if "canary=" not in url:  # the name of an option is no secret
        assert "canary" not in str(refused.value)
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(SettingsInvalid, match="^REDIS_URL: ") as invalid:
        load_settings()
    assert len(str(invalid.value).splitlines()) == 1


@pytest.mark.parametrize(
    "option",
    [
        "socket_timeout=0.05",
        "max_connections=1",
        "decode_responses=True",
        "retry_on_timeout=true",
        "protocol=3",
        "timeout=1",
    ],
)
def test_what_streamspool_relies_on_cannot_be_undone(option: str) -> None:
    for url in (f"redis://h?{option}", f"rediss://h?ssl_cert_reqs=none&{option}", f"unix:///s?{option}"):
        with pytest.raises(ValueError, match=f"`{option.partition('=')[0]}` cannot be set here"):
            parse(url)


def test_urls_are_shown_without_secrets() -> None:
    assert without_password("redis://user:p%40ss@host:1/0?x=y") == "redis://host:1/0"
    assert without_password("unix:///tmp/valkey.sock?db=0") == "unix:///tmp/valkey.sock"
    assert without_password(" redis+sentinel://:p@s:1,s:2/m/0?sentinel_password=x") == "redis+sentinel://s:1,s:2/m/0"
