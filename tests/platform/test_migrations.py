"""Migrations and tables say the same, and every migration can be taken back."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from penstock import migrate
from penstock.db import Database
from penstock.settings import Settings
from penstock.tables import Base
from pydantic import SecretStr
from sqlalchemy import text

from tests.conftest import ROOT


def test_the_migrated_database_is_what_the_tables_say(migrated: Database) -> None:
    with migrated.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def empty(migrated: Database, settings: Settings, name: str) -> Settings:
    """Settings for a database of this name that has no tables yet."""
    with migrated.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
        connection.execute(text(f"CREATE DATABASE {name}"))
    address = settings.database_url.get_secret_value().rsplit("/", 1)[0]
    return settings.model_copy(update={"database_url": SecretStr(f"{address}/{name}")})


def test_migrations_go_down_and_up_again(migrated: Database, settings: Settings) -> None:
    other = Database(empty(migrated, settings, "up_and_down"))
    with other.engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(ROOT / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        command.downgrade(config, "base")
        left = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        assert left == ["alembic_version"]
        functions = connection.scalars(
            text("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
        ).all()
        assert functions == []
        connection.rollback()
        command.upgrade(config, "head")
    other.close()


CONCURRENTLY = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "9999", {head!r}


def upgrade():
    with op.get_context().autocommit_block():
        op.drop_index("ix_job_new", "job", postgresql_concurrently=True, if_exists=True)
        op.create_index("ix_job_new", "job", ["id"], postgresql_concurrently=True)
"""


def test_an_index_is_built_beside_others_that_start(
    migrated: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building it waits for every statement that runs: those who wait for their turn to migrate must not be one."""
    folder = tmp_path / "migrations"
    shutil.copytree(ROOT / "migrations", folder)
    head = ScriptDirectory(str(folder)).get_current_head()
    (folder / "versions" / "9999_concurrently.py").write_text(CONCURRENTLY.format(head=head))
    monkeypatch.setattr(migrate, "migrations_folder", lambda: folder)
    fresh = empty(migrated, settings, "built_beside")
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(migrate.upgrade, fresh) for _ in range(2)]
        assert {each.result() for each in done} == {(None, "9999"), ("9999", "9999")}
