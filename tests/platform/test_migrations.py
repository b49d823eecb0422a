"""Migrations and tables say the same, and every migration can be taken back."""

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
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


def test_migrations_go_down_and_up_again(migrated: Database, settings: Settings) -> None:
    with migrated.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DROP DATABASE IF EXISTS up_and_down"))
        connection.execute(text("CREATE DATABASE up_and_down"))
    url = settings.database_url.get_secret_value().replace("+psycopg", "").rsplit("/", 1)[0] + "/up_and_down"
    other = Database(settings.model_copy(update={"database_url": SecretStr(url.replace("://", "+psycopg://"))}))
    with other.engine.begin() as connection:
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
        command.upgrade(config, "head")
    other.close()
