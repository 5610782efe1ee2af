"""The bench runs: tiny loads, a few seconds. No speed is asserted, only that there is a figure, and that nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.bench import load
from tests.bench.load import ROOT, Upstream, Viewers, find_compiler
from tests.bench.machine import CannotMeasure, Cores
from tests.bench.targets import Ours

pytestmark = [
    pytest.mark.timeout(700),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the bench needs Linux"),
    pytest.mark.skipif(not find_compiler(), reason="the bench needs a C compiler: cc, gcc or clang"),
]


def bench(*words: str, module: str = "tests.bench") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=600)


def test_a_quick_run_measures_each_group_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = bench("--quick", "--only", "G5,G8,G12,G14,stored", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found["failures"] == []
    measured = {name for name, targets in found["results"].items() if "ours" in targets}
    assert measured == {"streams-50", "fan-1000", "replay", "pickup", "stored", "all"}
    everything = found["results"]["all"]["ours"]
    assert everything["faults"] == 0
    assert everything["streams"] > 20
    parts = {"cpu_api_us", "cpu_worker_us", "cpu_valkey_us"}
    ours, ceiling = found["results"]["streams-50"]["ours"], found["results"]["fan-1000"]["ceiling"]
    assert all(ours[part] > 0 for part in parts)
    assert ceiling["per_core_second"] > 0
    assert "G5" in done.stdout
    assert "these figures mean nothing" in done.stdout


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="parts have cores of their own where there are two")
def test_a_part_runs_on_the_core_that_is_its_own(tmp_path: Path) -> None:
    cores = Cores.choose_apart()
    with Upstream(cores.load) as upstream, Ours(cores, upstream, tmp_path) as ours:
        for _ in range(2):
            for name, pid in ours.parts.items():
                threads = {frozenset(os.sched_getaffinity(int(one))) for one in os.listdir(f"/proc/{pid}/task")}
                assert threads == {frozenset({cores.own.get(name, cores.server)})}, name
            ours.restart_api()


def test_a_goal_that_does_not_exist_is_refused() -> None:
    done = bench("--only", "G99")
    assert done.returncode == 2
    assert "no such goal" in done.stderr


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no repository")
def test_this_build_is_measured_beside_a_revision_that_is_set_up_for_it(tmp_path: Path) -> None:
    path, folder = tmp_path / "figures.json", tmp_path / "revisions"
    words = [
        "HEAD",
        "--quick",
        "--only",
        "idle,first,flood",
        "--reps",
        "2",
        "--folder",
        str(folder),
        "--json",
        str(path),
    ]
    done = bench(*words, module="tests.bench.against")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found["failures"] == []
    assert len(found["rounds"]) == 2
    for one in found["rounds"]:
        for target in ("before", "ours"):
            assert one["flood"][target]["chunks_per_s"] > 0
            assert one["idle"][target]["ends_mb"] > 0
            assert one["all"][target]["streams"] > 10
            assert one["all"][target]["faults"] == 0
    assert [row[0] for row in found["table"][1:]] == [
        "added time to first token, one stream, p50, ms",
        "chunks a second, 8 unthrottled streams, /s",
        "memory of API and worker without work, MB",
        "gaps, repetitions and missing ends in all of it",
    ]
    (tree,) = folder.iterdir()
    assert (tree / "worker/__main__.py").exists()
    assert found["revisions"]["before"] == tree.name[:7]
    assert "these figures mean nothing" in done.stdout


def test_a_revision_that_does_not_exist_is_refused() -> None:
    done = bench("no-such-revision", module="tests.bench.against")
    assert done.returncode == 2
    assert "no revision no-such-revision" in done.stderr


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "WORK", tmp_path)
    monkeypatch.setattr(load, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(CannotMeasure, match="apt install gcc"):
        load.tool("viewers")


def test_the_load_counts_what_is_missing_repeated_and_endless(tmp_path: Path) -> None:
    """Against answers that are known to be wrong, so that zero faults mean something."""
    bodies = {
        "/whole": (b"~0:1~", b"~1:1~", b"~2:1~", b"[DO", b"NE]"),
        "/gap": (b"~0:1~", b"~2:1~", b"[DONE]"),
        "/repeated": (b"~0:1~", b"~1:1~", b"~1:1~", b"~2:1~", b"[DONE]"),
        "/split": (b"~0:", b"1~~1", b":1~~2:1~ [DONE", b"]"),
        "/no-done": (b"~0:1~", b"~1:1~", b"~2:1~"),
        "/cut": (b"~0:1~", b"~1:1~", b"~2:1~", b"[DONE]", b""),
        "/short": (b"~0:1~", b"[DONE]"),
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path not in bodies:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for piece in filter(None, bodies[self.path]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if bodies[self.path][-1]:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True
            return None

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        found = {}
        for path in (*bodies, "/refused"):
            seen = Viewers(0, f"http://127.0.0.1:{server.server_port}{path}", chunks=3, timeout_s=60).result()
            found[path] = (seen.complete, seen.gaps, seen.repeated, seen.missing_ends, seen.refused)
        server.shutdown()
    assert found == {
        "/whole": (1, 0, 0, 0, 0),
        "/gap": (0, 1, 0, 1, 0),
        "/repeated": (0, 0, 1, 1, 0),
        "/split": (1, 0, 0, 0, 0),
        "/no-done": (0, 0, 0, 1, 0),
        "/cut": (0, 0, 0, 1, 0),
        "/short": (0, 0, 0, 1, 0),
        "/refused": (0, 0, 0, 0, 1),
    }


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_the_targets_of_make_are_there() -> None:
    for words, command in (
        (["bench"], "-m tests.bench --quick"),
        (["bench-peers"], "-m tests.bench.compare --quick"),
        (["bench-against", "REV=HEAD~1"], "-m tests.bench.against HEAD~1 --quick"),
    ):
        shown = subprocess.run(
            ["make", "-n", *words, "ARGS=--quick"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        assert command in shown
    without = subprocess.run(["make", "bench-against"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert without.returncode
    assert "REV=" in without.stderr
