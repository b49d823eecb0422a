"""`penstock worker`."""

import sys

import click
from penstock.errors import SettingsError
from penstock.logs import configure_logs
from penstock.settings import Settings


@click.command()
def worker() -> None:
    """Host the registered models on this machine and run their jobs.

    Everything is set by environment variables: PENSTOCK_DATABASE_URL, PENSTOCK_REDIS_URL,
    PENSTOCK_WORKER_SLOTS and others. SIGTERM or Ctrl-C lets running jobs finish for a while and hands the
    rest back; a second one hands them back at once.
    """
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        raise click.ClickException(error.message) from None
    configure_logs(settings, "worker")
    from penstock_worker.app import run_worker  # here, because `penstock --help` need not wait for Celery

    sys.exit(run_worker(settings))
