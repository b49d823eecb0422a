"""The demo's model: where it is, and when it takes jobs."""

import time
from pathlib import Path
from typing import Final

import click

from penstock.client import Client

MODEL: Final = "invoice-extractor"
_SECONDS: Final = 120.0


def assets() -> Path:
    """The demo's model and invoices: in a wheel beside the package, in the repository under examples."""
    packaged = Path(__file__).parent.parent / "_demo"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "examples" / "invoices"


def await_model(client: Client) -> None:
    """Wait until a worker has loaded the demo's model."""
    deadline = time.monotonic() + _SECONDS
    while not any(model.name == MODEL and model.ready for model in client.models()):
        if time.monotonic() > deadline:
            raise click.ClickException(f"no worker has loaded {MODEL} within {_SECONDS:.0f} seconds")
        time.sleep(0.1)
