"""Alembic's environment: the connection comes from the caller, the tables from `penstock.tables`."""

from alembic import context
from penstock.tables import Base


def _run() -> None:
    connection = context.config.attributes["connection"]
    context.configure(
        connection=connection, target_metadata=Base.metadata, compare_type=True, compare_server_default=True
    )
    with context.begin_transaction():
        context.run_migrations()


_run()
