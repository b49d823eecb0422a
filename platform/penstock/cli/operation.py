"""`penstock workers` and `penstock dead-letters`: for operators' keys."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

import click

from penstock.cli.bulk import follow_to_its_end
from penstock.cli.options import with_client
from penstock.cli.render import print_rows
from penstock.client import Client, DeadLetter
from penstock.clock import iso

_REASON: Final = click.option("--reason", help="Why they were given up, such as engine_crashed.")
_MODEL: Final = click.option("--model", help="Of this model.")
_VERSION: Final = click.option("--version", help="Of this version of the model.")


@click.group()
def workers() -> None:
    """See the workers, and drain one."""


@workers.command("list")
@with_client
def list_workers(client: Client) -> None:
    """List the workers: what they host, what they run, and when they were last heard of."""
    print_rows(
        ("id", "status", "host", "device", "running", "slots", "heard", "hosts"),
        [
            (
                worker.id,
                worker.status,
                f"{worker.hostname}:{worker.pid}",
                worker.device,
                str(worker.running_jobs),
                str(worker.slots),
                f"{worker.silent_seconds:.0f} s ago",
                " ".join(f"{host['model_name']}:{host['model_version']}={host['status']}" for host in worker.hosts),
            )
            for worker in client.operation.workers()
        ],
    )


@workers.command()
@click.argument("worker_id")
@with_client
def drain(client: Client, worker_id: str) -> None:
    """Have a worker take no more jobs, finish or hand back those that it has, and end with status 76."""
    worker = client.operation.drain_worker(worker_id)
    click.echo(f"{worker.id} {worker.status}, {worker.running_jobs} running")


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at jobs that were given up; replay or discard them."""


@dead_letters.command()
@with_client
def groups(client: Client) -> None:
    """Count the open ones by reason and model version."""
    print_rows(
        ("count", "tenants", "reason", "model", "latest", "meaning"),
        [
            (
                str(group.count),
                str(group.tenants),
                group.reason,
                f"{group.model_name}:{group.model_version}",
                str(iso(group.latest_at)),
                group.meaning,
            )
            for group in client.operation.dead_letter_groups()
        ],
    )


@dead_letters.command("list")
@click.option("--status", type=click.Choice(["open", "replayed", "discarded"]), default="open", show_default=True)
@_REASON
@_MODEL
@_VERSION
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@with_client
def list_letters(client: Client, limit: int, **filters: Any) -> None:
    """List dead letters, newest first."""
    found = islice(client.operation.dead_letters(page_size=min(limit, 100), **filters), limit)
    print_rows(("id", "at", "reason", "model", "tenant", "job", "message"), [_row(letter) for letter in found])


@dead_letters.command()
@click.argument("letter_id")
@with_client
def show(client: Client, letter_id: str) -> None:
    """Show a dead letter with its job's story, as JSON."""
    click.echo(client.operation.dead_letter(letter_id).model_dump_json(indent=2))


@dead_letters.command()
@click.argument("letter_ids", nargs=-1, metavar="[LETTER_ID]...")
@_REASON
@_MODEL
@_VERSION
@with_client
def replay(client: Client, letter_ids: Sequence[str], **filters: Any) -> None:
    """Submit their jobs' requests again: of the letters that are named, or of all open ones that the filters name."""
    for letter in _settle(client, "replay", letter_ids, filters):
        click.echo(f"{letter.id} replayed as {letter.replay_job_id}")


@dead_letters.command()
@click.argument("letter_ids", nargs=-1, metavar="[LETTER_ID]...")
@_REASON
@_MODEL
@_VERSION
@with_client
def discard(client: Client, letter_ids: Sequence[str], **filters: Any) -> None:
    """Put away the letters that are named, or all open ones that the filters name."""
    for letter in _settle(client, "discard", letter_ids, filters):
        click.echo(f"{letter.id} discarded")


def _settle(client: Client, action: Any, letter_ids: Sequence[str], filters: dict[str, Any]) -> list[DeadLetter]:
    filtered = any(filters.values())
    if bool(letter_ids) == filtered:
        raise click.UsageError("name letters by their ids, or all of a group by --reason, --model and --version")
    if filtered:
        operation = client.operation.settle_dead_letters(action, **filters)
        click.echo(operation.id)
        follow_to_its_end(client, operation)
        return []
    one: dict[str, Callable[[str], DeadLetter]] = {
        "replay": client.operation.replay_dead_letter,
        "discard": client.operation.discard_dead_letter,
    }
    return [one[action](letter_id) for letter_id in letter_ids]


def _row(letter: DeadLetter) -> tuple[str, ...]:
    model = f"{letter.model_name}:{letter.model_version}"
    at = str(iso(letter.created_at))
    return letter.id, at, letter.reason, model, letter.tenant_id, letter.job_id, letter.message
