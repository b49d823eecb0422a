"""`penstock events`: the tenant's feed."""

import click

from penstock.cli.options import with_client
from penstock.cli.render import console_for, printable
from penstock.client import Client, FeedEvent


@click.command()
@click.option("--after", metavar="ID", help="Begin after this event; `now` is the present end.")
@click.option("--follow", is_flag=True, help="Go on as events come, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one event a line.")
@with_client
def events(client: Client, after: str | None, follow: bool, as_json: bool) -> None:
    """Show all that happened in the tenant, oldest first: id, time, type, job, and its number there."""
    notes = console_for("stderr")
    found = (
        client.follow_events(after, on_lost=lambda error: notes.print(f"{error.message}; trying again", style="dim"))
        if follow
        else client.events(after)
    )
    for event in found:
        click.echo(event.model_dump_json() if as_json else _line(event))


def _line(event: FeedEvent) -> str:
    happened = event.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    number = "" if event.event_number is None else str(event.event_number)
    return printable("\t".join([event.id, happened, event.type, event.job_id or event.data.get("id", ""), number]))
