"""`penstock get`, `list`, `cancel`, `retry` and `delete`."""

from itertools import islice
from typing import Any

import click

from penstock.cli.options import moment, with_client
from penstock.cli.render import console_for, job_cells, job_page, job_table
from penstock.client import Client, Job, JobState

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("job_id")
@_json
@with_client
def get(client: Client, job_id: str, as_json: bool) -> None:
    """Show a job: where it stands, what happened to it, and what it wrote so far."""
    _show(client.jobs.get(job_id), as_json)


@click.command("list")
@click.option(
    "--status", multiple=True, type=click.Choice([state.value for state in JobState]), help="May be repeated."
)
@click.option("--model", help="Only jobs of this model.")
@click.option("--version", help="Only jobs of this version of the model.")
@click.option("--tag", help="Only jobs with this tag.")
@click.option("--class", "job_class", type=click.Choice(["interactive", "batch"]), help="Only jobs of this class.")
@click.option("--key", help="Only jobs sent with the key of this id.")
@click.option("--batch", help="Only jobs of this batch's lines.")
@click.option("--error", help="Only jobs that failed with this code.")
@click.option("--finished-after", type=moment, metavar="TIME", help="Only jobs that ended after this time.")
@click.option("--finished-before", type=moment, metavar="TIME", help="Only jobs that ended before this time.")
@click.option(
    "--after", type=moment, metavar="TIME", help="Only jobs made after this time, such as 2030-01-31T12:00:00Z."
)
@click.option("--before", type=moment, metavar="TIME", help="Only jobs made before this time.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one job a line.")
@with_client
def list_(client: Client, as_json: bool, limit: int, status: tuple[str, ...], **filters: Any) -> None:
    """List jobs, newest first: a table on a terminal, tab-separated columns elsewhere."""
    found = client.jobs.list(
        status=list(status) or None,
        created_after=filters.pop("after"),
        created_before=filters.pop("before"),
        **filters,
        page_size=min(limit, 100),
    )
    _show_all(list(islice(found, limit)), as_json)


@click.command()
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
@_json
@with_client
def cancel(client: Client, job_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel jobs: at once while they wait, at their next token while they run. What they wrote is kept."""
    for job_id in job_ids:
        job = client.jobs.cancel(job_id)
        click.echo(job.to_json() if as_json else f"{job.id} {_cancelled(job)}")


@click.command()
@click.argument("job_id")
@_json
@with_client
def retry(client: Client, job_id: str, as_json: bool) -> None:
    """Submit the request of a finished job again, as a new job. Prints its id."""
    job = client.jobs.retry(job_id)
    click.echo(job.to_json() if as_json else job.id)


@click.command()
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
@with_client
def delete(client: Client, job_ids: tuple[str, ...]) -> None:
    """Delete finished jobs for good, with all that they wrote. Their usage stays counted."""
    for job_id in job_ids:
        client.jobs.delete(job_id)
        click.echo(f"{job_id} deleted")


def _show(job: Job, as_json: bool) -> None:
    if as_json:
        click.echo(job.to_json())
    else:
        console_for().print(job_page(job))


def _show_all(jobs: list[Job], as_json: bool) -> None:
    console = console_for()
    if as_json:
        for job in jobs:
            click.echo(job.to_json())
    elif console.is_terminal:
        console.print(job_table(jobs))
    else:
        for job in jobs:
            click.echo("\t".join(job_cells(job)))


def _cancelled(job: Job) -> str:
    return "cancelled" if job.finished else "will stop at its next token"
