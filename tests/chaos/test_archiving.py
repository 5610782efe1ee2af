"""F85: processes that make objects of ended logs are killed, at each of their steps and in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.chaos.archiving import STEPS, archive_and_die
from tests.harness.upstream import ScriptedUpstream


@pytest.mark.timeout(600)
def test_f85_an_archiver_that_is_killed_at_any_step_loses_nothing_and_leaves_nothing(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    kills = len(STEPS) * 3 // 2
    found = archive_and_die(valkey, upstream, tmp_path, kills=kills, logs=8)
    assert all(found["died"].values()), found["died"]
    assert found["answers"] >= kills * 8
    assert found["objects"] == found["answers"]
    for wrong in ("not_whole", "twice", "left_over", "missing"):
        assert not found[wrong], (wrong, found)
