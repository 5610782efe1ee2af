"""The soak in its shortest form: does everything hold when everything breaks, one after the other?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MINUTES = os.environ.get("SOAK_MINUTES", "0.7")


@pytest.mark.timeout(600)
def test_f46_random_faults_for_a_while(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos.soak", "--minutes", MINUTES, "--every", "6", "--in-flight", "15"]
    soak = subprocess.Popen(
        [*command, "--keep", str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, said = soak.communicate(timeout=570)
    finally:
        soak.terminate()
        soak.wait(60)
    assert soak.returncode == 0, f"{said}\n{printed}"
    verdict = json.loads(printed)
    assert verdict["ok"]
    assert verdict["counts"]["generations"] > 20
    assert verdict["counts"]["objects"] > 20
    assert verdict["counts"]["read again as objects"] > 0
    assert sum(verdict["faults"].values()) >= 3
