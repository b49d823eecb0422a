"""`penstock engine`: looking into an engine."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from penstock_engine import Engine
    from penstock_engine.trace import Trace

    from penstock_worker.traces.load import RaggedLoad

C = TypeVar("C", bound=Callable[..., Any])
_EXISTING = click.Path(exists=True, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)
_COUNT = click.IntRange(min=1)
_LOAD_OPTIONS = (
    click.option("--requests", type=_COUNT, default=48, show_default=True, help="Load: how many requests."),
    click.option("--prompt", type=_COUNT, default=64, show_default=True, help="Load: median tokens of a prompt."),
    click.option("--output", type=_COUNT, default=48, show_default=True, help="Load: median tokens of an output."),
    click.option("--shared", type=click.IntRange(min=0), default=0, help="Load: tokens that go before every prompt."),
    click.option("--every", type=click.FloatRange(min=0), default=0.0, help="Load: steps from one to the next."),
    click.option("--seed", type=int, default=0, help="Load: other lengths."),
    click.option("--max-running", type=_COUNT, default=16, show_default=True, help="Engine: places in the batch."),
    click.option("--token-budget", type=_COUNT, default=256, show_default=True, help="Engine: tokens of a step."),
    click.option("--kv-pages", type=_COUNT, help="Engine: pages of its KV pool; few bring preemptions."),
    click.option("--policy", type=click.Choice(["continuous", "static", "request"]), default="continuous"),
    click.option("--threads", type=_COUNT, help="Engine: threads of the CPU."),
)


def _load_options(command: C) -> C:
    for option in reversed(_LOAD_OPTIONS):
        command = option(command)
    return command


@click.group()
def engine() -> None:
    """Look into an engine."""


@engine.command()
@click.argument("source", type=_EXISTING, required=False)
@click.option("-o", "--out", type=_NEW_FILE, default="engine-trace.svg", show_default=True, help="The picture.")
@click.option("--last", type=_COUNT, default=2000, show_default=True, help="Take the last so many steps.")
@click.option("--model", type=_FOLDER, help="Trace a load on this model folder, here and now.")
@click.option("--save", type=_NEW_FILE, help="Keep the trace of that load as JSON lines.")
@_load_options
def trace(source: Path | None, out: Path, last: int, model: Path | None, save: Path | None, **load: Any) -> None:
    """Draw who ran when in an engine, and sum it up.

    SOURCE is a trace of an engine's steps, or a folder of traces, of which the newest is taken: what workers record in
    PENSTOCK_TRACE_FOLDER, or what an Engine's trace.export wrote. With --model no SOURCE is needed: requests of ragged
    lengths run on that model in this process.

    The picture is one SVG file. A browser tells more of whatever the pointer rests on.
    """
    if (source is None) == (model is None):
        raise click.UsageError("give either SOURCE, a trace to draw, or --model, a folder to trace a load on")
    if save is not None and model is None:
        raise click.UsageError("--save keeps the trace of a load: it needs --model")
    from penstock_engine import EngineError  # here, because torch takes seconds

    console = Console(highlight=False)
    try:
        found = _traced(model, load, save, console) if model is not None else _kept(source)
        _show(found, last, str(model or source), out, console)
    except (EngineError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _kept(source: Path | None) -> "Trace":
    from penstock_worker.traces.file import read_kept

    assert source is not None
    return read_kept(source)


def _traced(model: Path, load: dict[str, Any], save: Path | None, console: Console) -> "Trace":
    from penstock_engine import Engine, EngineConfig
    from penstock_engine.trace import Trace

    from penstock_worker.traces.load import RaggedLoad

    limits = {name: load.pop(name) for name in ("max_running", "token_budget", "kv_pages", "policy", "threads")}
    config = EngineConfig(trace_steps=1_000_000, max_waiting=load["requests"], **limits)
    engine = Engine.from_folder(model, config)
    engine.warm_up()
    _run(RaggedLoad(**load), engine, console)
    if save is not None:
        engine.trace.export(save)
    return Trace(engine.trace.header, list(engine.trace))


def _run(load: "RaggedLoad", engine: "Engine", console: Console) -> None:
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("requests", total=load.requests)
        load.run(engine, lambda ended: progress.advance(task, ended))


def _show(trace: "Trace", last: int, name: str, out: Path, console: Console) -> None:
    from penstock_worker.traces.picture import draw
    from penstock_worker.traces.summary import Figures
    from penstock_worker.traces.timeline import timeline_of

    if not trace.records:
        raise click.ClickException("the trace holds no step yet")
    recent = trace._replace(records=trace.records[-last:])
    figures = Figures.of(recent)
    out.write_text(draw(timeline_of(recent), figures, name), encoding="utf-8")
    console.print(figures.table())
    console.print(f"Drawn in {out}", style="bold", soft_wrap=True)
