"""A Postgres of the tests' own, from the distribution's package, on loopback.

Hidden here: where Debian puts its programs, and that they refuse to be run by root: its user `postgres` runs them then.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.processes import free_port


def programs() -> Path | None:
    """Where `initdb` and `postgres` are; None: not installed."""
    found = [one.parent for one in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if not found and (initdb := shutil.which("initdb")):
        found = [Path(initdb).resolve().parent]
    return found[-1] if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database."""
    bin_dir = programs()
    assert bin_dir is not None
    user = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        if user:
            found = pwd.getpwnam(user)
            os.chown(directory, found.pw_uid, found.pw_gid)
        data = f"{directory}/data"
        log = f"{directory}/log"

        def run(*argv: str) -> None:
            done = subprocess.run(
                argv, user=user, extra_groups=[] if user else None, cwd=directory, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr

        run(f"{bin_dir}/initdb", "-D", data, "-A", "trust", "-U", "tests", "-E", "UTF8", "--no-sync", "--locale=C")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        run(f"{bin_dir}/pg_ctl", "-D", data, "-l", log, "-w", "-t", "120", "-o", options, "start")
        try:
            yield f"postgresql://tests@127.0.0.1:{port}/postgres"
        finally:
            run(f"{bin_dir}/pg_ctl", "-D", data, "-w", "-t", "120", "-m", "immediate", "stop")
