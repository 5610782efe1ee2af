"""Failures of Redis: what is said about each, which of them pass, and how long is waited."""

from __future__ import annotations

import builtins
import socket
import ssl

import pytest
import structlog
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

from shared.store import outage
from shared.store.outage import (
    Pauses,
    WrongServer,
    cause,
    error_word,
    is_passing,
    is_withheld,
    is_wrong_server,
    log_redis_error,
    reason,
    server_message,
    what_is_full,
    why_hopeless,
)

ANNOTATED = (
    'Command # 2 (XADD log o {{"canary": "of pipeline caused error: (MISCONF)"}}) of pipeline caused error: (\'{}\',)'
)


def raised(error: Exception, why: BaseException | None) -> Exception:
    """As redis-py does it: while the cause is handled, and without saying so."""
    try:
        try:
            if why is not None:
                raise why
        except type(why):  # type: ignore[misc]
            raise error  # noqa: B904
        raise error
    except type(error) as caught:
        return caught


def refused_certificate() -> ssl.SSLError:
    error = ssl.SSLCertVerificationError(1, "[SSL] certificate verify failed: Hostname mismatch (_ssl.c:1006)")
    error.verify_message = "Hostname mismatch, certificate is not valid for 'redis.example'."
    return error


def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] something (_ssl.c:1)")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("why", "says"),
    [
        (
            refused_certificate(),
            "certificate verify failed: Hostname mismatch, certificate is not valid for 'redis.example'",
        ),
        (tls("WRONG_VERSION_NUMBER"), "TLS: wrong version number (it speaks no TLS on that port)"),
        (tls("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "TLS: tlsv13 alert certificate required"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name not known"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "name cannot be looked up just now"),
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (ConnectionResetError(104, "Connection reset by peer"), "connection reset by peer"),
        (PermissionError(13, "Permission denied"), "permission denied"),
        (FileNotFoundError(2, "No such file or directory"), "no such socket"),
        (builtins.TimeoutError(), "no answer in time"),
        (AuthenticationError("WRONGPASS invalid"), "WRONGPASS invalid"),
    ],
)
def test_the_reason_of_a_failure_is_found_behind_it(why: BaseException, says: str) -> None:
    error = raised(ConnectionError("Error 1 connecting to h:1. Something."), why)
    assert reason(error) == says
    assert cause(error) == {"error": "ConnectionError", "reason": says}
    assert reason(raised(MasterNotFoundError("no master called m"), why)) == f"sentinels: {says}"


def test_what_has_no_reason_behind_it_speaks_for_itself() -> None:
    assert reason(ConnectionError("Connection closed by server.")) == "connection closed by server"
    assert reason(MasterNotFoundError("no master called m")) == "sentinels: no master called m"
    assert reason(TimeoutError("Timeout reading from h:1")) == "no answer in time"
    assert cause(KeyError("x")) == {"error": "KeyError"}


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), "MISCONF"),
        (WrongServer("MASTERDOWN Link with MASTER is down"), "MASTERDOWN"),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "OOM"),
        (ReadOnlyError("You can't write against a read only replica."), "READONLY"),
        (ResponseError("wrong number of arguments"), "wrong"),
        (ResponseError(ANNOTATED.format("NOREPLICAS Not enough good replicas to write.")), "NOREPLICAS"),
        (ConnectionError("MISCONF"), ""),
        (None, ""),
    ],
)
def test_the_word_of_a_refusal_is_the_servers(error: object, first: str) -> None:
    assert error_word(error) == first


def test_what_was_sent_is_never_said() -> None:
    error = ResponseError(ANNOTATED.format("OOM command not allowed"))
    assert server_message(error) == "OOM command not allowed"
    assert cause(error) == {"error": "ResponseError", "said": "OOM command not allowed"}
    assert len(server_message(ResponseError("x" * 1000))) == 120


def test_full_servers_are_told_apart() -> None:
    assert what_is_full(OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")) == "memory"
    assert what_is_full(ResponseError("MISCONF Errors writing to the AOF file: No space left on device")) == "disk"
    assert what_is_full(ResponseError(ANNOTATED.format("MISCONF Redis is configured to save"))) == "disk"
    assert what_is_full(ResponseError("ERR maxmemory")) is None
    assert what_is_full(ConnectionError("OOM")) is None


def test_what_passes_is_tried_again() -> None:
    for error in (
        ConnectionError(),
        TimeoutError(),
        OSError(),
        WrongServer("READONLY"),
        ResponseError("BUSY Redis is busy"),
    ):
        assert is_passing(error)
    assert is_passing(OutOfMemoryError("x"))
    assert not is_passing(ResponseError("WRONGTYPE Operation"))
    assert not is_passing(ValueError())
    assert is_wrong_server(WrongServer("UNBLOCKED force unblock"))
    assert not is_wrong_server(ResponseError("MISCONF"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (AuthenticationError("WRONGPASS invalid username-password pair"), "refuses the password or user: WRONGPASS"),
        (InvalidResponse('Protocol error, got "H" as reply type byte'), "does not speak Redis's protocol"),
        (raised(ConnectionError("x"), UnicodeError("label empty or too long")), "has no host name"),
        (raised(ConnectionError("x"), refused_certificate()), "cannot be used: certificate verify failed"),
        (raised(ConnectionError("x"), tls("TLSV1_ALERT_PROTOCOL_VERSION")), "cannot be used: TLS: tlsv1 alert"),
        (ResponseError("DB index is out of range"), "cannot be used: DB index is out of range"),
        (ResponseError("DENIED Redis is running in protected mode"), "cannot be used: DENIED"),
        (
            raised(MasterNotFoundError("m"), AuthenticationError("NOAUTH")),
            "has sentinels, one of which refuses the password",
        ),
    ],
)
def test_faults_that_cannot_heal(error: Exception, says: str) -> None:
    assert why_hopeless(error).startswith(says)


@pytest.mark.parametrize(
    "error",
    [
        raised(ConnectionError("x"), ConnectionRefusedError(111, "Connection refused")),
        raised(ConnectionError("x"), socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
        raised(ConnectionError("x"), FileNotFoundError(2, "No such file")),
        raised(ConnectionError("x"), ssl.SSLEOFError(8, "EOF occurred in violation of protocol")),
        TimeoutError("Timeout connecting to server"),
        WrongServer("LOADING Redis is loading"),
        WrongServer("MASTERDOWN Link with MASTER is down"),
        ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        ResponseError("BUSY Redis is busy running a script."),
        ConnectionError("max number of clients reached"),
        NoPermissionError("this user has no permissions to run the 'ping' command"),
        MasterNotFoundError("no master called m"),
    ],
)
def test_faults_that_may_heal(error: Exception) -> None:
    assert why_hopeless(error) == ""


@pytest.mark.parametrize(
    ("error", "withheld"),
    [
        (NoPermissionError("this user has no permissions to run the 'xadd' command"), True),
        (ResponseError("unknown command 'CONFIG', with args beginning with: "), True),
        (ResponseError("ERR unknown command 'DEBUG', with args beginning with: "), True),
        (
            ResponseError("ACL failure in script: User ann has no permissions to run the 'xadd' command script: on"),
            True,
        ),
        (ResponseError("The user executing the script can't run this command or subcommand script: 1, on"), True),
        (ResponseError("ERR The user executing the script can't access at least one of the keys mentioned"), True),
        (ResponseError(ANNOTATED.format("ACL failure in script: No permissions to access a key")), True),
        (ResponseError("The ID specified in XADD is equal or smaller"), False),
        (ResponseError("OOM command not allowed"), False),
        (WrongServer("READONLY You can't write against a read only replica."), False),
        (ConnectionError("unknown command"), False),
    ],
)
def test_a_command_that_is_not_to_be_had_is_known_however_it_is_said(error: Exception, withheld: bool) -> None:
    assert is_withheld(error) == withheld


def test_pauses_grow_to_a_limit_and_are_never_the_same() -> None:
    pauses = Pauses(0.25, 3.0)
    waited = [pauses.next_s() for _ in range(20)]
    for pause, middle in zip(waited, [0.25, 0.5, 1, 2, *[3] * 16], strict=True):
        assert 0.75 * middle <= pause <= 1.25 * middle
    assert len(set(waited)) > 10
    pauses.reset()
    assert pauses.next_s() < 0.32


def test_an_outage_is_told_with_its_reason_and_once_in_a_while() -> None:
    outage._logged_at.clear()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            log_redis_error(
                "part", raised(ConnectionError("x"), ConnectionRefusedError(111, "Connection refused")), batch_id="b"
            )
        log_redis_error("another", ResponseError(ANNOTATED.format("MISCONF Errors writing to the AOF file")))
    assert [(log["event"], log["part"], log.get("reason"), log.get("said")) for log in logs] == [
        ("redis failed", "part", "connection refused", None),
        ("redis failed", "another", None, "MISCONF Errors writing to the AOF file"),
    ]
    assert logs[0]["batch_id"] == "b"
    assert "canary" not in str(logs)
