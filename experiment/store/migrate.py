"""Bringing a database to the newest schema, with Alembic; safe to call at every start and from several processes."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from experiment.store.engine import reading, writing

_MIGRATIONS = Path(__file__).with_name("migrations")
_MIGRATION_LOCK = 0x6D696772


def is_current(engine: sa.Engine) -> bool:
    """Whether the database has this version's schema. Raises StoreUnavailableError."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with reading(engine) as connection:
        found = MigrationContext.configure(connection).get_current_heads()
    return found == tuple(ScriptDirectory.from_config(config).get_heads())


def upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """Apply what is missing up to `revision`, in one transaction. Raises StoreUnavailableError."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
