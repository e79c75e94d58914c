"""Settings: from the environment, checked at the start, and never changed afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from model.recommender import DEFAULT_BEAM_WIDTH
from serving.settings import Settings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing of Crossfade."""
    for name in [name for name in os.environ if name.startswith("CROSSFADE_")]:
        monkeypatch.delenv(name)


def test_every_field_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "HOME": "/srv/crossfade",
        "PORT": "9000",
        "DATABASE_URL": "postgresql+psycopg://db/x",
        "REDIS_URL": "redis://r",
        "BATCH_WAIT_S": "1e-3",
        "KNOWN_USERS": "7",
        "LOG_SLATES": "false",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"CROSSFADE_{name}", value)
    found = Settings()
    assert (found.home, found.port, found.redis_url) == (Path("/srv/crossfade"), 9000, "redis://r")
    assert (found.batch_wait_s, found.known_users, found.log_slates) == (0.001, 7, False)
    assert found.sql_url == "postgresql+psycopg://db/x"


def test_what_is_given_outranks_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_PORT", "9000")
    assert Settings(port=9001).port == 9001


def test_everything_of_the_service_lies_in_its_home_wherever_one_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = Settings(home=Path("here"))
    home = tmp_path / "here"
    assert found.sql_url == f"sqlite:///{home / 'crossfade.db'}"
    paths = {found.spool_dir, found.secret_path, found.tokens_path, found.variants_path}
    assert len(paths) == 4
    assert {path.parent for path in paths} == {home}


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert Settings(host="::1", port=9000).url == "http://[::1]:9000"


def test_the_address_follows_from_host_and_port() -> None:
    assert Settings(host="10.0.0.1", port=81).url == "http://10.0.0.1:81"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 0),
        ("port", 65536),
        ("port", "many"),
        ("gateway_replicas", 0),
        ("variant_gpus", -1),
        ("batch_size", 0),
        ("beam_width", 0),
        ("history_max", -1),
        ("history_max", 8193),
        ("batch_wait_s", -0.1),
        ("variant_timeout_s", 0),
        ("answer_timeout_s", 0),
        ("table_poll_s", 0),
        ("spool_max_bytes", 10),
        ("flush_rows", 0),
        ("known_users", 0),
        ("log_history", 0),
        ("request_max_bytes", 0),
        ("events_max_bytes", 0),
        ("portt", 8700),
    ],
)
def test_an_impossible_setting_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**{field: value})
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


def test_the_usual_beam_is_the_models_own() -> None:
    """Written down twice, since settings import no model."""
    assert Settings().beam_width == DEFAULT_BEAM_WIDTH


def test_nothing_is_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1
