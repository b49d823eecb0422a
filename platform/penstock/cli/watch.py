"""`penstock watch`: a job's tokens and state events as they come."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from penstock.cli.failure import EXIT_FAILURE, EXIT_INTERRUPTED
from penstock.cli.options import with_client
from penstock.cli.render import (
    console_for,
    printable,
    queue_words,
    seconds_between,
    state_text,
    summary,
    timeline_note,
    write_text,
)
from penstock.client import Client, Event, Job, JobState, PenstockError, Queue, StateEvent, TokenEvent

_FRAMES_PER_SECOND = 12
_LOOK_SECONDS = 2.0
_OTHER_LINES = 6


@click.command()
@click.argument("job_id")
@click.option("--after", "last_event_id", metavar="EVENT_ID", help="Begin after this event, such as 3.57.")
@click.option("--json", "as_json", is_flag=True, help="Print every event as JSON, one a line.")
@with_client
def watch(client: Client, job_id: str, last_event_id: str | None, as_json: bool) -> None:
    """Follow a job live, from its beginning to its end; a lost connection is made again where it broke.

    On a terminal it shows a live view; elsewhere it writes the text as it comes. The exit status tells whether the job
    succeeded.
    """
    state = follow(client, job_id, last_event_id, as_json=as_json)
    sys.exit(0 if state is JobState.SUCCEEDED else EXIT_FAILURE)


def follow(client: Client, job_id: str, last_event_id: str | None = None, *, as_json: bool) -> JobState:
    """Show the job's stream to its end; returns how it ended. Ctrl-C ends the process, not the job."""
    job = client.jobs.get(job_id)
    view = View(job, queue=job.queue)
    notes = console_for("stderr")

    def on_lost(error: PenstockError) -> None:
        view.trouble = error.message
        if not console_for().is_terminal:
            notes.print(f"connection lost, trying again: {printable(error.message)}", style="dim")

    events = view.follow(client.jobs.stream(job_id, last_event_id, on_lost=on_lost))
    try:
        _show(view, events, as_json, notes, lambda: client.jobs.get(job_id).queue)
    except KeyboardInterrupt:
        notes.print(f"\nstopped watching; the job goes on. Again: penstock watch {job_id}")
        sys.exit(EXIT_INTERRUPTED)
    finished = view.job if view.job.finished else client.jobs.get(job_id)
    if not as_json:
        notes.print(summary(finished), style="dim")
    return finished.status


@dataclass(slots=True)
class View:
    """What is known of a watched job. `follow` fills it; the rest draws it."""

    job: Job
    state: JobState = JobState.QUEUED
    timeline: list[StateEvent] = field(default_factory=list)
    texts: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    tokens: int = 0
    trouble: str | None = None
    queue: Queue | None = None
    looked_at: float = field(default_factory=time.monotonic)

    def look(self, ask: Callable[[], Queue | None]) -> None:
        """Ask where the job stands, every two seconds while it waits. A failure is the stream's to tell."""
        if self.state is not JobState.QUEUED or time.monotonic() - self.looked_at < _LOOK_SECONDS:
            return
        with suppress(PenstockError):
            self.queue = ask()
        self.looked_at = time.monotonic()

    def follow(self, events: Iterator[Event]) -> Iterator[Event]:
        """The same events, each taken note of."""
        for event in events:
            self.trouble = None
            if isinstance(event, TokenEvent):
                self.tokens += event.token_id is not None
                self.texts.setdefault(event.choice, []).append((event.position, event.text))
            else:
                self._note_state(event)
            yield event

    def choices(self) -> list[str]:
        """What each choice has written so far."""
        return ["".join(text for _, text in self.texts[index]) for index in sorted(self.texts)]

    def text(self) -> str:
        """What the choices have written so far, one after the other."""
        return "\n\n".join(self.choices())

    def _note_state(self, event: StateEvent) -> None:
        self.timeline.append(event)
        if event.type == "output.rewound":
            self._rewind(event.data["position"])
        name = {"job.requeued": "queued"}.get(event.type, event.type.removeprefix("job."))
        if name in set(JobState):
            self.state = JobState(name)
        if event.job is not None:
            self.job = event.job

    def _rewind(self, position: int) -> None:
        for choice, pieces in self.texts.items():
            self.texts[choice] = [piece for piece in pieces if piece[0] < position]


def _show(view: View, events: Iterator[Event], as_json: bool, notes: Console, ask: Callable[[], Queue | None]) -> None:
    out = console_for()
    if as_json:
        for event in events:
            click.echo(json.dumps(_document(event), ensure_ascii=False, default=_plain))
    elif out.is_terminal:
        _show_live(view, events, out, ask)
    else:
        _write_through(view, events, out, notes)


def _show_live(view: View, events: Iterator[Event], out: Console, ask: Callable[[], Queue | None]) -> None:
    spinner = Spinner("dots")

    def draw() -> RenderableType:
        view.look(ask)
        return _frame(view, spinner, out)

    with Live(
        console=out,
        get_renderable=draw,
        refresh_per_second=_FRAMES_PER_SECOND,
        transient=True,
    ):
        for _ in events:
            pass
    out.print(_timeline(view))
    write_text(out, view.text())


def _write_through(view: View, events: Iterator[Event], out: Console, notes: Console) -> None:
    """The first choice to standard output as it comes, the others at the end (they would mix); states to the other."""
    if view.queue is not None:
        notes.print(queue_words(view.queue), style="dim")
    for event in events:
        if isinstance(event, StateEvent):
            notes.print(f"{event.type} {timeline_note(event.data)}", style="dim")
        elif event.choice == 0:
            write_text(out, event.text, end="")
            out.file.flush()
    write_text(out, "".join(f"\n\n{text}" for text in view.choices()[1:]))


def _frame(view: View, spinner: Spinner, out: Console) -> RenderableType:
    head = Table.grid(padding=(0, 2))
    model = printable(f"{view.job.model_name} version {view.job.model_version}")
    head.add_row(spinner, Text(view.job.id, style="bold"), state_text(view.state), model, f"{view.tokens} tokens")
    parts: list[RenderableType] = [head, _timeline(view)]
    if view.state is JobState.QUEUED and view.queue is not None:
        parts.append(Text(queue_words(view.queue), style="yellow"))
    if view.trouble is not None:
        parts.append(Text(f"connection lost, trying again: {printable(view.trouble)}", style="yellow"))
    room = max(out.height - len(view.timeline) - _OTHER_LINES, 3)
    lines = Text(printable(view.text())).wrap(out, out.width)
    return Group(*parts, Text(), *lines[-room:])


def _timeline(view: View) -> Table:
    table = Table.grid(padding=(0, 2))
    for event in view.timeline:
        at = seconds_between(view.job.created_at, event.created_at)
        table.add_row(Text(f"+{at}", style="dim"), event.type, Text(timeline_note(event.data), style="dim"))
    return table


def _document(event: Event) -> dict[str, Any]:
    if isinstance(event, TokenEvent):
        return {"type": "output.delta"} | dataclasses.asdict(event)
    return {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}


def _plain(value: Any) -> Any:
    if isinstance(value, Job):
        return value.model_dump(mode="json", by_alias=True)
    assert isinstance(value, datetime)
    return value.isoformat()
