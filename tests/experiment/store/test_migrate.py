"""Migrations: what they build is what the tables say, on both databases, however many processes start at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from experiment.feedback import Span
from experiment.store import schema
from experiment.store.engine import create_engine
from experiment.store.feedback_sql import SqlFeedbackLog
from experiment.store.migrate import is_current, upgrade


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.integration)])
def blank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An engine on a database without tables."""
    if request.param == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path / 'a' / 'new' / 'folder.db'}")
    else:
        url: str = request.getfixturevalue("postgres_url")
        with sa.create_engine(url).begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA IF EXISTS blank CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA blank")
        engine = create_engine(f"{url}?options=-csearch_path%3Dblank")
    yield engine
    engine.dispose()


def test_upgrade_builds_the_tables_that_the_code_uses(blank: sa.Engine) -> None:
    upgrade(blank)
    with blank.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_upgrade_is_safe_to_repeat_and_keeps_the_rows(blank: sa.Engine) -> None:
    upgrade(blank)
    with blank.begin() as connection:
        connection.execute(sa.insert(schema.counters).values(name="n", value=5))
    upgrade(blank)
    with blank.connect() as connection:
        assert connection.scalar(sa.select(schema.counters.c.value)) == 5


def test_upgrades_at_once_do_not_disturb_each_other(blank: sa.Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: upgrade(blank), range(4)))
    assert "user_totals" in sa.inspect(blank).get_table_names()


def test_users_of_before_the_trigger_are_kept_and_unknown(blank: sa.Engine) -> None:
    upgrade(blank, "0001")
    with blank.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO user_totals (experiment, run, user_id, arm, phase, exposed_at, closes_at, clicks)"
            " VALUES ('e', 1, 'u', 'fp8', 0, 1, 2, 7)"
        )
    upgrade(blank)
    with blank.connect() as connection:
        row = connection.execute(sa.select(schema.user_totals)).one()
    assert (row.user_id, row.clicks, row.triggered) == ("u", 7, None)


def _request_of(blank: sa.Engine, revision: str, **more: str) -> None:
    """A database of that revision with one request."""
    upgrade(blank, revision)
    fields = {
        "request_id": "r", "user_id": "u", "served_variant": "fp8", "table_version": 1, "reason": "SPLIT",
        "failed": False, "slow": False, "forced": False, "latency_ms": 1.0, "received_at": 1, **more,
    }  # fmt: skip
    with blank.begin() as connection:
        connection.execute(sa.insert(sa.table("served", *map(sa.column, fields))).values(fields))


def test_requests_of_before_slates_were_logged_are_kept_and_left_out_of_the_feedback(blank: sa.Engine) -> None:
    _request_of(blank, "0002")
    assert not is_current(blank)
    upgrade(blank)
    assert is_current(blank)
    with blank.connect() as connection:
        row = connection.execute(sa.select(schema.served)).one()
    assert (row.request_id, row.history, row.slate) == ("r", None, None)
    assert list(SqlFeedbackLog(blank).read(Span())) == []


def test_slates_of_before_liked_items_were_logged_are_feedback_without_them(blank: sa.Engine) -> None:
    _request_of(blank, "0003", history='["50"]', slate='[["100",-4.25]]')
    upgrade(blank)
    (found,) = SqlFeedbackLog(blank).read(Span())
    assert (found.history, found.liked, found.profile) == (("50",), (), ())


def test_a_database_without_tables_is_not_current(blank: sa.Engine) -> None:
    assert not is_current(blank)
