"""Alembic's entry point; `experiment.store.migrate` hands the connection over."""

from alembic import context

from experiment.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
