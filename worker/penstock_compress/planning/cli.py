"""`penstock plan`."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from penstock_compress.planning import Estimate, Plan

_COUNT: Final = re.compile(r"(\d+)(k?)", re.IGNORECASE)


class Tokens(click.ParamType[int]):
    """A number of tokens: 8192, or 8k."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _COUNT.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no number of tokens; write 8192 or 8k", param, ctx)
        return int(found[1]) * (1024 if found[2] else 1)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--gpu", required=True, help="Which: H200, H100, A100-80GB, L40S, ...; a wrong one lists them all.")
@click.option("--context", type=Tokens(), default="8k", show_default=True, help="Tokens of a request, output included.")
@click.option("--concurrency", type=int, default=64, show_default=True, help="Requests at once.")
@click.option("--output", type=Tokens(), default="512", show_default=True, help="Tokens of a request's output.")
@click.option("--price", type=float, help="Of the GPU for an hour, in any currency.")
@click.option("--bandwidth-share", type=float, default=0.70, show_default=True, help="Of the GPU's, in decoding.")
@click.option("--products-share", type=float, default=0.55, show_default=True, help="Of the GPU's, on prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(model: Path, gpu: str, as_json: bool, **load: Any) -> None:
    """Tell what the model in MODEL needs of a GPU, how much fits, and what a million tokens would cost.

    config.json is enough. Memory is arithmetic; speed is an estimate from the GPU's data sheet.
    """
    from penstock_compress.errors import (
        CompressError,
    )  # with what follows imports torch, for which --help need not wait
    from penstock_compress.planning import Plan, Workload, take_inventory
    from penstock_compress.planning.gpus import find_gpu

    try:
        made = Plan(take_inventory(model), find_gpu(gpu), Workload(**load))
        estimates = made.estimates()
    except CompressError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps({"gpu": asdict(made.gpu), "load": asdict(made.load), "plan": [*map(asdict, estimates)]}))
        return
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(_table(made, estimates))
    console.print(_remarks(made, estimates), soft_wrap=True)


def _table(made: "Plan", estimates: "list[Estimate]") -> Table:
    load = made.load
    title = f"{made.gpu.name}, {_size(made.gpu.memory)}: {load.concurrency} requests of {load.context} tokens"
    table = Table(title=title)
    for heading in ("weights", "K, V"):
        table.add_column(heading)
    for heading in (
        "weights",
        "K, V of\na token",
        "requests\nthat fit",
        "longest\ncontext",
        "tokens/s",
        "each",
        "first\ntoken, s",
    ):
        table.add_column(heading, justify="right")
    if load.price is not None:
        table.add_column("1M output", justify="right")
        table.add_column("1M in all", justify="right")
    for estimate in estimates:
        table.add_row(*_cells(estimate, load.price is not None), style=None if estimate.fits else "dim")
    return table


def _cells(estimate: "Estimate", priced: bool) -> list[str]:
    speeds = [
        _number(estimate.tokens_per_second, ",.0f"),
        _number(estimate.tokens_per_second_each, ".1f"),
        _number(estimate.first_token_seconds, ".3f"),
    ]
    prices = [_number(estimate.price_of_output, ".3f"), _number(estimate.price_of_all, ".3f")] if priced else []
    held = [_size(estimate.weight_bytes), _size(estimate.kv_bytes_for_token)]
    fitting = [f"{estimate.places:,}", f"{estimate.longest:,}"]
    return [estimate.weights, estimate.kv, *held, *fitting, *speeds, *prices]


def _size(count: float) -> str:
    """Bytes, with three digits that count."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _remarks(made: "Plan", estimates: "list[Estimate]") -> str:
    """What the figures rest on, in a few lines."""
    load = made.load
    lines = [
        f"A step takes up to {_size(max(each.step_bytes for each in estimates))} beside weights and K and V.",
        f"Speeds are estimates at {load.bandwidth_share:.0%} of {made.gpu.bandwidth / 1e12:.2f} TB/s"
        f" and {load.products_share:.0%} of {made.gpu.bf16_flops / 1e12:.0f} TFLOP/s in bf16: measure before you buy.",
    ]
    short = [each for each in estimates if each.places < load.concurrency]
    if len(short) == len(estimates):
        lines.append(f"None holds {load.concurrency} at once: those that do not fit wait. Speeds are of those that do.")
    elif short:
        lines.append("Where fewer fit than asked for, the others wait, and speeds are of those that fit.")
    if not made.model.roundable:
        lines.append(f"{made.model.config.model_type} runs transformers' own layers, which are not rounded.")
    return "\n".join(lines)
