"""What is in deploy/ for systemd: that it names what there is, and waits as long as it has to."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.config.settings import Settings, variable
from shared.lib.process import WRONG_SETTINGS
from tests.harness.processes import ROOT
from worker.providers.registry import VENDORS

DEPLOY = ROOT / "deploy"
NAMES = {variable(name) for name in Settings.model_fields} | {name for one in VENDORS for name in one.key_variables}
DRAIN_S = Settings.model_fields["drain_s"].default
UNITS = sorted((DEPLOY / "systemd").iterdir())
SERVICES = [path for path in UNITS if path.suffix == ".service"]


def unit(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Sections as lists: a key may come twice."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in path.read_text().splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = found.setdefault(match[1], [])
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            section.append((name, value))
    return found


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_unit_stops_gently_and_does_not_restart_what_cannot_work(path: Path) -> None:
    service = dict(unit(path)["Service"])
    assert float(service["TimeoutStopSec"]) > DRAIN_S
    assert int(service["RestartPreventExitStatus"]) == WRONG_SETTINGS
    end, *options = service["ExecStart"].split()[1:]
    assert end in ("api", "worker")
    # Its supervisor tells them; a process that hears it from systemd as well would end at once.
    assert (service.get("KillMode") == "mixed", service.get("ExecReload") == "/bin/kill -HUP $MAINPID") == (
        "--apis" in options,
        "--apis" in options,
    )
    for pair in " ".join(value for name, value in unit(path)["Service"] if name == "Environment").split():
        assert pair.partition("=")[0] in NAMES


def test_the_socket_is_that_of_the_api_and_of_this_machine() -> None:
    """A socket of systemd is handed to the service of the same name."""
    (path,) = [path for path in UNITS if path.suffix == ".socket"]
    assert path.with_suffix(".service") in SERVICES
    assert dict(unit(path)["Socket"])["ListenStream"] == f"127.0.0.1:{Settings.model_fields['port'].default}"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_it(path: Path, tmp_path: Path) -> None:
    if (program := shutil.which("systemd-analyze")) is None:
        pytest.skip("no systemd-analyze here")
    for one in UNITS:  # they name each other
        text = one.read_text().replace("/opt/streamspool/bin/streamspool", "/bin/true")
        (tmp_path / one.name.replace("@.", "@1.")).write_text(text)
    name = path.name.replace("@.", "@1.")
    copy = tmp_path / name
    done = subprocess.run([program, "verify", str(copy)], capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in done.stderr.splitlines() if name in line] == []
