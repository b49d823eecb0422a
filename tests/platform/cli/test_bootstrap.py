"""The first tenant, user and key of a production database."""

import pytest
from click.testing import CliRunner
from penstock.auth.services import authenticate
from penstock.cli.keys import keys
from penstock.db import Database
from penstock.settings import Settings


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    return {
        "PENSTOCK_DATABASE_URL": settings.database_url.get_secret_value(),
        "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
    }


def test_bootstrap_prints_a_working_key_once(database: Database, environment: dict[str, str]) -> None:
    first = CliRunner().invoke(keys, ["bootstrap"], env=environment)
    assert first.exit_code == 0
    printed = dict(line.split("\t") for line in first.stdout.strip().splitlines())
    with database.transaction() as session:
        assert "admin" in authenticate(session, printed["api key"], environment="live").scopes
    again = CliRunner().invoke(keys, ["bootstrap"], env=environment)
    assert again.exit_code == 1
    assert "there is a tenant already" in again.output
