"""Pauses of a loop whose thread is busy, and none of one that is not."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from shared.lib import busy
from shared.lib.busy import BusyPauses, wanted_s


class Thread:
    """One that is as busy as it is told to be."""

    def __init__(self) -> None:
        self.now = self.used = 100.0
        self.pauses = BusyPauses(0.008, clock=lambda: self.now, wanted=lambda: self.used)

    def spend(self, seconds: float, share: float) -> list[float]:
        """What it is told each millisecond meanwhile."""
        told = []
        for _ in range(round(seconds * 1000)):
            self.now += 0.001
            self.used += 0.001 * share
            told.append(self.pauses.next_s())
        return told


def test_there_is_no_pause_while_there_is_time_left() -> None:
    assert set(Thread().spend(1, 0.59)) == {0}


def test_the_busier_the_longer() -> None:
    last = [Thread().spend(0.2, share)[-1] for share in (0.65, 0.7, 0.75, 0.8, 1.0)]
    assert last == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.008])


def test_it_is_never_longer_than_it_may_be() -> None:
    """Two clocks are read one after the other, and one counts in coarser steps."""
    assert max(Thread().spend(0.2, 1.3)) == 0.008


def test_what_was_long_ago_does_not_count() -> None:
    thread = Thread()
    assert thread.spend(1, 1.0)[-1] == 0.008
    assert thread.spend(0.1, 0.1)[-1] == 0
    thread.spend(1, 1.0)
    thread.now += 10
    assert thread.pauses.next_s() == 0


def test_a_burst_after_a_rest_is_noticed_within_a_tenth_of_a_second() -> None:
    thread = Thread()
    thread.now += 10
    told = thread.spend(0.2, 1.0)
    assert told[0] == 0
    assert set(told[100:]) == {0.008}


@pytest.mark.parametrize("told", ["what Linux tells", "nothing", "0 0 0\n", "gone"])
def test_work_is_counted_with_and_without_linux(told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_of_thread", threading.local())
    if told != "what Linux tells":
        path = tmp_path / "schedstat"
        monkeypatch.setattr(busy, "_SCHEDULED", str(path))
        if told != "gone":
            path.write_text(told)
    before = wanted_s()
    until = time.monotonic() + 60
    while wanted_s() < before + 0.05:
        assert time.monotonic() < until


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such file elsewhere")
def test_a_thread_counts_its_own_work_and_leaves_no_file_open() -> None:
    wanted_s()
    before = len(os.listdir("/proc/self/fd"))
    told: list[float] = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: told.append(wanted_s()))
        thread.start()
        thread.join()
    assert max(told) < wanted_s()
    assert len(os.listdir("/proc/self/fd")) == before
