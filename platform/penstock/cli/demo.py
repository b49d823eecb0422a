"""`penstock demo`: the whole platform in a folder of its own, real invoices through it, and all stopped again."""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from penstock.cli.demo_model import MODEL, assets, await_model
from penstock.cli.demo_rollout import rollout
from penstock.client import Client, Job, Message, Params, TokenEvent, verify_webhook
from penstock.client.webhooks import WebhookEvent
from penstock.embedded.errors import EmbeddedError
from penstock.embedded.platform import Platform
from penstock.errors import PenstockError

_PARAMS: Final[Params] = {"temperature": 0.0, "max_tokens": 128}
_JOB_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Sample:
    """An invoice, and the right answer to the letter."""

    name: str
    text: str
    answer: str


@dataclass(frozen=True)
class Outcome:
    """What became of one sample; `door` is how its answer came."""

    sample: Sample
    job: Job
    door: str

    @property
    def exact(self) -> bool:
        return self.job.text == self.sample.answer


@dataclass
class Receiver:
    """Our own endpoint: keeps each webhook whose signature is right, and counts those whose signature is not."""

    secret: str
    url: str = ""
    refused: int = 0
    events: dict[str, WebhookEvent] = field(default_factory=dict)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """The HTTP status to answer with."""
        with self.arrived:
            try:
                event = verify_webhook(headers, body, self.secret)
            except PenstockError:
                self.refused += 1
                return 401
            self.events[event.data.id] = event
            self.arrived.notify_all()
            return 204

    def wait_for(self, job_id: str, seconds: float) -> WebhookEvent | None:
        """The job's webhook, or None when it has not come in time."""
        with self.arrived:
            self.arrived.wait_for(lambda: job_id in self.events, timeout=seconds)
            return self.events.get(job_id)


@click.group(invoke_without_command=True)
@click.option("--jobs", default=12, show_default=True, type=click.IntRange(8), help="How many invoices to submit.")
@click.option("--verbose", is_flag=True, help="Tell what each service does while it starts.")
@click.pass_context
def demo(context: click.Context, jobs: int, verbose: bool) -> None:
    """Start everything on embedded services, run real invoices through it, stop everything.

    Some answers are polled, one is watched as a stream, one comes by a signed webhook.
    """
    if context.invoked_subcommand is not None:
        return
    console = Console()
    samples = _samples(jobs)
    with tempfile.TemporaryDirectory(prefix="penstock-demo-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # under root the database runs as another user, who must get through
        try:
            outcomes, signed = _run(console, Path(folder) / "state", samples, verbose)
        except EmbeddedError as error:
            raise click.ClickException(error.message) from error
    _show(console, outcomes)
    succeeded = sum(outcome.job.status == "succeeded" for outcome in outcomes)
    exact = sum(outcome.exact for outcome in outcomes)
    versions = ", ".join(sorted({outcome.job.model_version for outcome in outcomes}))
    console.out(
        f"demo: {len(outcomes)} jobs, {succeeded} succeeded, {exact} exact, version {versions}", highlight=False
    )
    sys.exit(0 if succeeded == len(outcomes) and signed else 1)


def _run(console: Console, state_dir: Path, samples: list[Sample], verbose: bool) -> tuple[list[Outcome], bool]:
    started = time.monotonic()
    with console.status("Starting the platform") as status:

        def report(service: str, line: str) -> None:
            status.update(f"Starting the platform: {service} {line}")
            if verbose:
                console.out(f"{service:>9}  {line}", highlight=False)

        platform = Platform(
            state_dir,
            models={MODEL: assets() / "model"},
            settings={"webhook_allow_loopback": "true", "environment": "demo"},
            report=report,
        )
        with platform:
            assert platform.bootstrap is not None  # the folder is new
            with Client(platform.url, platform.bootstrap.api_key) as client:
                status.update(f"Waiting for a worker to load {MODEL}")
                await_model(client)
                console.print(f"The platform is up at {platform.url} after {time.monotonic() - started:.1f} s.")
                status.stop()
                outcomes, signed = _submit_all(console, client, samples)
            status.update("Stopping the platform")
            status.start()
    return outcomes, signed


def _submit_all(console: Console, client: Client, samples: list[Sample]) -> tuple[list[Outcome], bool]:
    """The first sample is watched, the second comes by webhook, the others are polled; all run side by side."""
    watched, hooked, *polled = samples
    with _receiver(client.webhook_secret()) as receiver:
        hooked_job = _submit(client, hooked, webhook=receiver.url)
        polled_jobs = [_submit(client, sample) for sample in polled]
        outcomes = [Outcome(watched, _watch(console, client, _submit(client, watched)), "stream")]
        event = receiver.wait_for(hooked_job.id, _JOB_SECONDS)
        signed = event is not None and receiver.refused == 0
        console.print(f"webhook {event.type}: signature right" if event and signed else "[red]no signed webhook came")
        told = event.data if event is not None and isinstance(event.data, Job) else client.jobs.get(hooked_job.id)
        outcomes.append(Outcome(hooked, told, "webhook"))
    for sample, job in zip(polled, polled_jobs, strict=True):
        outcomes.append(Outcome(sample, client.jobs.wait(job.id, timeout=_JOB_SECONDS), "poll"))
    return outcomes, signed


def _submit(client: Client, sample: Sample, webhook: str | None = None) -> Job:
    message: Message = {"role": "user", "content": sample.text}
    return client.jobs.submit(model=MODEL, messages=[message], params=_PARAMS, webhook=webhook, tags=["demo"])


def _watch(console: Console, client: Client, job: Job) -> Job:
    """Print the job's tokens as they come, and return it as its final event brings it."""
    console.print(f"Watching {job.id} as a stream:")
    console.print("  ", end="")
    for event in client.jobs.stream(job.id):
        if isinstance(event, TokenEvent):
            console.out(event.text, end="", highlight=False)
        elif event.job is not None:
            console.print()
            return event.job
    raise click.ClickException(f"the stream of {job.id} ended without a final event")


@contextmanager
def _receiver(secret: str) -> Iterator[Receiver]:
    receiver = Receiver(secret)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(receiver.take(dict(self.headers), body))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the demo tells what came."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/invoices"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _show(console: Console, outcomes: list[Outcome]) -> None:
    """A line of figures and the answer for each invoice; no table, so that it reads the same at any width."""
    for outcome in outcomes:
        job = outcome.job
        console.out(
            f"invoice {outcome.sample.name}  {outcome.door:<7}  version {job.model_version}"
            f"  first token {_milliseconds(job, job.first_token_at)}  total {_milliseconds(job, job.finished_at)}"
            f"  {'exact' if outcome.exact else 'not exact, expected ' + outcome.sample.answer}",
            highlight=False,
        )
        console.out(f"  {job.text or job.error}", highlight=False)


def _milliseconds(job: Job, moment: datetime | None) -> str:
    """From submit, by the database's clock."""
    return f"{(moment - job.created_at).total_seconds() * 1000:5.0f} ms" if moment else "-"


def _samples(count: int) -> list[Sample]:
    folder = assets() / "samples"
    paths = sorted(folder.glob("*.txt"))
    if len(paths) < count:
        raise click.ClickException(f"{folder} holds {len(paths)} invoices: ask for at most so many with --jobs")
    return [Sample(path.stem, path.read_text(), _answer(path)) for path in paths[:count]]


def _answer(path: Path) -> str:
    answer = path.with_suffix(".json").read_text().strip()
    json.loads(answer)  # a sample whose answer is no JSON would count every model as wrong
    return answer


demo.add_command(rollout)
