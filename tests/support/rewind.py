"""A Valkey that can be started again from what it knew before: the plainest way to have acknowledged writes forgotten."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Self

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import kill_valkey
from tests.harness.store import open_store, sync


class Rewindable:
    """A context manager. `remember` keeps what there is on disk; `rewind` kills the server and starts it from that."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept = directory.with_name(f"{directory.name}-kept")
        self.valkey = EmbeddedValkey(directory)

    def __enter__(self) -> Self:
        self.valkey.__enter__()
        self.client = open_store(self.valkey.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.valkey.stop()

    @property
    def url(self) -> str:
        return self.valkey.url

    def remember(self) -> None:
        sync(self.client)
        shutil.rmtree(self._kept, ignore_errors=True)
        shutil.copytree(self._directory / "appendonlydir", self._kept)

    def rewind(self) -> None:
        kill_valkey(self.valkey)
        shutil.rmtree(self._directory / "appendonlydir")
        shutil.copytree(self._kept, self._directory / "appendonlydir")
        self.valkey.launch()
        self.valkey.wait_ready()
