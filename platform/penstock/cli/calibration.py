"""`penstock calibration`: the text of stored jobs, as a file that `penstock quantize` takes."""

import json
from pathlib import Path

import click

from penstock.cli.failure import Failure
from penstock.cli.options import with_client
from penstock.client import Client


@click.command()
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL file to write.")
@click.option("--count", default=64, show_default=True, type=click.IntRange(1, 4096), help="Of so many jobs at most.")
@click.option("--all-tenants", is_flag=True, help="Jobs of every tenant; for operators' keys.")
@with_client
def calibration(client: Client, model: str, out: Path, count: int, all_tenants: bool) -> None:
    """Write what MODEL's newest succeeded jobs were asked and wrote, a line each: text to calibrate by."""
    texts = client.calibration(model, count=count, all_tenants=all_tenants or None)
    if not texts:
        raise Failure(f"no job of {model!r} has succeeded whose text could be used")
    out.write_text("".join(f"{json.dumps(text, ensure_ascii=False)}\n" for text in texts), encoding="utf-8")
    click.echo(f"{out}: {len(texts)} texts", err=True)
