"""Where files are kept, in the tests of whatever keeps some: a directory, and a bucket behind a real S3 API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.features.storage import Storage
from tests.support.s3 import S3


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "directory":
        return Storage(tmp_path.as_uri())
    s3: S3 = request.getfixturevalue("s3")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return Storage(s3.url)
