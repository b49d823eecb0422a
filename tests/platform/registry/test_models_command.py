"""`penstock models`, as a person uses it, against a real registry and database."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from penstock.cli import main
from penstock.db import Database
from penstock.registry import hosting_services as hosting
from penstock.registry.hosting_services import HostingReport, HostingState, WorkerCard
from penstock.registry.mlflow_sync import Synchroniser
from penstock.registry.models import Deployment
from penstock.settings import Settings
from sqlalchemy import select

from tests.platform.registry.conftest import Registrar
from tests.platform.registry.model_folders import make_folder


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, registry_settings: Settings, database: Database) -> None:
    """The variables of a server whose registry and database are the test's."""
    assert registry_settings.mlflow_tracking_uri is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry_settings.mlflow_tracking_uri)
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", registry_settings.database_url.get_secret_value())
    monkeypatch.setenv("PENSTOCK_REDIS_URL", registry_settings.redis_url.get_secret_value())
    monkeypatch.setenv("COLUMNS", "300")


def penstock(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, arguments)])


def report(database: Database, version: str, state: HostingState, **details: object) -> None:
    with database.transaction() as session:
        deployment = session.scalars(select(Deployment).where(Deployment.model_version == version)).one()
        hosting.register_worker(session, WorkerCard(f"wrk_{version}", "test", 1, "cpu", 4))
        hosting.report(session, f"wrk_{version}", HostingReport(deployment.id, state, **details))  # type: ignore[arg-type]  # its own fields


@pytest.mark.usefixtures("environment")
def test_registering_prints_the_version_and_does_it_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    first = penstock("register", folder, "--name", "tiny", "--alias", "champion", "--description", "the first")
    assert (first.exit_code, first.output) == (0, "tiny version 1\ntiny@champion is version 1\n")
    again = penstock("register", folder, "--name", "tiny")
    assert (again.exit_code, again.output) == (0, "tiny version 1: these files are registered already\n")
    twin = penstock("register", make_folder(tmp_path / "twin"), "--name", "tiny")
    assert f"It is served from {folder}; --force registers {tmp_path}/twin" in twin.output
    forced = penstock("register", folder, "--name", "tiny", "--force")
    assert forced.output == "tiny version 2\n"


def test_registering_needs_no_setting_but_the_registrys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry_settings: Settings
) -> None:
    assert registry_settings.mlflow_tracking_uri is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry_settings.mlflow_tracking_uri)
    assert penstock("register", make_folder(tmp_path / "model"), "--name", "tiny").exit_code == 0


@pytest.mark.usefixtures("environment")
def test_wrong_input_ends_with_one_line(tmp_path: Path) -> None:
    missing = penstock("register", tmp_path / "nowhere", "--name", "tiny")
    assert missing.exit_code == 1
    assert missing.output.startswith(f"Error: {tmp_path}/nowhere is not a model folder: it does not exist")
    folder = make_folder(tmp_path / "model")
    assert penstock("register", folder, "--name", "a b").output.startswith("Error: 'a b' is no name for a model")
    assert "'v1' is no alias" in penstock("register", folder, "--name", "tiny", "--alias", "v1").output
    (folder / "model.safetensors").write_bytes(b"short")
    cut_off = penstock("register", folder, "--name", "tiny")
    assert cut_off.exit_code == 1
    assert "model.safetensors is cut off or corrupt" in cut_off.output
    assert penstock("alias", "tiny", "champion", "1").exit_code == 1
    assert "nowhere" in penstock("show", "nowhere").output


def test_a_registry_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "model")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    for arguments in (("register", folder, "--name", "tiny"), ("alias", "tiny", "champion", "1")):
        result = penstock(*arguments)
        assert result.exit_code == 1
        assert "MLflow does not answer at http://127.0.0.1:1 (MLFLOW_TRACKING_URI)" in result.output
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    unset = penstock("register", folder, "--name", "tiny")
    assert unset.exit_code == 2
    assert "MLFLOW_TRACKING_URI: must name an MLflow server" in unset.output


@pytest.mark.usefixtures("environment")
def test_a_database_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "postgresql://nobody:secret@127.0.0.1:1/none")
    result = penstock("list")
    assert result.exit_code == 1
    assert "PENSTOCK_DATABASE_URL" in result.output
    assert "secret" not in result.output


@pytest.mark.usefixtures("environment")
def test_an_alias_moves(registrar: Registrar) -> None:
    registrar(alias="champion")
    registrar()
    moved = penstock("alias", "tiny", "champion", "2")
    assert (moved.exit_code, moved.output) == (0, "tiny@champion is version 2\n")
    assert "9" in penstock("alias", "tiny", "champion", "9").output


@pytest.mark.usefixtures("environment")
def test_the_list_says_what_serves_and_why(
    database: Database, synchroniser: Synchroniser, registrar: Registrar
) -> None:
    assert penstock("list").output.startswith("No model yet: penstock models register")
    registrar(alias="champion")
    synchroniser.tick()
    assert "1 (no worker hosts it)" in penstock("list").output
    report(database, "1", HostingState.LOADING, progress=0.4)
    assert "1 (loading (40%))" in penstock("list").output
    report(database, "1", HostingState.READY)
    registrar(alias="champion")
    synchroniser.tick()
    report(database, "2", HostingState.FAILED, error="config.json is missing")
    synchroniser.tick()
    listed = penstock("list").output
    assert "1 (ready)" in listed
    assert "2 (could not be loaded)" in listed
    assert "tiny: version 2 cannot be loaded (config.json is missing) and takes over once it can; version 1" in listed
    report(database, "1", HostingState.FAILED, error="no memory")
    assert "tiny: version 1 could not be loaded: no memory" in penstock("list").output


@pytest.mark.usefixtures("environment")
def test_show_lists_versions_with_their_aliases_and_why(
    database: Database, synchroniser: Synchroniser, registrar: Registrar
) -> None:
    registrar(alias="champion")
    registrar()
    assert "It takes no jobs" in penstock("show", "tiny").output
    synchroniser.tick()
    report(database, "1", HostingState.READY)
    synchroniser.tick()
    lines = penstock("show", "tiny").output.splitlines()
    assert lines[1].startswith("2 ")
    assert lines[2].split()[:3] == ["1", "champion", "ready"]
    assert lines[3] == "the alias champion names version 1"
