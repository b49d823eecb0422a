"""`penstock models`: register model versions, move aliases, see what serves."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.db import Database
from penstock.errors import ServiceUnavailable
from penstock.registry.catalogue import ModelStanding, VersionStanding, list_models
from penstock.registry.folder import ModelFolder, describe
from penstock.registry.mlflow_api import MlflowApi, RegistryVersion
from penstock.registry.registration import check_alias, check_name
from penstock.registry.registration import register as register_folder
from penstock.registry.version_tags import DIGEST_TAG, SOURCE_TAG
from penstock.settings import MlflowSettings, Settings


@click.group()
def models() -> None:
    """Register model versions and see them.

    MLFLOW_TRACKING_URI says where the registry is; list and show also read the platform's database.
    """


@models.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The model that this is a version of.")
@click.option("--alias", help="Move this alias to the version; the alias champion is what jobs get.")
@click.option("--description", help="What is special about this version.")
@click.option("--force", is_flag=True, help="Make a new version even if the same files are registered already.")
def register(folder: Path, name: str, alias: str | None, description: str | None, force: bool) -> None:
    """Make a Hugging Face model FOLDER a version of a model.

    The folder stays where it is; workers must reach it under the same path, and check every file's hash.
    """
    settings = MlflowSettings.from_environment()
    check_name(name)
    if alias is not None:
        check_alias(alias)
    with MlflowApi(settings) as api:
        api.ping()
    described = _describe(folder)
    done = register_folder(settings, described, name, alias=alias, description=description, force=force)
    click.echo(f"{name} version {done.version}" + ("" if done.created else ": these files are registered already"))
    if not done.created and done.source != str(described.path):
        click.echo(f"It is served from {done.source}; --force registers {described.path} as a version of its own.")
    if alias is not None:
        click.echo(f"{name}@{alias} is version {done.version}")


@models.command()
@click.argument("name")
@click.argument("alias")
@click.argument("version")
def alias(name: str, alias: str, version: str) -> None:
    """Let ALIAS of model NAME mean VERSION. New jobs follow once a worker has it ready."""
    with MlflowApi(MlflowSettings.from_environment()) as api:
        api.set_alias(name, check_alias(alias), version)
    click.echo(f"{name}@{alias} is version {version}")


@models.command("list")
def list_() -> None:
    """Every model: which version serves, how it stands, and why."""
    with _session() as session:
        standings = list_models(session)
    if not standings:
        click.echo("No model yet: penstock models register FOLDER --name NAME --alias champion")
        return
    table = Table("model", "champion", "since", "challenger", "incoming", box=None, pad_edge=False)
    for standing in standings:
        versions = (standing.champion, standing.challenger, standing.incoming)
        champion, challenger, incoming = map(_in_brief, versions)
        table.add_row(standing.name, champion, iso(standing.champion_since) or "", challenger, incoming)
    Console().print(table)
    for standing in standings:
        for reason in _reasons(standing):
            click.echo(f"{standing.name}: {reason}")


@models.command()
@click.argument("name")
def show(name: str) -> None:
    """The versions of model NAME, newest first, and how they stand."""
    settings = Settings.from_environment()
    with MlflowApi(settings) as api:
        versions = api.versions(name)
    with _session(settings) as session:
        standing = next((one for one in list_models(session) if one.name == name), None)
    console = Console()
    console.print(_versions_table(versions, standing))
    never = "It takes no jobs: no alias that is followed ever named one of its versions."
    click.echo("\n".join(_reasons(standing)) if standing is not None else never)


def _describe(folder: Path) -> ModelFolder:
    """Check and hash the folder, with a bar while it takes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("hashing", total=None)
        return describe(folder, lambda done, total: bar.update(task, completed=done, total=total))


def _in_brief(version: VersionStanding | None) -> str:
    """The version, and how it stands without the reason."""
    return f"{version.version} ({version.state.partition(':')[0]})" if version is not None else "none"


def _reasons(standing: ModelStanding) -> list[str]:
    champion = standing.champion
    fault = [f"version {champion.version} {champion.state}"] if champion is not None and champion.error else []
    return [standing.reason, *fault]


def _versions_table(versions: list[RegistryVersion], standing: ModelStanding | None) -> Table:
    known = (standing.champion, standing.challenger, standing.incoming) if standing is not None else ()
    summaries = {one.version: one.state for one in known if one is not None}
    table = Table("version", "aliases", "stands", "registered", "files", "folder", box=None, pad_edge=False)
    for version in versions:
        table.add_row(
            version.number,
            ", ".join(version.aliases),
            summaries.get(version.number, ""),
            iso(datetime.fromtimestamp(version.created_milliseconds / 1000, UTC)) or "",
            version.tags.get(DIGEST_TAG, "")[:12],
            version.tags.get(SOURCE_TAG, "not registered by Penstock"),
        )
    return table


@contextmanager
def _session(settings: Settings | None = None) -> Iterator[Session]:
    database = Database(settings or Settings.from_environment(), pool_size=1)
    try:
        with database.transaction() as session:
            yield session
    except OperationalError as error:
        raise ServiceUnavailable(f"PostgreSQL (PENSTOCK_DATABASE_URL) does not answer: {error.orig}") from error
    finally:
        database.close()
