"""A log's JSON objects with only the fields that a test is about.

The product reads what it needs of a record, and the types of `shared.log.records` name all of it. What a test leaves out
is missing in Redis, too, as it may be in a log that another version wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from shared.errors import StoredError
from shared.log.records import Attempt, Header, Outcome


def header_with(fields: Mapping[str, Any] | None = None, /, **more: Any) -> Header:
    return cast(Header, {**(fields or {}), **more})


def attempt_with(fields: Mapping[str, Any] | None = None, /, **more: Any) -> Attempt:
    return cast(Attempt, {**(fields or {}), **more})


def outcome_with(fields: Mapping[str, Any] | None = None, /, **more: Any) -> Outcome:
    return cast(Outcome, {**(fields or {}), **more})


def error_with(fields: Mapping[str, Any] | None = None, /, **more: Any) -> StoredError:
    return cast(StoredError, {**(fields or {}), **more})


def error_in(outcome: Outcome | None) -> StoredError:
    """The error with which a generation ended; fails if it has none."""
    assert outcome is not None, "there is no end"
    assert outcome["error"] is not None, outcome
    return outcome["error"]
