"""`penstock up`: the whole platform on this machine, until Ctrl-C."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from penstock.embedded.platform import Platform
from penstock.embedded.service import Report
from penstock.embedded.services import External, Ports
from penstock.embedded.state_folder import default_state_dir, environment_of_running
from penstock.embedded.stop_switch import StopRequested, StopSwitch
from penstock.errors import PenstockError

DEFAULT_PORT = 8080


def _parse_models(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    models = {}
    for value in values:
        name, separator, folder = value.partition("=")
        if not (name and separator and folder):
            raise click.BadParameter(f"{value!r} is not of the form NAME=FOLDER")
        if not Path(folder).is_dir():
            raise click.BadParameter(f"{folder} is not a folder")
        models[name] = Path(folder)
    return models


_state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="PENSTOCK_STATE_DIR",
    show_envvar=True,
    default=default_state_dir,
    show_default="~/.penstock, for root /var/lib/penstock",
    help="Folder that holds everything the embedded services keep.",
)


@click.command()
@_state_dir_option
@click.option("--host", envvar="PENSTOCK_WEB_HOST", default="127.0.0.1", show_default=True, show_envvar=True)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    envvar="PENSTOCK_WEB_PORT",
    default=DEFAULT_PORT,
    show_default=True,
    show_envvar=True,
    help="Port of API and portal.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    callback=_parse_models,
    metavar="NAME=FOLDER",
    help="Register the model in FOLDER and make it NAME's champion. May be given several times.",
)
@click.option("--worker/--no-worker", default=True, show_default=True, help="Run a worker on this machine.")
@click.option("--database-url", envvar="PENSTOCK_DATABASE_URL", show_envvar=True, help="Use this PostgreSQL.")
@click.option("--redis-url", envvar="PENSTOCK_REDIS_URL", show_envvar=True, help="Use this Redis.")
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", show_envvar=True, help="Use this MLflow server.")
@click.option("--postgres-port", type=click.IntRange(1, 65535), help="Port of the embedded PostgreSQL.")
@click.option("--redis-port", type=click.IntRange(1, 65535), help="Port of the embedded Redis.")
@click.option("--mlflow-port", type=click.IntRange(1, 65535), help="Port of the embedded MLflow.")
def up(
    state_dir: Path,
    host: str,
    port: int,
    models: dict[str, Path],
    worker: bool,
    database_url: str | None,
    redis_url: str | None,
    tracking_uri: str | None,
    postgres_port: int | None,
    redis_port: int | None,
    mlflow_port: int | None,
) -> None:
    """Start PostgreSQL, Redis, MLflow, the web process, the control process and a worker; stop them on Ctrl-C.

    A second Ctrl-C does not wait for running jobs: they are handed to the next worker.
    """
    console = Console()
    switch = StopSwitch()
    platform = Platform(
        state_dir,
        host=host,
        port=port,
        worker=worker,
        models=models,
        external=External(database_url, redis_url, tracking_uri),
        ports=Ports(postgres_port, redis_port, mlflow_port),
        report=_reporter(console),
        switch=switch,
    )
    with switch.pressed_by_signals():
        try:
            with platform:
                _welcome(console, platform)
                switch.wait()
                console.print("Stopping. Once more Ctrl-C does not wait for running jobs.")
        except StopRequested:
            console.print("Stopped.")
        except PenstockError as error:
            raise click.ClickException(error.message) from error


@click.command()
@_state_dir_option
def env(state_dir: Path) -> None:
    """Print the settings of the platform that runs here, for a shell: eval "$(penstock env)".

    They hold its passwords. With them, `penstock keys`, `penstock models` and the like work in that shell.
    """
    for name, value in environment_of_running(state_dir).items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _reporter(console: Console) -> Report:
    def report(service: str, line: str) -> None:
        text = Text.assemble((f"{service:>9}", "bold cyan"), "  ", line)
        console.print(text, no_wrap=True, overflow="ellipsis")

    return report


def _welcome(console: Console, platform: Platform) -> None:
    """Say where everything is; show the first key and password, this once."""
    places = {
        "Portal": platform.url,
        "API": f"{platform.url}/v1 (reference at {platform.url}/docs)",
        "MLflow": platform.services.tracking_uri or "none",
        "State": platform.services.folder.root,
    }
    console.rule("Penstock is up", align="left")
    _print_pairs(console, places)
    if made := platform.bootstrap:
        console.rule("Shown this once: keep it", align="left")
        _print_pairs(console, {"Sign in": made.email, "Password": made.password, "API key": made.api_key})
    console.print("Ctrl-C stops everything.")


def _print_pairs(console: Console, pairs: Mapping[str, object]) -> None:
    """One pair a line, never broken: these are for copying."""
    for name, value in pairs.items():
        console.print(Text.assemble((f"{name:>9}", "bold"), "  ", str(value)), soft_wrap=True)
