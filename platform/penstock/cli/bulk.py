"""`penstock jobs`: cancel or submit again all jobs that filters or ids name, watched to the end."""

import functools
import sys
from collections.abc import Callable
from typing import Any, Final, Literal

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from penstock.cli.failure import EXIT_FAILURE, EXIT_INTERRUPTED
from penstock.cli.options import past_moment, with_client
from penstock.cli.render import console_for, printable
from penstock.client import BulkOperation, Client, JobState

_MOST_FAILURES_SHOWN: Final = 10
_FILTERS: Final = (
    click.option("--status", multiple=True, type=click.Choice([state.value for state in JobState])),
    click.option("--model", help="Of this model."),
    click.option("--version", help="Of this version of the model."),
    click.option("--tag", help="With this tag."),
    click.option("--class", "job_class", type=click.Choice(["interactive", "batch"])),
    click.option("--key", help="Sent with the key of this id."),
    click.option("--batch", help="Of this batch's lines."),
    click.option("--error", help="That failed with this code."),
    *(
        click.option(
            f"--{name.replace('_', '-')}", type=past_moment, metavar="TIME", help="A time, or 12h: so long ago."
        )
        for name in ("created_after", "created_before", "finished_after", "finished_before")
    ),
)


def with_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command an option for each filter of jobs, and call it with those that were used as `filters`."""
    names = ("status", "model", "version", "tag", "job_class", "key", "batch", "error")
    moments = ("created_after", "created_before", "finished_after", "finished_before")

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        chosen = {name: given.pop(name) for name in (*names, *moments)}
        return command(filters={name: value for name, value in chosen.items() if value}, **given)

    for option in reversed(_FILTERS):
        wrapped = option(wrapped)
    return wrapped


@click.group()
def jobs() -> None:
    """Cancel or submit again many jobs, named by filters or by their ids."""


@jobs.command()
@click.argument("ids", nargs=-1, metavar="[JOB_ID]...")
@with_filters
@click.option("--detach", is_flag=True, help="Print the operation's id and do not wait for its end.")
@with_client
def cancel(client: Client, ids: tuple[str, ...], filters: dict[str, Any], detach: bool) -> None:
    """Cancel all jobs that match and wait or run, or those of these ids. What they wrote is kept."""
    _begin(client, "cancel", ids, filters, detach)


@jobs.command()
@click.argument("ids", nargs=-1, metavar="[JOB_ID]...")
@with_filters
@click.option("--detach", is_flag=True, help="Print the operation's id and do not wait for its end.")
@with_client
def retry(client: Client, ids: tuple[str, ...], filters: dict[str, Any], detach: bool) -> None:
    """Submit jobs again, as new ones: those of these ids, or all that match and did not succeed.

    With --status succeeded those too.
    """
    _begin(client, "replay", ids, filters, detach)


def follow_to_its_end(client: Client, operation: BulkOperation) -> None:
    """Show how the operation comes along, and end the command with whether all of it was had."""
    try:
        ended = _watched(client, operation.id)
    except KeyboardInterrupt:
        click.echo(f"stopped watching; {operation.id} goes on", err=True)
        sys.exit(EXIT_INTERRUPTED)
    for failure in ended.failures[:_MOST_FAILURES_SHOWN]:
        click.echo(printable(f"{failure.id}: {failure.code}: {failure.message}"), err=True)
    more = ", and there are more: run it again" if ended.truncated else ""
    counts = f"{ended.done} done, {ended.skipped} skipped, {ended.failed} failed of {ended.total}{more}"
    click.echo(f"{ended.id} {ended.status}: {counts}", err=True)
    if ended.status != "completed" or ended.failed:
        sys.exit(EXIT_FAILURE)


def _begin(
    client: Client, action: Literal["cancel", "replay"], ids: tuple[str, ...], filters: dict[str, Any], detach: bool
) -> None:
    if bool(ids) == bool(filters):
        raise click.UsageError("name the jobs by at least one filter, such as --tag or --status, or else by their ids")
    operation = client.bulk.begin(action, ids=ids) if ids else client.bulk.begin(action, filters)
    click.echo(operation.id)
    if not detach:
        follow_to_its_end(client, operation)


def _watched(client: Client, bulk_id: str) -> BulkOperation:
    console = console_for("stderr")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("gathering", total=None)
        for now in client.bulk.follow(bulk_id):
            waits = f", waits: {now.blocker['message']}" if now.blocker else ""
            bar.update(task, description=printable(now.status + waits), completed=now.settled, total=now.total or None)
    return now
