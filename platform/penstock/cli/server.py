"""`penstock web`, `control` and `migrate`: the platform's processes, set up by the environment."""

import click

from penstock.logs import configure_logs
from penstock.settings import Settings


@click.command()
def web() -> None:
    """Run the API and the portal. Reads PENSTOCK_DATABASE_URL, PENSTOCK_REDIS_URL and the other settings."""
    settings = Settings.from_environment()
    from penstock.web import serve

    serve(settings)


@click.command()
def control() -> None:
    """Run the control process: webhooks, the outbox's relay, lost leases, the registry's aliases."""
    settings = Settings.from_environment()
    configure_logs(settings, "control")
    from penstock.control import run_control

    raise SystemExit(run_control(settings))


@click.command()
def migrate() -> None:
    """Bring the database's tables to this version. Safe while others do the same."""
    settings = Settings.from_environment()
    from penstock.migrate import upgrade

    before, after = upgrade(settings)
    click.echo(f"the database is at revision {after}" + ("" if before == after else f" (it was at {before or 'none'})"))
