"""`penstock replay`: stored jobs against another version, followed to the end; `penstock replays` looks at them."""

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from penstock.cli.failure import EXIT_FAILURE, EXIT_INTERRUPTED
from penstock.cli.options import past_moment, with_client
from penstock.cli.render import console_for, printable
from penstock.client import Client, Replay
from penstock.clock import utc_now
from penstock.replay.markdown import markdown_of

_DAYS = {"today": 0, "yesterday": 1}
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")


def moment(text: str) -> datetime:
    """`today` and `yesterday` begin at midnight (UTC); else a time, or a duration counting backwards from now."""
    if text not in _DAYS:
        return past_moment(text)
    now = utc_now().astimezone(UTC)
    return now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=_DAYS[text])


@click.command()
@click.option("--model", required=True, help="The version to try: name@challenger or name:version.")
@click.option("--against", help="The version whose jobs are replayed: name@champion, the default, or name:version.")
@click.option("--from", "since", type=moment, metavar="TIME", help="Jobs that ended since: yesterday, 12h, or a time.")
@click.option("--until", type=moment, metavar="TIME", help="Jobs that ended before.")
@click.option("--mode", type=click.Choice(["teacher", "free", "both"]), default="teacher", show_default=True)
@click.option("--tenant", help="Jobs of the tenant with this id.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="The newest so many.")
@click.option("--detach", is_flag=True, help="Print the replay's id and do not wait for its end.")
@_as_json
@with_client
def replay(client: Client, model: str, detach: bool, as_json: bool, **asked: Any) -> None:
    """Run stored jobs against another version.

    It does so when nothing else waits, and then prints what becomes different.

    teacher: both versions score the stored answers. free: the version that is tried answers anew.
    """
    begun = client.replays.begin(model, **asked)
    if detach:
        click.echo(begun.id)
        return
    click.echo(begun.id, err=True)
    try:
        ended = _watched(client, begun.id)
    except KeyboardInterrupt:
        click.echo(f"stopped watching; {begun.id} goes on: penstock replays show {begun.id}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    _print_report(client, begun.id, as_json)
    if ended.status != "completed":
        sys.exit(EXIT_FAILURE)


@click.group()
def replays() -> None:
    """See replays of stored jobs, and cancel one."""


@replays.command("list")
@with_client
def list_(client: Client) -> None:
    """List replays, newest first."""
    for each in client.replays.list():
        versions = f"{each.model}: {each.candidate} on jobs of {each.reference}"
        counts = f"{each.done} done, {each.lost} lost of {each.total}"
        click.echo(printable(f"{each.id}  {each.status:<9}  {each.mode:<7}  {versions}  {counts}"))


@replays.command()
@click.argument("replay_id")
@_as_json
@with_client
def show(client: Client, replay_id: str, as_json: bool) -> None:
    """Print what a replay has found so far."""
    _print_report(client, replay_id, as_json)


@replays.command()
@click.argument("replay_id")
@with_client
def cancel(client: Client, replay_id: str) -> None:
    """Compare no more jobs; what was found stays."""
    ended = client.replays.cancel(replay_id)
    click.echo(f"{ended.id} {ended.status}")


def _print_report(client: Client, replay_id: str, as_json: bool) -> None:
    report = client.replays.report(replay_id)
    click.echo(json.dumps(report, indent=2) if as_json else printable(markdown_of(report)), nl=as_json)


def _watched(client: Client, replay_id: str) -> Replay:
    console = console_for("stderr")
    text, count = TextColumn("{task.description}"), MofNCompleteColumn()
    columns = (SpinnerColumn(), text, BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("gathering", total=None)
        for now in client.replays.follow(replay_id):
            bar.update(task, description=now.status, completed=now.done + now.lost, total=now.total or None)
    return now
