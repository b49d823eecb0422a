"""How a long command tells how far it is, how it ended, and that it was asked to end.

To a person by a bar and a line; to a program that started it by one JSON object for each line of the standard output:

    {"event": "progress", "done": 3, "of": 25, "what": "block 2"}
    {"event": "done", ...}                                          what was made; the command ends with 0
    {"event": "failed", "code": ..., "message": ..., "field": ...}  `field` is null where none is at fault

The last line is `done` or `failed`, once. SIGTERM raises `Stopped` where the command is, so that files are closed and
what is done is kept; it ends with 143.
"""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Literal, NoReturn, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from penstock_compress.errors import CompressError, Stopped

Form = Literal["bar", "json"]
Report = Callable[[int, int, str], None]
"""Told after each part: how many are done, of how many, and which is next or was last."""
FAILED: Final = 1
STOPPED: Final = 128 + signal.SIGTERM

progress_option = click.option(
    "--progress",
    "form",
    type=click.Choice(["bar", "json"]),
    default="bar",
    show_default=True,
    help="A bar on the terminal, or one JSON object a line for a program.",
)


class Teller(Protocol):
    """Whom a command tells."""

    def progress(self, done: int, of: int, what: str) -> None:
        """`done` parts of `of` are done; `what` says in a word or two where it is."""

    def done(self, line: str, told: dict[str, Any]) -> None:
        """It is done: `line` for a person, `told` for a program."""


@contextmanager
def telling(form: Form) -> Iterator[Teller]:
    """A command's run. Exits with a line or an event for every CompressError, and tells of others before they rise."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        if form == "json":
            yield from _to_program()
        else:
            yield from _to_person()
    finally:
        signal.signal(signal.SIGTERM, before)


def silent(_done: int, _of: int, _what: str) -> None:
    """Tells nobody."""


class _Lines:
    """Tells a program."""

    def progress(self, done: int, of: int, what: str) -> None:
        _say(event="progress", done=done, of=of, what=what)

    def done(self, line: str, told: dict[str, Any]) -> None:  # noqa: ARG002 - the line is for a person
        _say(event="done", **told)


class _Bar:
    """Tells a person."""

    def __init__(self, shown: Progress, task: TaskID) -> None:
        self._shown, self._task = shown, task
        self.line = ""

    def progress(self, done: int, of: int, what: str) -> None:
        self._shown.update(self._task, completed=done, total=of, description=what)

    def done(self, line: str, told: dict[str, Any]) -> None:  # noqa: ARG002 - that is for a program
        self.line = line


class _Line(click.ClickException):
    """The error as a line on stderr."""

    def __init__(self, error: CompressError) -> None:
        super().__init__(str(error))
        self.status = _status(error)

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # click reads it of the instance
        return self.status


def _to_program() -> Iterator[Teller]:
    try:
        yield _Lines()
    except CompressError as error:
        _say(event="failed", code=error.code, message=str(error), field=error.field)
        raise SystemExit(_status(error)) from None
    except Exception as error:
        _say(event="failed", code="unexpected", message=f"{type(error).__name__}: {error}", field=None)
        raise


def _to_person() -> Iterator[Teller]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as shown:
            bar = _Bar(shown, shown.add_task("", total=None))
            yield bar
    except CompressError as error:
        raise _Line(error) from None
    click.echo(bar.line)  # when the bar no longer draws


def _say(**told: Any) -> None:
    click.echo(json.dumps(told))


def _status(error: CompressError) -> int:
    return STOPPED if isinstance(error, Stopped) else FAILED


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Stopped
