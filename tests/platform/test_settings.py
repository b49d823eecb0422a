"""The environment is read once, strictly, and errors name the variable."""

import re
from pathlib import Path

import pytest
from penstock.errors import SettingsError
from penstock.settings import Settings, variable_name
from pydantic import ValidationError

REQUIRED = {"PENSTOCK_DATABASE_URL": "postgresql://u:p@localhost/db", "PENSTOCK_REDIS_URL": "redis://localhost:6379/0"}
PLATFORM = Path(__file__).parents[2] / "platform"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_name(field), raising=False)
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_required_addresses_are_enough(environment: pytest.MonkeyPatch) -> None:
    settings = Settings.from_environment()
    assert settings.database_url.get_secret_value() == "postgresql+psycopg://u:p@localhost/db"
    assert settings.mlflow_tracking_uri is None


def test_mlflow_is_named_by_its_own_variable(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert Settings.from_environment().mlflow_tracking_uri == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PENSTOCK_DATABASE_URL", "mysql://localhost/db"),
        ("PENSTOCK_REDIS_URL", "localhost:6379"),
        ("PENSTOCK_WEB_PORT", "eighty"),
        ("PENSTOCK_WEB_PORT", "70000"),
        ("PENSTOCK_LEASE_SECONDS", "0"),
        ("PENSTOCK_LOG_LEVEL", "loud"),
        ("PENSTOCK_ENVIRONMENT", "Live!"),
    ],
)
def test_a_bad_value_is_refused_by_its_variables_name(
    environment: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    environment.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}: "):
        Settings.from_environment()


def test_every_missing_variable_is_named_at_once(environment: pytest.MonkeyPatch) -> None:
    for name in REQUIRED:
        environment.delenv(name)
    with pytest.raises(SettingsError, match=r"PENSTOCK_DATABASE_URL.*; PENSTOCK_REDIS_URL"):
        Settings.from_environment()


def test_settings_cannot_change(environment: pytest.MonkeyPatch) -> None:
    settings = Settings.from_environment()
    with pytest.raises(ValidationError):
        settings.web_port = 1  # type: ignore[misc]  # that it is refused is what is tested


def test_secrets_do_not_show_in_logs(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PENSTOCK_SECRET_KEY", "hidden-hidden")
    assert "hidden-hidden" not in repr(Settings.from_environment())
    assert "u:p@" not in repr(Settings.from_environment())


def test_nothing_else_reads_the_environment() -> None:
    """The client has two variables of its own; embedded children inherit theirs, and MLflow knows no other way.

    `penstock up` takes its options from the environment too: it makes the settings of those that it starts. The
    portal's snippets are code for others to run.
    """
    allowed = {"settings.py", "client/config.py", "embedded/child.py", "embedded/mlflow_server.py", "cli/up.py"}
    allowed |= {"portal/snippets.py"}
    readers = {
        str(path.relative_to(PLATFORM / "penstock"))
        for path in (PLATFORM / "penstock").rglob("*.py")
        if re.search(r"os\.environ|os\.getenv|envvar=", path.read_text())
    }
    assert readers <= allowed
