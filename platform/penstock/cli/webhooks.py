"""`penstock webhooks`: endpoints, and the log of what was sent to them."""

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Final

import click
from rich.table import Table

from penstock.cli.failure import Failure
from penstock.cli.options import past_moment, with_client
from penstock.cli.render import console_for, printable
from penstock.client import Client, WebhookDelivery, WebhookEndpoint

_json: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_events: Final = click.option(
    "--event", "events", multiple=True, help="An event that it gets; those of final states without. May be repeated."
)
_TEST_PAUSE_SECONDS: Final = 0.2
_ENDPOINT_HEADINGS: Final = ("id", "url", "events", "standing")
_DELIVERY_HEADINGS: Final = ("id", "event", "job", "status", "attempts", "queued")


@click.group()
def webhooks() -> None:
    """Keep webhook endpoints, and see and replay what was sent to them."""


@webhooks.command()
@click.argument("address")
@click.option("--description", help="What it is for.")
@_events
@_json
@with_client
def create(client: Client, address: str, description: str | None, events: tuple[str, ...], as_json: bool) -> None:
    """Make an endpoint at ADDRESS, a URL, and print its secret, this once."""
    made = client.webhooks.create(address, description=description, events=events or None)
    _show_secret(made, as_json)


@webhooks.command("list")
@_json
@with_client
def list_(client: Client, as_json: bool) -> None:
    """List the endpoints, newest first."""
    _show(client.webhooks.list(), _ENDPOINT_HEADINGS, _endpoint_cells, as_json)


@webhooks.command()
@click.argument("endpoint_id")
@click.option("--address", help="The URL where it is now.")
@click.option("--description", help="What it is for.")
@_events
@click.option("--enable/--disable", "enabled", default=None, help="Go on after it was disabled; send nothing more.")
@_json
@with_client
def change(
    client: Client,
    endpoint_id: str,
    address: str | None,
    description: str | None,
    events: tuple[str, ...],
    enabled: bool | None,
    as_json: bool,
) -> None:
    """Change an endpoint, disable it, or enable it again."""
    changed = client.webhooks.change(
        endpoint_id,
        url=address,
        description=description,
        events=events or None,
        disabled=None if enabled is None else not enabled,
    )
    _show([changed], _ENDPOINT_HEADINGS, _endpoint_cells, as_json)


@webhooks.command()
@click.argument("endpoint_id")
@with_client
def delete(client: Client, endpoint_id: str) -> None:
    """Delete an endpoint with the log of its deliveries."""
    client.webhooks.delete(endpoint_id)
    click.echo(f"{endpoint_id} is deleted")


@webhooks.command()
@click.argument("endpoint_id")
@click.option("--grace", type=click.IntRange(min=0), metavar="SECONDS", help="How long the old one signs as well.")
@_json
@with_client
def rotate(client: Client, endpoint_id: str, grace: int | None, as_json: bool) -> None:
    """Give an endpoint a fresh secret and print it, this once."""
    _show_secret(client.webhooks.rotate_secret(endpoint_id, grace_seconds=grace), as_json)


@webhooks.command()
@click.argument("endpoint_id")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for what comes of it.")
@_json
@with_client
def test(client: Client, endpoint_id: str, timeout: float, as_json: bool) -> None:
    """Send an endpoint a test event and say what came of it."""
    deadline = time.monotonic() + timeout
    delivery = client.webhooks.delivery(client.webhooks.test(endpoint_id).id)
    while delivery.status == "waiting" and time.monotonic() < deadline:
        time.sleep(_TEST_PAUSE_SECONDS)
        delivery = client.webhooks.delivery(delivery.id)
    _show_detail(delivery, as_json)
    if delivery.status != "delivered":
        raise Failure(f"{delivery.id} is {delivery.status}")


@webhooks.command()
@click.option("--endpoint", "endpoint_id", help="Only those to this endpoint.")
@click.option("--job", "job_id", help="Only those of this job's events.")
@click.option("--status", type=click.Choice(["waiting", "delivered", "failed"]), help="Only those that stand so.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@_json
@with_client
def deliveries(client: Client, limit: int, as_json: bool, **filters: Any) -> None:
    """List deliveries, newest first."""
    found = client.webhooks.deliveries(**filters, page_size=min(limit, 100))
    _show(islice(found, limit), _DELIVERY_HEADINGS, _delivery_cells, as_json)


@webhooks.command()
@click.argument("delivery_id")
@_json
@with_client
def show(client: Client, delivery_id: str, as_json: bool) -> None:
    """Show a delivery and what came of each attempt."""
    _show_detail(client.webhooks.delivery(delivery_id), as_json)


@webhooks.command()
@click.argument("target", metavar="DELIVERY_ID|ENDPOINT_ID")
@click.option("--since", type=past_moment, metavar="TIME", help="With an endpoint: all that failed since then.")
@click.option("--until", type=past_moment, metavar="TIME", help="And before then.")
@click.option("--delivered", is_flag=True, help="Also what arrived.")
@with_client
def replay(client: Client, target: str, since: datetime | None, until: datetime | None, delivered: bool) -> None:
    """Send a delivery again, or all of an endpoint's that failed --since a time, such as 3h ago."""
    if since is None:
        if until is not None or delivered:
            raise click.UsageError("--until and --delivered go with --since")
        click.echo(f"{client.webhooks.replay(target).id} will be sent again")
        return
    count = client.webhooks.replay_since(target, since, until=until, delivered=delivered)
    click.echo(f"{count} deliveries will be sent again")


def _show_secret(endpoint: WebhookEndpoint, as_json: bool) -> None:
    if as_json:
        click.echo(endpoint.model_dump_json())
        return
    console_for("stderr").print(f"{endpoint.id}; this is its secret's only appearance:", style="dim")
    click.echo(endpoint.secret)


def _show(found: Iterable[Any], headings: Sequence[str], cells: Any, as_json: bool) -> None:
    console = console_for()
    rows = list(found)
    if as_json:
        for row in rows:
            click.echo(row.model_dump_json())
    elif console.is_terminal:
        table = Table(*headings, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(printable, cells(row)))
        console.print(table)
    else:
        for row in rows:
            click.echo("\t".join(map(printable, cells(row))))


def _show_detail(delivery: WebhookDelivery, as_json: bool) -> None:
    _show([delivery], _DELIVERY_HEADINGS, _delivery_cells, as_json)
    if as_json:
        return
    for tried in delivery.attempt_history:
        outcome = tried.error or f"{tried.status_code} {tried.response_body or ''}".rstrip()
        click.echo(printable(f"attempt {tried.number}: {tried.milliseconds} ms: {outcome}"))


def _endpoint_cells(endpoint: WebhookEndpoint) -> list[str]:
    return [endpoint.id, endpoint.url, " ".join(endpoint.events), _standing(endpoint)]


def _standing(endpoint: WebhookEndpoint) -> str:
    if endpoint.disabled_at is not None:
        return f"disabled: {endpoint.disabled_reason}"
    return f"{endpoint.failures} failures" if endpoint.failures else "well"


def _delivery_cells(delivery: WebhookDelivery) -> list[str]:
    queued = delivery.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return [delivery.id, delivery.type, delivery.job_id or "", delivery.status, str(delivery.attempts), queued]
