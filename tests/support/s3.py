"""A real S3 API on loopback: moto's server, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import boto3
import httpx

from tests.harness.processes import free_port, wait_until

BUCKET = "spooled"


class S3:
    """A context manager. `environment` is what a client of it needs, `url` what STREAMSPOOL_FILES_URL is set to."""

    def __init__(self, directory: Path, *, address: str = "127.0.0.1", within: Sequence[str] = ()) -> None:
        """`address` and `within` are of the host that it is on, as those of a Stack."""
        self._directory = directory
        self._address, self._within = address, within
        self._port = free_port()
        self.url = f"s3://{BUCKET}/here"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{address}:{self._port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def __enter__(self) -> Self:
        command = [*self._within, sys.executable, "-m", "moto.server", "-H", self._address, "-p", str(self._port)]
        with (self._directory / "s3.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self._answers, 90, "moto's server is ready")
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        self._client.create_bucket(Bucket=BUCKET)
        return self

    @contextmanager
    def away(self) -> Iterator[None]:
        """It hangs, as a storage behind a network that is gone: what it has is there again afterwards."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, "moto's server ended"
        try:
            return httpx.get(self.environment["AWS_ENDPOINT_URL"], trust_env=False, timeout=60).status_code < 500
        except httpx.TransportError:
            return False

    def names(self) -> set[str]:
        """Of all objects, without the prefix; but for the one by which an installation says that it stores here."""
        found = self._client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        names = {one["Key"].removeprefix("here/") for one in found}
        return {name for name in names if not name.startswith("blobs-users/")}

    def unfinished(self) -> list[str]:
        """Uploads that were begun and neither ended nor called off."""
        return [one["Key"] for one in self._client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]
