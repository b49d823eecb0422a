"""`penstock batch`: files of requests, run as there is room for them."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from penstock.cli.failure import EXIT_FAILURE, EXIT_INTERRUPTED, Failure
from penstock.cli.options import assignment, moment, with_client
from penstock.cli.render import console_for, printable
from penstock.client import Batch, Client

_json: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_watch: Final = click.option("--watch", is_flag=True, help="Follow it to its end.")
_MOST_ERRORS_SHOWN: Final = 10


@click.group()
def batch() -> None:
    """Run files of requests, a line each, in the background."""


@batch.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--endpoint", help="Where the lines would be sent.  [default: the first line's url]")
@click.option("--window", "completion_window", default="24h", show_default=True, help="How long it may take.")
@click.option("--deadline", type=moment, metavar="TIME", help="When it expires, if that comes before.")
@click.option("--priority", type=click.IntRange(-100, 100), help="Higher goes first within the class batch.")
@click.option("--skip-invalid", is_flag=True, help="Run the good lines where others are wrong.")
@click.option("--metadata", multiple=True, type=assignment, metavar="NAME=VALUE", help="May be repeated.")
@_watch
@_json
@with_client
def submit(
    client: Client,
    file: Path,
    skip_invalid: bool,
    metadata: Sequence[tuple[str, str]],
    watch: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Upload FILE, JSON Lines of requests, and make a batch of it. Prints the batch's id."""
    made = client.batches.submit(
        file,
        invalid_lines="skip" if skip_invalid else None,
        metadata=dict(metadata) or None,
        **options,
    )
    _made(client, made, watch, as_json)


@batch.command()
@click.argument("batch_id")
@_json
@with_client
def get(client: Client, batch_id: str, as_json: bool) -> None:
    """Show a batch: where its lines stand, and when it will be through."""
    _show([client.batches.get(batch_id)], as_json)


@batch.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@_json
@with_client
def list_(client: Client, limit: int, as_json: bool) -> None:
    """List batches, newest first."""
    _show(islice(client.batches.list(page_size=min(limit, 100)), limit), as_json)


@batch.command()
@click.argument("batch_id")
@with_client
def watch(client: Client, batch_id: str) -> None:
    """Follow a batch to its end. The exit status tells whether every line succeeded."""
    _follow(client, batch_id)


@batch.command()
@click.argument("batch_id")
@click.option("--after", default=0, type=click.IntRange(min=0), help="Leave out so many that were read before.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the output file there.")
@with_client
def results(client: Client, batch_id: str, after: int, output: Path | None) -> None:
    """Print what came of the lines that have finished, as JSON Lines, in the order in which they did.

    With --output, of a batch that has ended: its output file, in the order of the input.
    """
    if output is None:
        for result in client.batches.results(batch_id, after=after):
            click.echo(result.model_dump_json())
        return
    found = client.batches.get(batch_id)
    if found.output_file_id is None:
        raise Failure(f"{batch_id} is {found.status} and has no output file")
    client.files.download(found.output_file_id, output)


@batch.command("retry-failed")
@click.argument("batch_id")
@click.option("--custom-id", "custom_ids", multiple=True, help="Only this line; may be repeated.")
@_watch
@_json
@with_client
def retry_failed(client: Client, batch_id: str, custom_ids: Sequence[str], watch: bool, as_json: bool) -> None:
    """Make a new batch of the lines that failed, expired or were cancelled. Prints its id."""
    _made(client, client.batches.retry(batch_id, custom_ids=custom_ids or None), watch, as_json)


@batch.command()
@click.argument("batch_id")
@_json
@with_client
def pause(client: Client, batch_id: str, as_json: bool) -> None:
    """Begin no more of a batch's lines; what runs goes on."""
    _show([client.batches.pause(batch_id)], as_json)


@batch.command()
@click.argument("batch_id")
@_json
@with_client
def resume(client: Client, batch_id: str, as_json: bool) -> None:
    """Go on with a paused batch."""
    _show([client.batches.resume(batch_id)], as_json)


@batch.command()
@click.argument("batch_id")
@click.argument("priority", type=click.IntRange(-100, 100))
@_json
@with_client
def prioritize(client: Client, batch_id: str, priority: int, as_json: bool) -> None:
    """Give a batch another PRIORITY (put -- before a negative one)."""
    _show([client.batches.change(batch_id, priority=priority)], as_json)


@batch.command()
@click.argument("batch_id")
@_json
@with_client
def cancel(client: Client, batch_id: str, as_json: bool) -> None:
    """Stop a batch; what has finished is kept."""
    _show([client.batches.cancel(batch_id)], as_json)


def _made(client: Client, made: Batch, watch: bool, as_json: bool) -> None:
    click.echo(made.model_dump_json() if as_json else made.id)
    if watch:
        _follow(client, made.id)


def _follow(client: Client, batch_id: str) -> NoReturn:
    try:
        ended = _watched(client, batch_id)
    except KeyboardInterrupt:
        click.echo(f"stopped watching; the batch goes on. Again: penstock batch watch {batch_id}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    _tell_end(ended)
    sys.exit(0 if ended.status == "completed" and ended.lines.succeeded == ended.lines.total else EXIT_FAILURE)


def _watched(client: Client, batch_id: str) -> Batch:
    """The batch once it has ended, a bar moving until then."""
    with _progress() as bar:
        task = bar.add_task("validating", total=None)
        for now in client.batches.follow(batch_id):
            bar.update(task, description=_standing(now), completed=now.lines.done, total=now.lines.total or None)
    return now


def _progress() -> Progress:
    console = console_for("stderr")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _standing(batch: Batch) -> str:
    failed = batch.lines.done - batch.lines.succeeded
    parts = [
        batch.status,
        f"{failed} failed" if failed else "",
        f"waits: {batch.blocker['message']}" if batch.blocker else "",
        f"done about {_clock(batch.eta)}" if batch.eta else "",
    ]
    return printable(", ".join(part for part in parts if part))


def _clock(when: datetime) -> str:
    return when.astimezone().strftime("%a %H:%M")


def _tell_end(ended: Batch) -> None:
    notes = console_for("stderr")
    lines = ended.lines
    others = [
        f"{count} {name}" for name in ("failed", "invalid", "expired", "cancelled") if (count := getattr(lines, name))
    ]
    notes.print(printable(", ".join([f"{ended.status}: {lines.succeeded} of {lines.total} succeeded", *others])))
    for error in (ended.errors or {}).get("data", [])[:_MOST_ERRORS_SHOWN]:
        place = f"line {error['line']}" if error["line"] else "the file"
        notes.print(printable(f"{place}: {error['param'] or ''}: {error['message']}"))
    for name, file_id in (("output", ended.output_file_id), ("errors", ended.error_file_id)):
        if file_id is not None:
            notes.print(f"{name}: {file_id}")


def _show(batches: Iterable[Batch], as_json: bool) -> None:
    for one in batches:
        if as_json:
            click.echo(one.model_dump_json())
        else:
            click.echo("\t".join((one.id, f"{one.lines.done}/{one.lines.total}", _standing(one))))
