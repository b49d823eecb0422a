"""Alembic's environment: the connection comes from the caller, the tables from `penstock.tables`.

Each migration is a transaction of its own, so that one may leave it to build an index CONCURRENTLY
(docs/architecture.md says when it must).
"""

from alembic import context
from penstock.tables import Base


def _run() -> None:
    connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


_run()
