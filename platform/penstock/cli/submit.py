"""`penstock submit`."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from penstock.cli.failure import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, Failure
from penstock.cli.options import assignment, moment, with_client
from penstock.cli.render import console_for, summary, write_texts
from penstock.cli.sampling import params_of, read_text, sampling_options
from penstock.cli.watch import follow
from penstock.client import Client, Job, JobState, Message, PenstockError, Webhook


@click.command()
@click.argument("prompt", required=False)
@click.option("-m", "--model", required=True, help="name, name@alias or name:version.")
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the prompt from this file; repeated, it submits a job for each.",
)
@click.option(
    "--messages",
    metavar="FILE",
    help='Take messages from this JSON file, [{"role": ..., "content": ...}, ...]; - is stdin.',
)
@click.option("--chat", is_flag=True, help="Send the prompt as a user's message, through the model's chat template.")
@click.option("--system", metavar="TEXT", help="With --chat: a system message before it.")
@sampling_options
@click.option("--class", "job_class", type=click.Choice(["interactive", "batch"]), help="Interactive jobs go first.")
@click.option("--priority", type=click.IntRange(-100, 100), help="Higher goes first within its class.")
@click.option(
    "--deadline", type=moment, metavar="TIME", help="Expire at this time, such as 2030-01-31T12:00:00Z or 10m."
)
@click.option("--budget", "token_budget", type=click.IntRange(min=1), help="Most tokens, prompt and answers together.")
@click.option("--webhook", metavar="URL", help="Where the job's final event is sent.")
@click.option("--webhook-event", "webhook_events", multiple=True, help="Send this event instead; may be repeated.")
@click.option("--tag", "tags", multiple=True, help="May be repeated.")
@click.option("--metadata", multiple=True, type=assignment, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--wait", is_flag=True, help="Wait for the end and print what was written.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer than this; the job goes on."
)
@click.option("--watch", is_flag=True, help="Follow the job live.")
@click.option("--json", "as_json", is_flag=True, help="Print the job's document as JSON.")
@with_client
def submit(client: Client, wait: bool, watch: bool, timeout: float | None, as_json: bool, **given: Any) -> None:
    """Submit a job with PROMPT, a file's text, messages, or (without any of them) what standard input holds.

    Prints the job's id, or with --wait and --watch what it wrote; then the exit status tells whether it succeeded.
    """
    inputs = _inputs(given)
    if watch and (wait or len(inputs) > 1):
        raise click.UsageError("--watch follows one job; leave out --wait, and all but one --file")
    submitted: list[Job] = []
    for job in _submitted(client, inputs, _request(given)):
        submitted.append(job)
        if not (wait or watch):
            click.echo(job.to_json() if as_json else job.id)
    if watch:
        _exit([follow(client, submitted[0].id, as_json=as_json)])
    if wait:
        with _telling_ids(submitted):
            finished = _wait_for(client, submitted, timeout)
        _print_outputs(finished, given["files"], as_json)
        _exit([job.status for job in finished])


def _exit(states: Sequence[JobState]) -> NoReturn:
    sys.exit(0 if all(state is JobState.SUCCEEDED for state in states) else EXIT_FAILURE)


def _submitted(client: Client, inputs: Sequence[dict[str, Any]], request: dict[str, Any]) -> Iterator[Job]:
    """The jobs, one by one; when one is refused, those before it are told, for they go on."""
    submitted: list[Job] = []
    with _telling_ids(submitted):
        for source in inputs:
            submitted.append(client.jobs.submit(**source, **request))
            yield submitted[-1]


@contextmanager
def _telling_ids(submitted: Sequence[Job]) -> Iterator[None]:
    """Whatever ends the command early, jobs that were submitted go on, so their ids must be known."""
    try:
        yield
    except (PenstockError, KeyboardInterrupt) as error:
        ids = " ".join(job.id for job in submitted)
        if ids:
            click.echo(f"submitted, and going on: {ids}", err=True)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
        raise


def _inputs(given: dict[str, Any]) -> list[dict[str, Any]]:
    """What each job's `submit` gets: `prompt` or `messages`."""
    sources = [name for name in ("prompt", "files", "messages") if given[name]]
    if len(sources) > 1:
        raise click.UsageError("give one of PROMPT, --file and --messages")
    if given["system"] is not None and not given["chat"]:
        raise click.UsageError("--system needs --chat")
    if given["messages"]:
        if given["chat"]:
            raise click.UsageError("--messages is a chat already; leave out --chat")
        return [{"messages": _read_messages(given["messages"])}]
    return [_as_input(prompt, given) for prompt in _prompts(given)]


def _prompts(given: dict[str, Any]) -> list[str]:
    if given["files"]:
        return [read_text(path) for path in given["files"]]
    if given["prompt"] and given["prompt"] != "-":
        return [given["prompt"]]
    if sys.stdin.isatty():
        raise click.UsageError("give a PROMPT, a --file or --messages, or send the prompt to standard input")
    return [sys.stdin.read()]


def _as_input(prompt: str, given: dict[str, Any]) -> dict[str, Any]:
    if not given["chat"]:
        return {"prompt": prompt}
    system: list[Message] = [] if given["system"] is None else [{"role": "system", "content": given["system"]}]
    return {"messages": [*system, {"role": "user", "content": prompt}]}


def _request(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": given["model"],
        "params": params_of(given),
        "job_class": given["job_class"],
        "priority": given["priority"],
        "deadline": given["deadline"],
        "token_budget": given["token_budget"],
        "webhook": _webhook(given["webhook"], given["webhook_events"]),
        "tags": given["tags"] or None,
        "metadata": dict(given["metadata"]) or None,
    }


def _webhook(url: str | None, events: Sequence[str]) -> Webhook | None:
    if url is None:
        if events:
            raise click.UsageError("--webhook-event needs --webhook")
        return None
    return {"url": url, "events": list(events)} if events else {"url": url}


def _read_messages(name: str) -> list[Message]:
    text = sys.stdin.read() if name == "-" else read_text(Path(name))
    try:
        messages = json.loads(text)
    except ValueError as error:
        raise Failure(f"{name} is not JSON: {error}", EXIT_USAGE) from None
    if not isinstance(messages, list):
        raise Failure(f'{name} must hold a JSON array such as [{{"role": "user", "content": "..."}}]', EXIT_USAGE)
    return messages


def _wait_for(client: Client, submitted: list[Job], timeout: float | None) -> list[Job]:
    finished = []
    with _progress() as bar:
        task = bar.add_task("waiting", total=len(submitted))
        for job in submitted:
            finished.append(client.jobs.wait(job.id, timeout))
            bar.advance(task)
    return finished


def _progress() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = console_for("stderr")
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _print_outputs(finished: list[Job], files: Sequence[Path], as_json: bool) -> None:
    out, notes = console_for(), console_for("stderr")
    for index, job in enumerate(finished):
        if as_json:
            click.echo(job.to_json())
            continue
        if len(finished) > 1:
            notes.print(f"{files[index]}:")
        write_texts(out, job.texts)
        notes.print(summary(job), style="dim")
