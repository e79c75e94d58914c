"""The embedded Valkey: up with one call, gone with one call, and what it knew is there again."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from serving import embedded
from serving.embedded import EmbeddedRedis, free_port
from serving.errors import ConfigurationError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    made = EmbeddedRedis(tmp_path / "valkey")
    yield made
    made.kill()


def is_alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_answers_when_start_returns_and_is_gone_when_stop_returns(server: EmbeddedRedis) -> None:
    with Redis.from_url(server.start()) as redis:
        assert redis.ping()
    pid = server.pid
    assert is_alive(pid)
    server.stop()
    assert server.pid is None
    assert not is_alive(pid)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_was_written_outlives_a_restart(server: EmbeddedRedis, end: str) -> None:
    with Redis.from_url(server.start()) as redis:
        redis.set("arm", "fp8")
        redis.waitaof(1, 0, 2000)
    getattr(server, end)()
    with Redis.from_url(server.start()) as redis:
        assert redis.get("arm") == b"fp8"


def test_it_listens_on_this_machine_only(server: EmbeddedRedis) -> None:
    server.start()
    with Redis.from_url(server.url) as redis:
        assert redis.config_get("bind") == {"bind": "127.0.0.1"}


def test_two_homes_are_two_servers(server: EmbeddedRedis, tmp_path: Path) -> None:
    other = EmbeddedRedis(tmp_path / "other")
    try:
        with Redis.from_url(server.start()) as mine, Redis.from_url(other.start()) as its:
            mine.set("key", "mine")
            assert its.get("key") is None
    finally:
        other.kill()


def test_stopping_and_killing_what_does_not_run_is_harmless(server: EmbeddedRedis) -> None:
    server.stop()
    server.kill()
    assert server.pid is None


def test_a_wanted_port_is_used(tmp_path: Path, free_port: int) -> None:
    server = EmbeddedRedis(tmp_path, free_port)
    try:
        assert server.start() == f"redis://127.0.0.1:{free_port}"
    finally:
        server.kill()


def test_somebody_elses_server_on_the_port_is_not_taken_for_ours(server: EmbeddedRedis, tmp_path: Path) -> None:
    server.start()
    second = EmbeddedRedis(tmp_path / "second", server.port)
    with pytest.raises(ConfigurationError, match="redis_url"):
        second.start()
    assert second.pid is None
    assert is_alive(server.pid)


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SETTINGS", {**embedded._SETTINGS, "appendonly": "perhaps"})
    with pytest.raises(ConfigurationError, match="redis_url") as caught:
        EmbeddedRedis(tmp_path).start()
    assert "argument must be" in str(caught.value)


def test_a_free_port_is_free() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
