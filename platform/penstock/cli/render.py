"""How jobs look in a terminal. What a model or a user wrote never reaches one with its control characters."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock.client import Job, JobState, Queue
from penstock.clock import between_words, utc_now

STYLES: Final = {
    JobState.QUEUED: "yellow",
    JobState.RUNNING: "cyan",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "magenta",
    JobState.EXPIRED: "red",
}
_UNLIMITED_WIDTH: Final = 100_000
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def console_for(stream: str = "stdout") -> Console:
    """A console that interprets no markup, highlights nothing, and breaks no line where there is no terminal."""
    stderr = stream == "stderr"
    width = None if Console(stderr=stderr).is_terminal else _UNLIMITED_WIDTH
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


def printable(text: str) -> str:
    """The text with every control character but tab and line feed made visible: none may steer the terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def write_text(console: Console, text: str, end: str = "\n") -> None:
    """Write model output: as it is into a file or pipe, printable on a terminal."""
    console.out(printable(text) if console.is_terminal else text, end=end, highlight=False)


def write_texts(console: Console, texts: Sequence[str]) -> None:
    """Write one answer as it is; several one after the other, with an empty line between."""
    write_text(console, "\n\n".join(texts))


def state_text(state: JobState) -> Text:
    """The state in its colour."""
    return Text(state.value, style=STYLES[state])


def job_page(job: Job) -> RenderableType:
    """Everything that matters of one job."""
    return Group(_facts(job), *_output(job))


def job_table(jobs: Iterable[Job]) -> Table:
    """Jobs as a table for a terminal."""
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "status", "model", "created", "took", "tokens", "tags"):
        table.add_column(heading, header_style="bold", no_wrap=heading in ("id", "status"))
    for job in jobs:
        cells = [printable(cell) for cell in job_cells(job)]
        table.add_row(cells[0], state_text(job.status), *cells[2:])
    return table


def job_cells(job: Job) -> list[str]:
    """The columns of a job in a list."""
    return [
        job.id,
        job.status.value,
        f"{job.model_name}:{job.model_version}",
        job.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        seconds_between(job.created_at, job.finished_at),
        str(job.usage.output_tokens),
        " ".join(job.tags),
    ]


def seconds_between(start: datetime | None, end: datetime | None) -> str:
    """A duration, or a dash while it lasts."""
    return f"{(end - start).total_seconds():.2f} s" if start and end else "-"


def summary(job: Job) -> str:
    """One line on a finished job: how it ended, how fast, and which version served it."""
    parts = [f"{job.id} {job.status.value}", f"{job.model_name} version {job.model_version}"]
    parts.append(f"{job.usage.output_tokens} tokens")
    if job.first_token_at is not None:
        parts.append(f"first token after {seconds_between(job.created_at, job.first_token_at)}")
    parts.append(f"total {seconds_between(job.created_at, job.finished_at)}")
    if job.error is not None:
        parts.append(f"{job.error.code}: {job.error.message}")
    return printable(", ".join(parts))


def queue_words(queue: Queue) -> str:
    """One line on a waiting job: its place, what it waits for, and when its answer should come."""
    past = "" if queue.position_is_exact else "after "
    place = f"position {past}{queue.position}" if queue.position is not None else "held"
    words = f"{place}: {queue.blocker}"
    if queue.eta is not None:
        seconds = [(moment - utc_now()).total_seconds() for moment in (queue.eta.earliest, queue.eta.latest)]
        words += f"; answer {between_words(*seconds)} ({queue.eta.coverage:.0%} sure)"
    return printable(words)


def timeline_note(data: dict[str, Any]) -> str:
    """What a state event says beyond its name."""
    notes = [f"{name} {value}" for name, value in data.items() if isinstance(value, str | int | float)]
    if isinstance(data.get("error"), dict):
        notes.append(f"{data['error'].get('code')}: {data['error'].get('message')}")
    return printable(", ".join(notes))


def _facts(job: Job) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("job", Text(job.id, style="bold"))
    table.add_row("status", state_text(job.status))
    table.add_row("model", printable(f"{job.model_name} version {job.model_version} (asked for: {job.model})"))
    if job.queue is not None:
        table.add_row("queue", queue_words(job.queue))
    for event in job.timeline:
        at = seconds_between(job.created_at, event.created_at)
        table.add_row(f"+{at}", Text(f"{event.type}  ").append(timeline_note(event.data), style="dim"))
    if job.output is not None and job.output.version is not None:
        share = f", {job.output.ratio:.0%} of the bytes" if job.output.ratio is not None else ""
        table.add_row("came of it", printable(f"{job.output.model} version {job.output.version}{share}"))
    table.add_row(
        "tokens",
        f"{job.usage.prompt_tokens} in ({job.usage.cached_tokens} cached), {job.usage.output_tokens} out",
    )
    table.add_row("first token", seconds_between(job.created_at, job.first_token_at))
    table.add_row("total", seconds_between(job.created_at, job.finished_at))
    if job.tags:
        table.add_row("tags", printable(" ".join(job.tags)))
    if job.retry_of is not None:
        table.add_row("retry of", job.retry_of)
    if job.error is not None:
        table.add_row("error", Text(printable(f"{job.error.code}: {job.error.message}"), style="red"))
    return table


def _output(job: Job) -> list[RenderableType]:
    choices = job.output.choices if job.output else []
    parts: list[RenderableType] = []
    for choice in choices:
        ended = f" ({choice.finish_reason})" if choice.finish_reason else ""
        parts += [Text(f"\nchoice {choice.index}{ended}", style="dim"), Text(printable(choice.text))]
        called = [call.function for call in choice.tool_calls or ()]
        parts += [Text(printable(f"calls {function.name} {function.arguments}")) for function in called]
    return parts


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere a line for each row, its cells between tabs."""
    console = console_for()
    cells = [[printable(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        for row in cells:
            click.echo("\t".join(row))
        return
    table = Table(*headings, box=None, pad_edge=False)
    for row in cells:
        table.add_row(*row)
    console.print(table)
