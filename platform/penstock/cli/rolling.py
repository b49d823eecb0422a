"""The commands of `penstock rollout` that ask a server, with an operator's key."""

import json
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from rich.live import Live

from penstock.cli.failure import EXIT_FAILURE, EXIT_INTERRUPTED, Failure
from penstock.cli.options import with_client
from penstock.cli.render import console_for, print_rows, printable
from penstock.cli.rollout_view import line_of, view_of
from penstock.client import Client, Flip, Rollout
from penstock.clock import iso

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_REASON: Final = click.option("--reason", required=True, help="Why; it stands in the ledger.")
_LIMIT: Final = click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most so many."
)
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@click.command()
@click.argument("model")
@click.argument("version")
@click.option(
    "--policy", type=_FILE, help="A policy of YAML or JSON.  [default: the model's own, or else the default one]"
)
@click.option("--reason", help="Why; it stands in the ledger.")
@click.option("--watch", "watched", is_flag=True, help="Follow it to its end.")
@with_client
def start(client: Client, model: str, version: str, policy: Path | None, reason: str | None, watched: bool) -> None:
    """Let VERSION of MODEL earn its place against the champion; prints the rollout's id."""
    document = None if policy is None else read_document(policy)
    rollout = client.rollouts.start(model, version, policy=document, reason=reason)
    click.echo(rollout.id)
    if watched:
        _follow(client, rollout.id)


@click.command("list")
@click.option("--model", help="Of this model.")
@click.option("--status", help="In this state, such as canary.")
@_LIMIT
@with_client
def list_rollouts(client: Client, limit: int, **filters: Any) -> None:
    """List rollouts, newest first."""
    found = islice(client.rollouts.list(page_size=min(limit, 100), **filters), limit)
    rows = [
        (
            each.id,
            each.model,
            f"{each.candidate.version} against {each.champion.version}",
            f"{each.status} step {each.step + 1}" if each.status == "canary" else each.status,
            f"{each.share:.0%}",
            str(iso(each.entered_at)),
        )
        for each in found
    ]
    print_rows(("id", "model", "versions", "stands", "share", "since"), rows)


@click.command()
@click.argument("rollout_id")
@_JSON
@with_client
def show(client: Client, rollout_id: str, as_json: bool) -> None:
    """Show where a rollout stands: its course, what its gate has seen, why it holds, and who moved it."""
    rollout = client.rollouts.get(rollout_id)
    if as_json:
        click.echo(rollout.model_dump_json(indent=2))
    else:
        console_for().print(view_of(rollout))


@click.command()
@click.argument("rollout_id")
@with_client
def watch(client: Client, rollout_id: str) -> None:
    """Follow a rollout to its end. The exit status tells whether it was promoted."""
    _follow(client, rollout_id)


def _mover(name: str, doing: str, ask: Callable[[Client], Callable[[str, str], Rollout]]) -> click.Command:
    @click.argument("rollout_id")
    @_REASON
    @with_client
    def command(client: Client, rollout_id: str, reason: str) -> None:
        click.echo(line_of(ask(client)(rollout_id, reason)))

    command.__doc__ = doing
    return click.command(name)(command)


pause: Final = _mover("pause", "Send every new job to the champion, until it is resumed.", lambda c: c.rollouts.pause)
resume: Final = _mover("resume", "Go on where it was paused.", lambda c: c.rollouts.resume)
abort: Final = _mover("abort", "End it without a verdict. The champion serves.", lambda c: c.rollouts.abort)
rollback: Final = _mover(
    "rollback", "Reject the candidate, or take it back; also after it was promoted.", lambda c: c.rollouts.roll_back
)
promote: Final = _mover(
    "promote", "Let it pass the gate, or the step, where it stands, whatever was proven.", lambda c: c.rollouts.promote
)


@click.command()
@click.option("--model", help="Of this model.")
@click.option("--rollout", "rollout_id", help="Of this rollout.")
@_LIMIT
@_JSON
@with_client
def decisions(client: Client, limit: int, as_json: bool, **filters: Any) -> None:
    """Show the ledger, newest first: who made each move, by which policy, and why."""
    found = list(islice(client.rollouts.decisions(page_size=min(limit, 100), **filters), limit))
    if as_json:
        for decision in found:
            click.echo(decision.model_dump_json())
        return
    rows = [
        (
            str(iso(each.decided_at)),
            each.model,
            each.rollout_id or "by hand",
            f"{each.number} {each.move}",
            f"{each.from_status or each.from_version or 'nothing'} to {each.to_status or each.to_version or 'nothing'}",
            each.actor["name"],
            each.reason or (each.judgement.reasons[0].text if each.judgement else ""),
        )
        for each in found
    ]
    print_rows(("at", "model", "rollout", "move", "from, to", "who", "why"), rows)


@click.command()
@click.argument("rollout_id")
@click.option("--arm", type=click.Choice(["champion", "candidate"]), help="Of this version.")
@click.option("--status", help="In this state, such as failed.")
@click.option("--rerouted", is_flag=True, default=None, help="Those alone that its end sent to the champion.")
@_LIMIT
@_JSON
@with_client
def jobs(client: Client, rollout_id: str, limit: int, as_json: bool, **filters: Any) -> None:
    """Show the jobs that its decisions rest on, newest first: each one's arm, and what came of it."""
    found = list(islice(client.rollouts.jobs(rollout_id, page_size=min(limit, 100), **filters), limit))
    if as_json:
        for each in found:
            click.echo(each.model_dump_json())
        return
    rows = [
        (
            each.job_id,
            each.arm or "",
            f"{each.stage} step {(each.step or 0) + 1}" if each.stage == "canary" else each.stage or "",
            each.version,
            f"{each.status}: {each.error}" if each.error else each.status,
            "rerouted" if each.rerouted else "",
            str(iso(each.counted_at) or ""),
        )
        for each in found
    ]
    print_rows(("job", "arm", "gate", "version", "status", "rerouted", "counted"), rows)


@click.command()
@click.argument("rollout_id")
@click.option("--order", type=click.Choice(["divergence", "disagreement", "newest"]), default="divergence")
@click.option("--limit", default=5, show_default=True, type=click.IntRange(1, 100), help="At most so many.")
@_JSON
@with_client
def flips(client: Client, rollout_id: str, order: Any, limit: int, as_json: bool) -> None:
    """Show the answers on which the versions differ most. They hold customers' text; that you read them is recorded."""
    for flip in client.rollouts.flips(rollout_id, order=order, limit=limit):
        click.echo(flip.model_dump_json() if as_json else _flip(flip))


@click.command("get")
@click.argument("model")
@with_client
def get_policy(client: Client, model: str) -> None:
    """Print MODEL's policy as JSON."""
    found = client.rollouts.policy(model)
    click.echo(f"number {found.number}, version {found.version}", err=True)
    click.echo(json.dumps(found.policy, indent=2))


@click.command("set")
@click.argument("model")
@click.argument("file", type=_FILE)
@click.option("--reason", help="Why; it stands in the record.")
@with_client
def set_policy(client: Client, model: str, file: Path, reason: str | None) -> None:
    """Let FILE, of YAML or JSON, be the policy of MODEL's rollouts that start from now on."""
    found = client.rollouts.set_policy(model, read_document(file), reason=reason)
    click.echo(f"number {found.number}, version {found.version}")


def read_document(file: Path) -> dict[str, Any]:
    """The policy in a file. Where the platform is installed it is checked here; else it must be JSON."""
    text = file.read_text()
    try:
        from penstock.rollouts.policy import read_policy
    except ModuleNotFoundError:
        return _read_json(text, file)
    return read_policy(text).model_dump(mode="json")


def _read_json(text: str, file: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError:
        raise Failure(f"{file} is not JSON; to read YAML: pip install 'penstock[platform]'", 2) from None
    return document


def _follow(client: Client, rollout_id: str) -> None:
    try:
        end = _shown(client, rollout_id)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0 if end == "promoted" else EXIT_FAILURE)


def _shown(client: Client, rollout_id: str) -> str:
    """Its state at the end. A live view on a terminal; elsewhere a line whenever something has changed."""
    console, last, status = console_for(), "", ""
    if not console.is_terminal:
        for rollout in client.rollouts.follow(rollout_id):
            line, status = line_of(rollout), rollout.status
            if line != last:
                click.echo(line)
            last = line
        return status
    with Live(console=console, auto_refresh=False) as live:
        for rollout in client.rollouts.follow(rollout_id):
            live.update(view_of(rollout), refresh=True)
            status = rollout.status
    return status


def _flip(flip: Flip) -> str:
    parting = flip.parting or flip.worst
    likely = {
        side: ", ".join(f"{token['text']!r} {token['probability']:.0%}" for token in parting[side][:3])
        for side in ("reference", "candidate")
    }
    return printable(
        f"{flip.job}  mean KL {flip.mean_kld:.4f}, {flip.disagreement:.1%} of {flip.tokens} tokens differ\n"
        f"  ...{parting['before'][-60:]}[{parting['token']['text']}]{parting['after'][:40]}...\n"
        f"  champion:  {likely['reference']}\n  candidate: {likely['candidate']}"
    )
